// Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014. Two forms: the reset gate multiplies
// the recurrent part of the candidate after its product (as cuDNN does; Keras' reset_after=True) or h before it (the
// paper).
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// z h_prev + (1 - z) n; z = 1 keeps h exactly.
template <class V>
FASTRNN_INLINE V mix(const V& z, const V& h_prev, const V& n) {
  return fma(z, h_prev, mul(sub(one<V>(), z), n));
}

template <class Functions>
struct Gru {
  using Activations = Functions;
  static constexpr CellTraits traits{"gru", 3, 1, 2, 0, 5, false, false, 1};
  enum Sum { Z, R, N, Q };  // n: the candidate; q: its recurrent part, kept apart until r has multiplied it

  struct Step : Stage<0, 3, N> {
    static constexpr int first_slot = 0, slots = 4;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V*, const V* a, V* slot, const V* prev, V* next) {
      slot[Z] = f.gate.save(a[Z]);
      slot[R] = f.gate.save(a[R]);
      slot[Q] = a[Q];
      slot[N] = f.state.save(fma(f.gate.value(slot[R]), a[Q], a[N]));
      next[0] = mix(f.gate.value(slot[Z]), prev[0], f.state.value(slot[N]));
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V*, const V* slot, const V* prev, const V*, V* d,
                                        const V&, V* da) {
      const V z = f.gate.value(slot[Z]), r = f.gate.value(slot[R]), n = f.state.value(slot[N]);
      const V q = slot[Q], dh = d[0];
      const V dn = mul(sub(one<V>(), z), dh);  // h = z h_prev + (1 - z) n
      da[Z] = f.gate.gradient(slot[Z], z, mul(dh, sub(prev[0], n)));
      d[0] = mul(dh, z);
      da[N] = f.state.gradient(slot[N], n, dn);  // n = tanh(a_n + r q)
      da[R] = f.gate.gradient(slot[R], r, mul(da[N], q));
      da[Q] = mul(da[N], r);
    }
  };
  using Stages = StageList<Step>;
};

template <class Functions>
struct GruResetBefore {
  using Activations = Functions;
  static constexpr CellTraits traits{"gru_reset_before", 3, 1, 1, 0, 5, false, false, 1};
  enum Slot { Z, R, RH, N };  // rh = r h_prev, what the candidate's recurrent kernel multiplies

  struct Gates : Stage<0, 2> {
    static constexpr int first_slot = 0, slots = 3;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V*, const V* a, V* slot, const V* prev, V*) {
      slot[Z] = f.gate.save(a[Z]);
      slot[R] = f.gate.save(a[R]);
      slot[RH] = mul(f.gate.value(slot[R]), prev[0]);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V*, const V* slot, const V* prev, const V*, V* d,
                                        const V& drh, V* da) {
      const V z = f.gate.value(slot[Z]), r = f.gate.value(slot[R]), dh = d[0];
      // h = z h_prev + (1 - z) n
      da[Z] = f.gate.gradient(slot[Z], z, mul(dh, sub(prev[0], f.state.value(slot[N]))));
      da[R] = f.gate.gradient(slot[R], r, mul(drh, prev[0]));  // rh = r h_prev
      d[0] = fma(dh, z, mul(drh, r));
    }
  };

  struct Candidate : Stage<2, 1> {
    static constexpr int operand = RH, first_slot = N, slots = 1;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V*, const V* a, V* slot, const V* prev, V* next) {
      slot[N] = f.state.save(a[0]);
      next[0] = mix(f.gate.value(slot[Z]), prev[0], f.state.value(slot[N]));
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V*, const V* slot, const V*, const V*, V* d, const V&,
                                        V* da) {
      const V dn = mul(sub(one<V>(), f.gate.value(slot[Z])), d[0]);   // h = z h_prev + (1 - z) n
      da[0] = f.state.gradient(slot[N], f.state.value(slot[N]), dn);  // n = tanh(a)
    }
  };
  using Stages = StageList<Gates, Candidate>;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
