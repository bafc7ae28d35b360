// Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000, and what
// Greff et al., "LSTM: a search space odyssey", 2017, compare it with: without one of its gates, with one gate that
// both forgets and lets in (CIFG), with peepholes (Gers and Schmidhuber, 2000). With a projection: Sak, Senior and
// Beaufays, "Long short-term memory based recurrent neural network architectures", 2014. With c normalized: Ba, Kiros
// and Hinton, "Layer normalization", 2016.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

enum class LstmGates { all, no_input, no_forget, no_output, coupled };
enum LstmParts : unsigned { kPeephole = 1, kProjected = 2, kNormalized = 4, kFullGates = 8 };

/// Words joined by underscores.
struct CellName {
  char text[40] = {};
  constexpr CellName& operator<<(const char* word) {
    int end = 0;
    while (text[end]) ++end;
    if (end > 0) text[end++] = '_';
    while (*word) text[end++] = *word++;
    return *this;
  }
};

template <class Functions, LstmGates kind, unsigned parts = 0>
struct LstmCell {
  using Activations = Functions;
  static constexpr bool has_input = kind != LstmGates::no_input, coupled = kind == LstmGates::coupled;
  static constexpr bool has_forget = kind != LstmGates::no_forget && !coupled;
  static constexpr bool has_output = kind != LstmGates::no_output;
  static constexpr bool peephole = parts & kPeephole, projected = parts & kProjected, normalized = parts & kNormalized;
  static constexpr bool full_gates = parts & kFullGates;
  // The gates in the order of their columns; g: the candidate, which Keras calls c.
  static constexpr int I = 0, F = I + has_input, G = F + has_forget, O = G + 1, gates = O + has_output;
  // The peepholes in the order of theirs.
  static constexpr int PI = 0, PF = PI + has_input, PO = PF + has_forget, peepholes = peephole ? PO + has_output : 0;
  // Further slots: o y(c), which a projection multiplies; c normalized.
  static constexpr int OM = gates, CN = OM + projected, saved = CN + normalized;

  static constexpr CellName name() {
    constexpr const char* words[] = {"", "nig", "nfg", "nog", "cifg"};
    CellName name;
    name << "lstm";
    if (projected) name << "projected";
    if (kind != LstmGates::all) name << words[static_cast<int>(kind)];
    if (full_gates) name << "fgr";
    if (peephole) name << "peephole";
    if (normalized) name << "normalized";
    return name;
  }
  static constexpr CellName kName = name();
  static constexpr CellTraits traits{
      kName.text, gates, 2, 1, peepholes, saved + (full_gates ? 5 : 2), projected, normalized, full_gates ? 4 : 1};

  struct Step : Stage<0, gates> {
    static constexpr int first_slot = 0, slots = normalized ? gates : gates + projected, parameters = peepholes;
    static constexpr unsigned states = projected || normalized ? 2 : 3;

    /// The gates' values; 1 for one that there is not.
    template <class V>
    struct Values {
      V i, f, g;
    };
    template <class V>
    static FASTRNN_INLINE Values<V> values(const Functions& f, const V* slot) {
      Values<V> v{one<V>(), one<V>(), f.state.value(slot[G])};
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
      if constexpr (has_output && peephole) slot[O] = f.gate.save(see(p, PO, c, a[O]));
      if constexpr (!normalized) (projected ? slot[OM] : next[0]) = output(f, slot, c);
      if constexpr (full_gates) next[2] = v.i, next[3] = v.f, next[4] = f.gate.value(slot[O]);
    }
    /// o y(c).
    template <class V>
    static FASTRNN_INLINE V output(const Functions& f, const V* slot, const V& c) {
      const V y = f.output.value(f.output.save(c));
      if constexpr (has_output)
        return mul(f.gate.value(slot[O]), y);
      else
        return y;
    }
    /// Its gradients with respect to o and, returned, c, where its own is dom.
    template <class V>
    static FASTRNN_INLINE V output_gradient(const Functions& f, const V* slot, const V& c, const V& dom, V& do_) {
      const V kept = f.output.save(c), y = f.output.value(kept);
      do_ = mul(dom, y);
      if constexpr (has_output)
        return f.output.gradient(kept, y, mul(dom, f.gate.value(slot[O])));
      else
        return f.output.gradient(kept, y, dom);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V* p, const V* slot, const V* prev, const V* next,
                                        V* d, const V& doperand, V* da) {
      const Values<V> v = values(f, slot);
      const V c = next[1];
      V do_ = doperand, dc = d[1];
      if constexpr (!normalized) dc = add(dc, output_gradient(f, slot, c, projected ? doperand : d[0], do_));
      const auto also_state = [&](const V& gradient, int which) FASTRNN_ALWAYS {  // where the gates are states
        if constexpr (full_gates) {
          const V both = add(gradient, d[which]);
          d[which] = zero<V>();
          return both;
        } else {
          return gradient;
        }
      };
      V* const dp = da + gates;
      if constexpr (has_output) {
        da[O] = f.gate.gradient(slot[O], f.gate.value(slot[O]), also_state(do_, 4));
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
        da[I] = f.gate.gradient(slot[I], v.i, also_state(mul(dc, other), 2));
        if constexpr (peephole) {  // i = gate(a_i + p_i c_prev)
          d[1] = fma(da[I], p[PI], d[1]);
          dp[PI] = mul(da[I], prev[1]);
        }
      }
      if constexpr (has_forget) {
        da[F] = f.gate.gradient(slot[F], v.f, also_state(mul(dc, prev[1]), 3));
        if constexpr (peephole) {
          d[1] = fma(da[F], p[PF], d[1]);
          dp[PF] = mul(da[F], prev[1]);
        }
      }
    }
  };

