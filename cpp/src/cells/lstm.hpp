// Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000, and what
// Greff et al., "LSTM: a search space odyssey", 2017, compare it with: without one of its gates, with one gate that
// both forgets and lets in (CIFG), with peepholes (Gers and Schmidhuber, 2000). With a projection: Sak, Senior and
// Beaufays, "Long short-term memory based recurrent neural network architectures", 2014.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

enum class LstmGates { all, no_input, no_forget, no_output, coupled };

template <class Functions, LstmGates kind, bool peephole, bool projected = false>
struct LstmCell {
  using Activations = Functions;
  static constexpr bool has_input = kind != LstmGates::no_input, coupled = kind == LstmGates::coupled;
  static constexpr bool has_forget = kind != LstmGates::no_forget && !coupled;
  static constexpr bool has_output = kind != LstmGates::no_output;
  // The gates in the order of their columns; g: the candidate, which Keras calls c.
  static constexpr int I = 0, F = I + has_input, G = F + has_forget, O = G + 1, gates = O + has_output;
  // The peepholes in the order of theirs.
  static constexpr int PI = 0, PF = PI + has_input, PO = PF + has_forget, peepholes = peephole ? PO + has_output : 0;

  static constexpr const char* name() {
    if (projected) return peephole ? "lstm_projected_peephole" : "lstm_projected";
    if (kind == LstmGates::no_input) return peephole ? "lstm_nig_peephole" : "lstm_nig";
    if (kind == LstmGates::no_forget) return peephole ? "lstm_nfg_peephole" : "lstm_nfg";
    if (kind == LstmGates::no_output) return peephole ? "lstm_nog_peephole" : "lstm_nog";
    if (kind == LstmGates::coupled) return peephole ? "lstm_cifg_peephole" : "lstm_cifg";
    return peephole ? "lstm_peephole" : "lstm";
  }
  static constexpr int OM = gates;  // with a projection: o y(c), which it multiplies
  static constexpr CellTraits traits{name(), gates, 2, 1, peepholes, gates + projected + 2, projected};

  struct Step : Stage<0, gates> {
    static constexpr int first_slot = 0, slots = gates + projected, parameters = peepholes;
    static constexpr unsigned states = projected ? 2 : 3;

    /// The gates' values; 1 for one that there is not.
    template <class V>
    struct Values {
      V i, f, g, o;
    };
    template <class V>
    static FASTRNN_INLINE Values<V> values(const Functions& f, const V* slot) {
      Values<V> v{one<V>(), one<V>(), f.state.value(slot[G]), one<V>()};
      if constexpr (has_input) v.i = f.gate.value(slot[I]);
      if constexpr (has_forget) v.f = f.gate.value(slot[F]);
      if constexpr (coupled) v.f = sub(one<V>(), v.i);
      return v;
    }
    template <class V>
    static FASTRNN_INLINE V see(const V* p, int which, const V& c, const V& a) {
      return peephole ? fma(p[which], c, a) : a;
    }

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V* p, const V* a, V* slot, const V* prev, V* next) {
      if constexpr (has_input) slot[I] = f.gate.save(see(p, PI, prev[1], a[I]));
      if constexpr (has_forget) slot[F] = f.gate.save(see(p, PF, prev[1], a[F]));
      slot[G] = f.state.save(a[G]);
      if constexpr (has_output && !peephole) slot[O] = f.gate.save(a[O]);  // while the others are on their way
      const Values<V> v = values(f, slot);
      const V c = fma(v.f, prev[1], mul(v.i, v.g));
      next[1] = c;
      V& h = projected ? slot[OM] : next[0];
      h = f.output.value(f.output.save(c));
      if constexpr (has_output) {
        if constexpr (peephole) slot[O] = f.gate.save(see(p, PO, c, a[O]));
        h = mul(f.gate.value(slot[O]), h);
      }
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V* p, const V* slot, const V* prev, const V* next,
                                        V* d, const V& dom, V* da) {
      const V dh = projected ? dom : d[0];
      Values<V> v = values(f, slot);
      if constexpr (has_output) v.o = f.gate.value(slot[O]);
      const V c = next[1], kept = f.output.save(c), y = f.output.value(kept);
      V dc = add(d[1], f.output.gradient(kept, y, mul(dh, v.o)));  // h = o y(c)
      V* const dp = da + gates;
      if constexpr (has_output) {
        da[O] = f.gate.gradient(slot[O], v.o, mul(dh, y));
        if constexpr (peephole) {  // o = gate(a_o + p_o c)
          dc = fma(da[O], p[PO], dc);
          dp[PO] = mul(da[O], c);
        }
      }
      da[G] = f.state.gradient(slot[G], v.g, mul(dc, v.i));  // c = f c_prev + i g
      d[0] = zero<V>();
      d[1] = mul(dc, v.f);
      if constexpr (has_input) {
        const V other = coupled ? sub(v.g, prev[1]) : v.g;  // f = 1 - i
        da[I] = f.gate.gradient(slot[I], v.i, mul(dc, other));
        if constexpr (peephole) {  // i = gate(a_i + p_i c_prev)
          d[1] = fma(da[I], p[PI], d[1]);
          dp[PI] = mul(da[I], prev[1]);
        }
      }
      if constexpr (has_forget) {
        da[F] = f.gate.gradient(slot[F], v.f, mul(dc, prev[1]));
        if constexpr (peephole) {
          d[1] = fma(da[F], p[PF], d[1]);
          dp[PF] = mul(da[F], prev[1]);
        }
      }
    }
  };

  /// h = (o y(c)).P
  struct Projection : Stage<0, 1> {
    static constexpr int operand = OM, first_slot = gates + 1, slots = 0;
    static constexpr bool projects = true;
    static constexpr unsigned states = 1;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions&, const V*, const V* a, V*, const V*, V* next) {
      next[0] = a[0];
    }
    template <class V>
    static FASTRNN_INLINE void backward(const Functions&, const V*, const V*, const V*, const V*, V* d, const V&,
                                        V* da) {
      da[0] = d[0];
      d[0] = zero<V>();
    }
  };
  using Stages = std::conditional_t<projected, StageList<Step, Projection>, StageList<Step>>;
};

template <class Functions>
using Lstm = LstmCell<Functions, LstmGates::all, false>;
template <class Functions>
using LstmPeephole = LstmCell<Functions, LstmGates::all, true>;
template <class Functions>
using LstmNig = LstmCell<Functions, LstmGates::no_input, false>;
template <class Functions>
using LstmNigPeephole = LstmCell<Functions, LstmGates::no_input, true>;
template <class Functions>
using LstmNfg = LstmCell<Functions, LstmGates::no_forget, false>;
template <class Functions>
using LstmNfgPeephole = LstmCell<Functions, LstmGates::no_forget, true>;
template <class Functions>
using LstmNog = LstmCell<Functions, LstmGates::no_output, false>;
template <class Functions>
using LstmNogPeephole = LstmCell<Functions, LstmGates::no_output, true>;
template <class Functions>
using LstmCifg = LstmCell<Functions, LstmGates::coupled, false>;
template <class Functions>
using LstmCifgPeephole = LstmCell<Functions, LstmGates::coupled, true>;
template <class Functions>
using LstmProjected = LstmCell<Functions, LstmGates::all, false, true>;
template <class Functions>
using LstmProjectedPeephole = LstmCell<Functions, LstmGates::all, true, true>;

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
