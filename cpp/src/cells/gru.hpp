// Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014. Two forms: the reset gate multiplies
// the recurrent part of the candidate after its product (as cuDNN does; Keras' reset_after=True) or h before it (the
// paper).
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

struct Gru {
  static constexpr CellTraits traits{"gru", 3, 1, 2, 5};
  enum Sum { Z, R, N, Q };  // n: the candidate; q: its recurrent part, kept apart until r has multiplied it

  struct Step {
    static constexpr int first_gate = 0, gates = 3, accumulators = 4, operand = kHidden, first_slot = 0, slots = 4;
    static constexpr int recurrent_sum(int g) { return g == N ? Q : g; }

    template <class V>
    static FASTRNN_INLINE void forward(const V* a, V* slot, const V* prev, V* next) {
      slot[Z] = sigmoid(a[Z]);
      slot[R] = sigmoid(a[R]);
      slot[Q] = a[Q];
      slot[N] = tanh(fma(slot[R], a[Q], a[N]));
      next[0] = fma(slot[Z], prev[0], mul(sub(one<V>(), slot[Z]), slot[N]));  // z = 1 keeps h exactly
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V* slot, const V* prev, const V*, V* d, const V&, V* da) {
      const V z = slot[Z], r = slot[R], n = slot[N], q = slot[Q], dh = d[0];
      const V dn = mul(sub(one<V>(), z), dh);  // h = z h_prev + (1 - z) n
      da[Z] = sigmoid_gradient(z, mul(dh, sub(prev[0], n)));
      d[0] = mul(dh, z);
      da[N] = tanh_gradient(n, dn);  // n = tanh(a_n + r q)
      da[R] = sigmoid_gradient(r, mul(da[N], q));
      da[Q] = mul(da[N], r);
    }
  };
  using Stages = StageList<Step>;
};

struct GruResetBefore {
  static constexpr CellTraits traits{"gru_reset_before", 3, 1, 1, 5};
  enum Slot { Z, R, RH, N };  // rh = r h_prev, what the candidate's recurrent kernel multiplies

  struct Gates {
    static constexpr int first_gate = 0, gates = 2, accumulators = 2, operand = kHidden, first_slot = 0, slots = 3;
    static constexpr int recurrent_sum(int g) { return g; }

    template <class V>
    static FASTRNN_INLINE void forward(const V* a, V* slot, const V* prev, V*) {
      slot[Z] = sigmoid(a[Z]);
      slot[R] = sigmoid(a[R]);
      slot[RH] = mul(slot[R], prev[0]);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V* slot, const V* prev, const V*, V* d, const V& drh, V* da) {
      const V z = slot[Z], r = slot[R], dh = d[0];
      da[Z] = sigmoid_gradient(z, mul(dh, sub(prev[0], slot[N])));  // h = z h_prev + (1 - z) n
      da[R] = sigmoid_gradient(r, mul(drh, prev[0]));               // rh = r h_prev
      d[0] = fma(dh, z, mul(drh, r));
    }
  };

  struct Candidate {
    static constexpr int first_gate = 2, gates = 1, accumulators = 1, operand = RH, first_slot = N, slots = 1;
    static constexpr int recurrent_sum(int g) { return g; }

    template <class V>
    static FASTRNN_INLINE void forward(const V* a, V* slot, const V* prev, V* next) {
      slot[N] = tanh(a[0]);
      next[0] = fma(slot[Z], prev[0], mul(sub(one<V>(), slot[Z]), slot[N]));  // z = 1 keeps h exactly
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V* slot, const V*, const V*, V* d, const V&, V* da) {
      const V dn = mul(sub(one<V>(), slot[Z]), d[0]);  // h = z h_prev + (1 - z) n
      da[0] = tanh_gradient(slot[N], dn);              // n = tanh(a)
    }
  };
  using Stages = StageList<Gates, Candidate>;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