  /// h = o y(n) with n the normalized c.
  struct Output : Stage<0, 0> {
    static constexpr int operand = kNothing, first_slot = OM, slots = projected + 1, accumulators = 1;
    static constexpr bool normalizes = true;
    static constexpr unsigned states = projected ? 0 : 1;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V*, const V* a, V* slot, const V*, V* next) {
      slot[CN] = a[0];
      (projected ? slot[OM] : next[0]) = Step::output(f, slot, a[0]);
    }
    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V*, const V* slot, const V*, const V*, V* d,
                                        const V& doperand, V* da) {
      da[0] = Step::output_gradient(f, slot, slot[CN], projected ? doperand : d[0], da[1]);
      if constexpr (!projected) d[0] = zero<V>();
    }
  };

  /// h = (o y(c)).P
  struct Projection : Stage<0, 1> {
    static constexpr int operand = OM, first_slot = saved, slots = 0;
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
  using Stages = std::conditional_t<
      projected, std::conditional_t<normalized, StageList<Step, Output, Projection>, StageList<Step, Projection>>,
      std::conditional_t<normalized, StageList<Step, Output>, StageList<Step>>>;
};

template <class Functions>
using Lstm = LstmCell<Functions, LstmGates::all>;
template <class Functions>
using LstmPeephole = LstmCell<Functions, LstmGates::all, kPeephole>;
template <class Functions>
using LstmNig = LstmCell<Functions, LstmGates::no_input>;
template <class Functions>
using LstmNigPeephole = LstmCell<Functions, LstmGates::no_input, kPeephole>;
template <class Functions>
using LstmNfg = LstmCell<Functions, LstmGates::no_forget>;
template <class Functions>
using LstmNfgPeephole = LstmCell<Functions, LstmGates::no_forget, kPeephole>;
template <class Functions>
using LstmNog = LstmCell<Functions, LstmGates::no_output>;
template <class Functions>
using LstmNogPeephole = LstmCell<Functions, LstmGates::no_output, kPeephole>;
template <class Functions>
using LstmCifg = LstmCell<Functions, LstmGates::coupled>;
template <class Functions>
using LstmCifgPeephole = LstmCell<Functions, LstmGates::coupled, kPeephole>;
template <class Functions>
using LstmProjected = LstmCell<Functions, LstmGates::all, kProjected>;
template <class Functions>
using LstmProjectedPeephole = LstmCell<Functions, LstmGates::all, kPeephole | kProjected>;
template <class Functions>
using LstmFgr = LstmCell<Functions, LstmGates::all, kFullGates>;
template <class Functions>
using LstmFgrPeephole = LstmCell<Functions, LstmGates::all, kFullGates | kPeephole>;
template <class Functions>
using LstmNormalized = LstmCell<Functions, LstmGates::all, kNormalized>;
template <class Functions>
using LstmPeepholeNormalized = LstmCell<Functions, LstmGates::all, kPeephole | kNormalized>;
template <class Functions>
using LstmNigNormalized = LstmCell<Functions, LstmGates::no_input, kNormalized>;
template <class Functions>
using LstmNigPeepholeNormalized = LstmCell<Functions, LstmGates::no_input, kPeephole | kNormalized>;
template <class Functions>
using LstmNfgNormalized = LstmCell<Functions, LstmGates::no_forget, kNormalized>;
template <class Functions>
using LstmNfgPeepholeNormalized = LstmCell<Functions, LstmGates::no_forget, kPeephole | kNormalized>;
template <class Functions>
using LstmNogNormalized = LstmCell<Functions, LstmGates::no_output, kNormalized>;
template <class Functions>
using LstmNogPeepholeNormalized = LstmCell<Functions, LstmGates::no_output, kPeephole | kNormalized>;
template <class Functions>
using LstmCifgNormalized = LstmCell<Functions, LstmGates::coupled, kNormalized>;
template <class Functions>
using LstmCifgPeepholeNormalized = LstmCell<Functions, LstmGates::coupled, kPeephole | kNormalized>;
template <class Functions>
using LstmProjectedNormalized = LstmCell<Functions, LstmGates::all, kProjected | kNormalized>;
template <class Functions>
using LstmProjectedPeepholeNormalized = LstmCell<Functions, LstmGates::all, kPeephole | kProjected | kNormalized>;

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
