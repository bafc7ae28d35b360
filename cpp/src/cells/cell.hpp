// The contract between a cell and the time loops (forward.hpp, backward.hpp).
//
// A cell is a struct, templated on its activations (activations.hpp), with
//   Activations            those
//   traits                 its CellTraits; the slots of its tape are its saved values, then its states
//   Stages = StageList<…>  what one time step does, in order. Most cells have one stage; further ones are for cells
//                          that need a matrix product, or the normalization, of something computed within the step.
//
// A stage is a struct derived from Stage<first gate, gates, apart>, which says what it multiplies, with
//   operand                what U multiplies, if not kHidden: the slot of an earlier stage, or kNothing
//   projects               whether its U is the projection: then it has one gate, no x, and as many units as h is wide
//   normalizes             whether its one sum is the layer normalization of c: then it has no gate; beside the
//                          gradient of the sum, its backward leaves doperand of the stage before
//   states                 which states it concerns, a bit for each, if not all: it reads them; the first stage that
//                          concerns a state leaves its gradient, the last one the state
//   parameters             how many vectors of per-unit parameters it reads, if any
//   first_slot, slots      the slots that its forward writes
//   forward(f, p, a, slot, prev, next)
//       f: the activations; p: the parameters; a: the finished sums (bias included); slot: reads those of earlier
//       stages, writes its own; prev: the states before the step; next: the states after it
//   backward(f, p, slot, prev, next, d, doperand, da)
//       slot, prev, next: as forward left them; d: in, the gradients of next; the first stage leaves there the
//       gradients of prev but for what flows through U; doperand: the gradient of the slot that the next stage's U
//       multiplies, or what the next stage leaves; da: out, the gradients of the sums, then the step's share of those
//       of the parameters
// Where state 0 has more than h, prev, next and d have its other vectors after all states.
// Both are templated on the vector type (a vector, or a Group of them), and know nothing of layout, tails or threads.
#pragma once

#include "../activations.hpp"
#include "fastrnn/fastrnn.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

constexpr int kHidden = -1, kNothing = -2;

/// What a stage multiplies: the columns of the kernels of `gates_` gates from `first_gate_` on. It keeps a sum per gate
/// and unit, of x.W, operand.U and the bias; for gate `apart`, operand.U has a further sum of its own, the last.
template <int first_gate_, int gates_, int apart_ = -1>
struct Stage {
  static constexpr int first_gate = first_gate_, gates = gates_, apart = apart_;
  static constexpr int accumulators = gates + (apart >= 0);
  static constexpr int operand = kHidden, parameters = 0;
  static constexpr bool projects = false, normalizes = false;
  static constexpr unsigned states = ~0u;
};

template <class... S>
struct StageList {
  /// The states that stages before or after one concern.
  template <class One>
  static constexpr unsigned before() {
    unsigned found = 0;
    bool here = false;
    ((here = here || std::is_same_v<One, S>, found |= here ? 0u : S::states), ...);
    return found;
  }
  template <class One>
  static constexpr unsigned after() {
    unsigned found = 0;
    bool passed = false;
    ((found |= passed ? S::states : 0u, passed = passed || std::is_same_v<One, S>), ...);
    return found;
  }
  /// Whether it is the last one.
  template <class One>
  static constexpr bool ends_with() {
    bool is_last = false;
    ((is_last = std::is_same_v<One, S>), ...);
    return is_last;
  }
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
