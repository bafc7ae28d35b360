// The contract between a cell and the time loop (sequence.hpp).
//
// A cell is a struct with
//   traits                 its CellTraits; the slots of its tape are its saved values, then its states
//   Stages = StageList<…>  what one time step does, in order. Most cells have one stage; a second one is for cells that
//                          need a matrix product of something computed within the step.
//
// A stage is a struct with
//   first_gate, gates      the columns of the kernels that it multiplies: gates first_gate … first_gate + gates - 1
//   accumulators           how many sums it keeps apart per unit, at most kTileVectors; sum g takes x.W of its gate g
//   recurrent_sum(g)       the sum that takes operand.U of its gate g: g, or one that has no part of x
//   operand                what U multiplies: kHidden, or the slot of an earlier stage
//   first_slot, slots      the slots that its forward writes
//   forward(a, slot, prev, next)
//       a: the finished sums (bias included); slot: reads those of earlier stages, writes its own;
//       prev: the states before the step; next: the states after it, written by the last stage
//   backward(slot, prev, next, d, doperand, da)
//       slot, prev, next: as forward left them; d: in, the gradients of next; the first stage leaves there the
//       gradients of prev but for what flows through U; doperand: the gradient of the slot that the next stage's U
//       multiplies; da: out, the gradients of the sums
// Both are templated on the vector type, work on whole vectors and know nothing of layout, tails or threads.
#pragma once

#include "../simd.hpp"
#include "fastrnn/fastrnn.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

constexpr int kHidden = -1;

template <class... Stage>
struct StageList {
  static constexpr int count = sizeof...(Stage);
};

/// f(stage, index) for every stage: first to last, or last to first.
template <class F, class... Stage>
FASTRNN_INLINE void for_each_stage(StageList<Stage...>, F&& f) {
  int index = 0;
  (f(Stage{}, index++), ...);
}
template <class F>
FASTRNN_INLINE void for_each_stage_reversed(StageList<>, F&&, int = 0) {}
template <class F, class First, class... Rest>
FASTRNN_INLINE void for_each_stage_reversed(StageList<First, Rest...>, F&& f, int index = 0) {
  for_each_stage_reversed(StageList<Rest...>{}, f, index + 1);
  f(First{}, index);
}

template <class V>
FASTRNN_INLINE V one() {
  return broadcast<V>(Scalar<V>(1));
}
/// d times s (1 - s), the derivative of sigmoid where its value is s. Here and below the factor is finished before d
/// comes in: an infinite d must not meet itself with the other sign.
template <class V>
FASTRNN_INLINE V sigmoid_gradient(const V& s, const V& d) {
  return mul(d, fma(negate(s), s, s));
}
/// d times 1 - t^2, the derivative of tanh where its value is t.
template <class V>
FASTRNN_INLINE V tanh_gradient(const V& t, const V& d) {
  return mul(d, fma(negate(t), t, one<V>()));
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
