// Elman, "Finding structure in time", 1990. Saves nothing but h.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

struct SimpleRnn {
  static constexpr CellTraits traits{"simple_rnn", 1, 1, 1, 1};

  struct Step {
    static constexpr int first_gate = 0, gates = 1, accumulators = 1, operand = kHidden, first_slot = 0, slots = 0;
    static constexpr int recurrent_sum(int g) { return g; }

    template <class V>
    static FASTRNN_INLINE void forward(const V* a, V*, const V*, V* next) {
      next[0] = tanh(a[0]);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V*, const V*, const V* next, V* d, const V&, V* da) {
      da[0] = tanh_gradient(next[0], d[0]);  // h = tanh(a)
      d[0] = zero<V>();
    }
  };
  using Stages = StageList<Step>;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
