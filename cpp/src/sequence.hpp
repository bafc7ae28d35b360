// What the passes through time (forward.hpp, backward.hpp) have in common: the rows, steps and states of a sequence.
#pragma once

#include "panels.hpp"
#include "table.hpp"
#include "team.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

template <class T>
FASTRNN_INLINE void copy(const T* from, T* to, Index n) {
  std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
void fill_zero(T* to, Index n) {
  for (Index i = 0; i < n; ++i) to[i] = T(0);
}
/// to = factor * from.
template <class T>
void scale(const T* from, const T* factor, T* to, Index n) {
  using V = Vec<T>;
  for (Index i = 0; i < n; i += kLanes<V>)
    store(to + i, mul(load<V>(from + i, n - i), load<V>(factor + i, n - i)), n - i);
}

template <class T>
class Sequence {
 public:
  const CellInfo<T>& cell;
  const Sizes sizes;
  const Index I, H, G;
  const int states;
  const Activation* const activations;
  const Weights<T>* const direct;  ///< null: all weights are in the panels
  const Panels<T> panels;
  Schedule schedule;

  Sequence(const PackedView<T>& weights, Pass pass, const Call<T>& call, Arena& arena)
      : cell(cell_info<T>(weights.cell, weights.activations)),
        sizes(sizes_of(cell.traits, weights)),
        I(weights.inputs),
        H(weights.units),
        G(cell.traits.gates),
        states(cell.traits.states),
        activations(weights.activations),
        direct(weights.direct),
        panels(cell, pass, sizes, direct ? vectors(pass, arena) : const_cast<T*>(weights.data), direct),
        schedule(call, arena),
        call_(call),
        pass_(pass),
        zeros_(arena.take<T>(larger(H, sizes.hidden))) {
    for (int s = 0; s < states; ++s)
      if (schedule.masked() && call.initial_state[s]) ordered_[s] = arena.take<T>(call.batch * width(s));
  }

  /// Once, before the threads start.
  void prepare() {
    fill_zero(zeros_, larger(H, sizes.hidden));
    if (direct) pack_vectors(cell, *direct, pass_, panels);
    schedule.prepare(call_);
    for (int s = 0; s < states; ++s)
      for (Index r = 0; ordered_[s] && r < call_.batch; ++r)
        copy(call_.initial_state[s] + schedule.row(r) * width(s), ordered_[s] + r * width(s), width(s));
  }

  /// How wide a state is: the first may be narrower than the others, or wider.
  Index width(int s) const { return s == 0 ? sizes.hidden : sizes.units; }
  const T* zeros() const { return zeros_; }
  Rows<const T> initial_state(int s) const {
    const T* given = ordered_[s] ? ordered_[s] : call_.initial_state[s];
    return given ? Rows<const T>{given, width(s)} : Rows<const T>{zeros_, 0};
  }
  InputRows<T> x(Index k) const { return {schedule, call_, I, k}; }
  /// Slot `slot` of step k of a tape [B, T, slots, H]. (With time as first axis the rows of two threads would alternate
  /// in memory: writing them took 1.8 times as long on two cores.)
  template <class U>
  Rows<U> tape_slot(U* tape, Index k, int slot) const {
    return {tape + (k * tape_slots() + slot) * H, call_.time * tape_slots() * H};
  }
  /// Those of a cell's tape, with zoneout the states as they were before it, and with layer normalization the products.
  Index tape_slots() const { return product_slot(true) + (sizes.normalized ? 2 * G : 0); }
  /// How far ahead of what a cell reads or writes in a tape, and in y or dy, to fetch; 0: not at all.
  struct Ahead {
    Index slots, output;
  };
  /// A row's steps lie one after the other, but between two of them all other rows are visited, so that processors
  /// don't fetch ahead by themselves. Two steps ahead (7 % of training a GRU with 32 units and 128 rows); where that is
  /// more than a cache keeps for so long, the next block of units, `columns` away (4 % of training an LSTM with 1024
  /// units and 64 rows). Nothing of a tape that is likely to be in a cache: it costs up to 1 %.
  Ahead ahead(Index rows, Index columns, Index output_time_stride) const {
    constexpr Index kCached = 1 << 22, kStepCached = 1 << 18;
    const Index step = tape_slots() * H, bytes = step * Index(sizeof(T));
    if (call_.batch * call_.time * bytes <= kCached) return {0, 0};
    if (rows * bytes > kStepCached) return {columns, columns};
    const Index steps = pass_ == Pass::forward ? 2 : -2;
    return {steps * step, steps * output_time_stride};
  }
  /// The first slot of x.W (input), or of what U multiplies times U, by gates.
  int product_slot(bool input) const {
    return cell.traits.tape_slots + (zoneout() ? state_slots(cell.traits) : 0) + static_cast<int>(input ? 0 : G);
  }
  /// Where a step keeps state s as it was before zoneout.
  int state_slot(int s, bool mixed = false) const {
    return cell.first_state_slot() + (mixed ? state_slots(cell.traits) : 0) + state_place(cell.traits, s);
  }
  /// The factors of what gate g multiplies in row r: of x, or of what the recurrent kernel multiplies.
  const T* input_factors(Index r, int g) const { return factors(call_.input_factors, r, g, I); }
  const T* recurrent_factors(Index r, int g) const { return factors(call_.recurrent_factors, r, g, sizes.hidden); }
  /// The same of gate 0 for all rows.
  CallRows<const T> recurrent_factors() const { return {schedule, call_.recurrent_factors, G * sizes.hidden, 0, 0}; }
  bool zoneout() const { return call_.zoneout[0] || call_.zoneout[1]; }
  CallRows<const T> zoneout(int s, Index k) const {
    return {schedule, call_.zoneout[s], call_.zoneout_batch_stride[s], call_.zoneout_time_stride[s], k};
  }

 private:
  /// Where the panels of a direct call lie.
  void* vectors(Pass pass, Arena& arena) const {
    return arena.take<char>(Panels<T>(cell, pass, sizes, nullptr, true).size);
  }
  const T* factors(const T* all, Index r, int g, Index n) const {
    return all ? all + (schedule.row(r) * G + g) * n : nullptr;
  }

  const Call<T>& call_;
  const Pass pass_;
  T* const zeros_;
  T* ordered_[kMaxStates] = {};  ///< initial states in the order of the rows, where that is not the caller's
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
