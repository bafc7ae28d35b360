// Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

struct Lstm {
  static constexpr CellTraits traits{"lstm", 4, 2, 1, 6};
  enum Gate { I, F, G, O };  // g: the candidate, which Keras calls c

  struct Step {
    static constexpr int first_gate = 0, gates = 4, accumulators = 4, operand = kHidden, first_slot = 0, slots = 4;
    static constexpr int recurrent_sum(int g) { return g; }

    template <class V>
    static FASTRNN_INLINE void forward(const V* a, V* slot, const V* prev, V* next) {
      slot[I] = sigmoid(a[I]);
      slot[F] = sigmoid(a[F]);
      slot[G] = tanh(a[G]);
      slot[O] = sigmoid(a[O]);
      const V c = fma(slot[F], prev[1], mul(slot[I], slot[G]));
      next[0] = mul(slot[O], tanh(c));
      next[1] = c;
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V* slot, const V* prev, const V* next, V* d, const V&, V* da) {
      const V i = slot[I], f = slot[F], g = slot[G], o = slot[O];
      const V tanh_c = tanh(next[1]);
      const V dc = add(d[1], tanh_gradient(tanh_c, mul(d[0], o)));  // h = o tanh(c)
      da[O] = sigmoid_gradient(o, mul(d[0], tanh_c));
      da[I] = sigmoid_gradient(i, mul(dc, g));  // c = f c_prev + i g
      da[F] = sigmoid_gradient(f, mul(dc, prev[1]));
      da[G] = tanh_gradient(g, mul(dc, i));
      d[0] = zero<V>();
      d[1] = mul(dc, f);
    }
  };
  using Stages = StageList<Step>;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
