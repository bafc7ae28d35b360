// Elman, "Finding structure in time", 1990. With tanh it saves nothing but h.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

template <class Functions>
struct SimpleRnn {
  using Activations = Functions;
  static constexpr int saved = Functions::standard ? 0 : 1;
  static constexpr CellTraits traits{"simple_rnn", 1, 1, 1, 0, saved + 1, false, false, 1};

  struct Step : Stage<0, 1> {
    static constexpr int first_slot = 0, slots = saved;

    template <class V>
    static FASTRNN_INLINE void forward(const Functions& f, const V*, const V* a, V* slot, const V*, V* next) {
      const V kept = f.state.save(a[0]);
      if constexpr (saved) slot[0] = kept;
      next[0] = f.state.value(kept);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const Functions& f, const V*, const V* slot, const V*, const V* next, V* d,
                                        const V&, V* da) {
      const V kept = saved ? slot[0] : next[0];
      da[0] = f.state.gradient(kept, f.state.value(kept), d[0]);  // h = tanh(a)
      d[0] = zero<V>();
    }
  };
  using Stages = StageList<Step>;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
