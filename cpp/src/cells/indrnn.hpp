// Li et al., "Independently recurrent neural network (IndRNN)", 2018: each unit sees its own past alone, so that there
// is a vector of recurrent weights instead of a matrix.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

template <class Functions>
struct IndRnn {
  using Activations = Functions;
  static constexpr CellTraits traits{"indrnn", 1, 1, 1, 1, 2, false, false, 1};

  struct Step : Stage<0, 1> {
    static constexpr int operand = kNothing, first_slot = 0, slots = 1, parameters = 1;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V* u, const V* a, V* slot, const V* prev, V* next) {
      slot[0] = f.state.save(fma(u[0], prev[0], a[0]));
      next[0] = f.state.value(slot[0]);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V* u, const V* slot, const V* prev, const V*, V* d,
                                        const V&, V* da) {
      da[0] = f.state.gradient(slot[0], f.state.value(slot[0]), d[0]);  // h = act(a + u h_prev)
      da[1] = mul(da[0], prev[0]);                                      // the gradient of u
      d[0] = mul(da[0], u[0]);
    }
  };
  using Stages = StageList<Step>;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
