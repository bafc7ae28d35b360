// The time loop, forward and backward, generic over the cell. What is multiplied where:
//
//   forward, per step      sums = b + x.W + h_prev.U, one chain; the cell turns them into h while they are in registers
//   backward, per step     the cell turns dh into the gradients of the sums, `dsums`; dh_prev = dsums.UT
//   backward, per chunk    dx = dsums.WT, dW += xT.dsums, dU += h_prevT.dsums, db += dsums, while dsums is in cache
//
// dsums is `[block][row][sum][lane]`: the layout of a panel, so that it is the packed right side of dW and dU as it
// stands. A chunk is some rows of the batch by some time steps; its size does not depend on the number of threads, each
// element of dW, dU and db has one owner, which adds over rows and steps in one fixed order: the same bits for any
// number of threads.
#pragma once

#include "panels.hpp"
#include "table.hpp"
#include "team.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// A matrix whose rows are contiguous.
template <class T>
struct Rows {
  T* data = nullptr;
  Index stride = 0;
  T* operator[](Index row) const { return data + row * stride; }
};

/// What one time step reads and writes, by row of the batch.
template <class T>
struct Step {
  Rows<const T> x;
  Rows<const T> prev[kMaxStates];  ///< the states before it
  Rows<T> next[kMaxStates];        ///< the states after it
  Rows<T> slots;                   ///< the cell's saved values; data null: not kept
  Rows<T> y;                       ///< a copy of h; data null: not wanted
};

/// Slot `slot` of step `t` of a tape [B, T, slots, H]. (With time as first axis the rows of two threads would alternate
/// in memory: writing them took 1.8 times as long on two cores.)
template <class Cell, class T>
Rows<T> tape_slot(T* tape, Index time, Index units, Index t, int slot) {
  const Index width = Cell::traits.tape_slots * units;
  return {tape + t * width + slot * units, time * width};
}
template <class Cell>
constexpr int kFirstStateSlot = Cell::traits.tape_slots - Cell::traits.states;

template <class T>
Rows<const T> initial_state(const T* given, const T* zeros, Index units) {
  return given ? Rows<const T>{given, units} : Rows<const T>{zeros, 0};
}

/// How many rows a cell works on side by side. (3 instead of 1: 5 % off an LSTM with 32 units, the rest of the step
/// included; more need more registers than there are.)
constexpr int kGroupRows = 3;

/// One vector of each of R rows.
template <class T, class V, int R>
FASTRNN_INLINE void load_rows(Group<V, R>& to, const T* from, Index stride, First<V> valid) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) to.v[r] = load<V>(from + r * stride, valid);
}
template <class T, class V, int R>
FASTRNN_INLINE void store_rows(T* to, Index stride, const Group<V, R>& from, First<V> valid) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store(to + r * stride, from.v[r], valid);
}

template <class T>
void copy(const T* from, T* to, Index n) {
  std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
void fill_zero(T* to, Index n) {
  for (Index i = 0; i < n; ++i) to[i] = T(0);
}

// ---- Forward

template <class Cell, class T>
class ForwardPass {
  static constexpr int states = Cell::traits.states;
  static constexpr bool single_stage = Cell::Stages::count == 1;
  static constexpr Index kRowsAtOnce = 16 * kTileRows;  // rows that go through all steps together: weights are reused
  static constexpr Index kHoistedRows = 8 * kTileRows;  // rows of x.W computed at once where a step has few rows

 public:
  ForwardPass(const PackedView<T>& weights, const Forward<T>& call, int threads, void* workspace)
      : call_(call),
        I_(weights.inputs),
        H_(weights.units),
        panels_(Pass::forward, I_, H_, const_cast<T*>(weights.data)),
        division_(divide(threads, call.batch, call.time, I_ + H_, Cell::traits.gates * H_, fewest_blocks<Cell, T>(H_),
                         Cell::Stages::count, sizeof(T))) {
    const Index B = call.batch;
    Arena arena(workspace);
    zeros_ = arena.take<T>(H_);
    if (!call.tape && !call.y) h_ = arena.take<T>(2 * B * H_);
    for (int s = 1; s < states; ++s)
      if (!call.tape) carried_[s] = arena.take<T>(B * H_);
    if (!call.tape && !single_stage) slots_ = arena.take<T>(B * Cell::traits.tape_slots * H_);
    const Index fewest_rows = division_.by_units ? B : B / division_.threads;
    if (hoisted_steps(fewest_rows) > 0)
      for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
        hoisted_size_[s] = kHoistedRows * decltype(stage)::accumulators * Blocks<T, 1>{H_}.padded();
        hoisted_[s] = arena.take<T>((division_.by_units ? 1 : division_.threads) * hoisted_size_[s]);
      });
    workspace_ = arena.size();
  }

  Index workspace() const { return workspace_; }

  bool run() {
    fill_zero(zeros_, H_);
    return run_team(division_.threads, call_.interrupt, [&](Team& team) {
      if (division_.by_units) {
        if (through_time({0, call_.batch}, team)) finish(part(call_.batch, team.index, team.size));
      } else {
        const Range mine = part(call_.batch, team.index, team.size);
        const Index groups = ceil_div(mine.size(), kRowsAtOnce);
        for (Index i = 0; i < groups; ++i) {
          const Range group = part(mine.size(), i, groups);
          const Range rows{mine.begin + group.begin, mine.begin + group.end};
          if (!through_time(rows, team)) return;
          finish(rows);
        }
      }
    });
  }

 private:
  Step<T> step(Index t) const {
    const Index B = call_.batch;
    Step<T> v;
    v.x = {call_.x + t * call_.x_time_stride, call_.x_batch_stride};
    const Rows<T> y{call_.y ? call_.y + t * call_.y_time_stride : nullptr, call_.y_batch_stride};
    if (call_.tape) {
      v.slots = tape_slot<Cell>(call_.tape, call_.time, H_, t, 0);
      v.y = y;
    } else if (!single_stage) {
      v.slots = {slots_, Cell::traits.tape_slots * H_};
    }
    for (int s = 0; s < states; ++s) {
      const auto state_rows = [&](Index t) -> Rows<T> {
        if (call_.tape) return tape_slot<Cell>(call_.tape, call_.time, H_, t, kFirstStateSlot<Cell> + s);
        if (s == 0 && call_.y) return {call_.y + t * call_.y_time_stride, call_.y_batch_stride};
        if (t == call_.time - 1 && call_.final_state[s]) return {call_.final_state[s], H_};
        return {s == 0 ? h_ + (t & 1) * B * H_ : carried_[s], H_};
      };
      v.next[s] = state_rows(t);
      const Rows<T> before = t > 0 ? state_rows(t - 1) : Rows<T>{};
      v.prev[s] = t > 0 ? Rows<const T>{before.data, before.stride} : initial_state(call_.initial_state[s], zeros_, H_);
    }
    return v;
  }

  /// All steps of some rows: all units, or with a team that divides the units this thread's share. False: stopped.
  bool through_time(Range rows, Team& team) {
    const Index together = hoisted_steps(rows.size());
    for (Index t = 0; t < call_.time; ++t) {
      if (together && t % together == 0) {
        const Index steps = smaller(together, call_.time - t);
        for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
          hoist<decltype(stage)>(s, t, steps, together, rows, my_blocks<decltype(stage)>(team), hoisted_here(s, team));
        });
      }
      const Step<T> v = step(t);
      bool go_on = true;
      for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
        using S = decltype(stage);
        static_assert(S::accumulators <= kTileVectors, "the sums of a unit must fit a register tile");
        if (!go_on) return;
        const Range blocks = my_blocks<S>(team);
        const T* hoisted = together ? hoisted_here(s, team) : nullptr;
        const Index first_row = together ? t % together : 0;
        for (Index block = blocks.begin; block < blocks.end; ++block) {
          UnitBlocks<S, T>{H_}.with_vectors(block, [&](auto vector, auto vectors) {
            for_row_tiles(rows, [&](Index b, Index height) {
              with_constant<kTileRows>(height, [&](auto rows_here) {
                tile<S, decltype(vector), vectors(), rows_here()>(s, v, block, b, hoisted,
                                                                  first_row + (b - rows.begin) * together, together);
              });
            });
          });
          if (!(go_on = team.proceed(rows.size() * (I_ + H_) * S::gates * kLanes<Vec<T>>))) return;
        }
        if (division_.by_units) go_on = team.barrier();
      });
      if (!go_on) return false;
    }
    return true;
  }

  template <class S>
  Range my_blocks(const Team& team) const {
    const Index blocks = UnitBlocks<S, T>{H_}.count();
    return division_.by_units ? part(blocks, team.index, team.size) : Range{0, blocks};
  }
  T* hoisted_here(int s, const Team& team) const {
    return hoisted_[s] + (division_.by_units ? 0 : team.index * hoisted_size_[s]);
  }
  /// For how many steps x.W is computed at once: a step with fewer rows than a tile is high would read all of W for
  /// little work. 0: x.W is part of each step's own product.
  Index hoisted_steps(Index rows) const {
    return rows > 0 && rows < kTileRows && call_.time > 1 ? smaller(kHoistedRows / rows, call_.time) : 0;
  }
  /// Where the sums of `block` and chunk row `row` lie.
  template <class S>
  Index hoisted_offset(Index block, Index row) const {
    const UnitBlocks<S, T> blocks{H_};
    return (blocks.first(block) * kHoistedRows + row * blocks.width(block)) * S::accumulators;
  }

  /// b + x.W of `steps` steps from t0, rows of a chunk in the order [row of the batch][step].
  template <class S>
  void hoist(int s, Index t0, Index steps, Index stride, Range rows, Range blocks, T* to) {
    for (Index block = blocks.begin; block < blocks.end; ++block) {
      UnitBlocks<S, T>{H_}.with_vectors(block, [&](auto vector, auto vectors) {
        using V = decltype(vector);
        constexpr int N = vectors(), width = N * kLanes<V>;
        for (Index b = rows.begin; b < rows.end; ++b) {
          const Run<T> x{call_.x + t0 * call_.x_time_stride + b * call_.x_batch_stride, call_.x_time_stride, I_};
          for_row_tiles({0, steps}, [&](Index first, Index height) {
            T* row[kTileRows];
            row_pointers(row, to + hoisted_offset<S>(block, (b - rows.begin) * stride + first),
                         S::accumulators * width);
            for (Index m = 0; m < height; ++m) copy(bias_panel<S>(s, block), row[m], S::accumulators * width);
            multiply_runs<V, S::gates * N>(&x, 1, first, height, kernel_panel<S>(s, block), row, S::gates * width,
                                           true);
          });
        }
      });
    }
  }

  template <class S>
  FASTRNN_INLINE const T* bias_panel(int s, Index block) const {
    return panels_.bias[s] + UnitBlocks<S, T>{H_}.first(block) * S::accumulators;
  }
  template <class S>
  FASTRNN_INLINE const T* kernel_panel(int s, Index block) const {
    return panels_.kernel[s] + UnitBlocks<S, T>{H_}.first(block) * I_ * S::gates;
  }

  /// Rows b … b + M - 1 of one step, the units of one block.
  template <class S, class V, int N, int M>
  void tile(int s, const Step<T>& v, Index block, Index b, const T* hoisted, Index hoisted_row, Index hoisted_stride) {
    constexpr int L = kLanes<V>;
    V sums[M][S::accumulators * N];
    const T *row[M], *column[S::gates * N];
    if (hoisted) {
      row_pointers(row, hoisted + hoisted_offset<S>(block, hoisted_row), hoisted_stride * S::accumulators * N * L);
      for (int m = 0; m < M; ++m)
        for (int i = 0; i < S::accumulators * N; ++i) sums[m][i] = load<V>(row[m] + i * L);
    } else {
      for (int i = 0; i < S::accumulators * N; ++i) {
        const V bias = load<V>(bias_panel<S>(s, block) + i * L);
        for (int m = 0; m < M; ++m) sums[m][i] = bias;
      }
      row_pointers(row, v.x[b], v.x.stride);
      row_pointers(column, kernel_panel<S>(s, block), L);
      multiply_add<Same>(sums, row, 1, column, S::gates * N * L, I_);
    }
    const Index first = UnitBlocks<S, T>{H_}.first(block);
    if constexpr (S::operand == kHidden)
      row_pointers(row, v.prev[0][b], v.prev[0].stride);
    else
      row_pointers<const T>(row, v.slots[b] + S::operand * H_, v.slots.stride);
    row_pointers<const T>(column, panels_.recurrent[s] + first * H_ * S::gates, L);
    multiply_add<RecurrentSum<S, N>>(sums, row, 1, column, S::gates * N * L, H_);
    finish_rows<S, V, N, M, 0>(v, b, first, sums);
  }

  /// The cell, on rows m … M - 1 of a tile, a few of them at a time.
  template <class S, class V, int N, int M, int m>
  FASTRNN_INLINE void finish_rows(const Step<T>& v, Index b, Index first,
                                  const V (&sums)[M][S::accumulators * N]) const {
    if constexpr (m < M) {
      constexpr int groups = (M - m + kGroupRows - 1) / kGroupRows, R = (M - m + groups - 1) / groups;
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) finish_group<S, V, N, M, m, R>(v, b + m, n, first + n * kLanes<V>, sums);
      finish_rows<S, V, N, M, m + R>(v, b, first, sums);
    }
  }

  /// The cell, on vector n of the units of R rows.
  template <class S, class V, int N, int M, int m, int R>
  FASTRNN_INLINE void finish_group(const Step<T>& v, Index b, int n, Index unit,
                                   const V (&sums)[M][S::accumulators * N]) const {
    const First<V> valid = H_ - unit;
    Group<V, R> a[S::accumulators], slot[Cell::traits.tape_slots], prev[states], next[states];
    for (int i = 0; i < S::accumulators; ++i)
      for (int r = 0; r < R; ++r) a[i].v[r] = sums[m + r][i * N + n];
    for (int i = 0; i < S::first_slot; ++i) load_rows(slot[i], v.slots[b] + i * H_ + unit, v.slots.stride, valid);
    for (int i = 0; i < states; ++i) load_rows(prev[i], v.prev[i][b] + unit, v.prev[i].stride, valid);
    S::forward(a, slot, prev, next);
    if (v.slots.data)
      for (int i = S::first_slot; i < S::first_slot + S::slots; ++i)
        store_rows(v.slots[b] + i * H_ + unit, v.slots.stride, slot[i], valid);
    if constexpr (S::first_slot + S::slots == kFirstStateSlot<Cell>) {  // the last stage
      for (int i = 0; i < states; ++i) store_rows(v.next[i][b] + unit, v.next[i].stride, next[i], valid);
      if (v.y.data) store_rows(v.y[b] + unit, v.y.stride, next[0], valid);
    }
  }

  /// Copy the final states that were not written in place.
  void finish(Range rows) {
    for (int s = 0; s < states; ++s) {
      T* to = call_.final_state[s];
      if (!to) continue;
      Rows<const T> from = initial_state(call_.initial_state[s], zeros_, H_);
      if (call_.time > 0) {
        const Rows<T> last = step(call_.time - 1).next[s];
        from = {last.data, last.stride};
      }
      if (from.data == to) continue;
      for (Index b = rows.begin; b < rows.end; ++b) copy(from[b], to + b * H_, H_);
    }
  }

  const Forward<T>& call_;
  const Index I_, H_;
  const Panels<Cell, T> panels_;
  const Division division_;
  Index workspace_;
  T* zeros_;
  T* h_ = nullptr;               ///< h of even and odd steps, where it is kept nowhere else
  T* carried_[kMaxStates] = {};  ///< the other states
  T* slots_ = nullptr;
  T* hoisted_[Cell::Stages::count] = {};
  Index hoisted_size_[Cell::Stages::count] = {};
};

// ---- Backward

template <class T>
struct WeightGradients {
  T* kernel;
  T* recurrent;
  T* bias;
};

/// Carries the gradient of some rows of the batch back through all time steps.
template <class Cell, class T>
class BackwardRows {
  static constexpr int states = Cell::traits.states;
  static constexpr int stages = Cell::Stages::count;
  static constexpr int saved = kFirstStateSlot<Cell>;

 public:
  /// For at most `rows` rows at once, in chunks of so many steps.
  BackwardRows(const PackedView<T>& weights, const Backward<T>& call, Index rows, Index chunk_steps, const T* zeros,
               Arena& arena)
      : call_(call),
        I_(weights.inputs),
        H_(weights.units),
        G_(Cell::traits.gates),
        panels_(Pass::backward, I_, H_, const_cast<T*>(weights.data)),
        chunk_steps_(chunk_steps),
        chunk_rows_(rows * chunk_steps),
        d_stride_(ceil_div(H_, kLanes<Vec<T>>) * kLanes<Vec<T>>),
        zeros_(zeros) {
    for (int s = 0; s < states; ++s) d_[s] = arena.take<T>(rows * d_stride_);
    if (stages > 1) doperand_ = arena.take<T>(rows * d_stride_);
    x_columns_ = arena.take<T>(ceil_div(I_, kTileRows) * kTileRows * chunk_rows_);
    for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
      dsums_[s] = arena.take<T>(chunk_rows_ * decltype(stage)::accumulators * Blocks<T, 1>{H_}.padded());
      operand_columns_[s] = arena.take<T>(ceil_div(H_, kTileRows) * kTileRows * chunk_rows_);
      input_runs_[s].run = arena.take<Run<T>>(most_runs<decltype(stage)>());
      recurrent_runs_[s].run = arena.take<Run<T>>(most_runs<decltype(stage)>());
      input_runs_[s].count = arena.take<Index>(1);
      recurrent_runs_[s].count = arena.take<Index>(1);
    });
  }

  /// The rows' dx and dinitial_state, and their share of the weights' gradients: set, or added if `add`. The team
  /// divides the rows or the units. False: stopped.
  bool run(Range rows, const WeightGradients<T>& gradients, bool add, bool by_units, Team& team) {
    gradients_ = gradients;
    by_units_ = by_units;
    const Range mine = part(rows.size(), team.index, team.size);
    if (team.index == 0)
      for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
        list_runs<decltype(stage)>(s, true, input_runs_[s]);
        list_runs<decltype(stage)>(s, false, recurrent_runs_[s]);
      });
    for (int s = 0; s < states; ++s)
      for (Index b = mine.begin; b < mine.end; ++b) {
        const T* from = call_.dfinal_state[s];
        copy(from ? from + (rows.begin + b) * H_ : zeros_, d_[s] + b * d_stride_, H_);
      }
    if (!team.barrier()) return false;
    for (Index end = call_.time; end > 0; end -= smaller(chunk_steps_, end)) {
      const Index steps = smaller(chunk_steps_, end);
      const Chunk chunk{end - steps, steps, rows, add || end < call_.time};
      const bool went_on = by_units ? through_time({0, rows.size()}, chunk, team) : through_time(mine, chunk, team);
      if (!went_on || !team.barrier()) return false;
      if (!reduce(chunk, team) || !team.barrier()) return false;
    }
    for (int s = 0; s < states; ++s)
      for (Index b = mine.begin; call_.dinitial_state[s] && b < mine.end; ++b)
        copy(d_[s] + b * d_stride_, call_.dinitial_state[s] + (rows.begin + b) * H_, H_);
    return team.barrier();
  }

 private:
  /// A chunk: steps [t0, t0 + steps) of the rows of the batch in `rows`; its row number r is (t - t0) * rows.size() +
  /// b.
  struct Chunk {
    Index t0, steps;
    Range rows;
    bool add;  ///< to the weights' gradients; the first chunk sets them
    Index size() const { return steps * rows.size(); }
    Index row(Index t, Index b) const { return (t - t0) * rows.size() + b; }
  };

  /// Back through the steps of a chunk: dsums of all its rows, d of the states before it.
  bool through_time(Range rows, const Chunk& chunk, Team& team) {
    for (Index t = chunk.t0 + chunk.steps - 1; t >= chunk.t0; --t) {
      bool go_on = true;
      for_each_stage_reversed(typename Cell::Stages{}, [&](auto stage, int s) {
        using S = decltype(stage);
        if (!go_on) return;
        const Range blocks = divided(UnitBlocks<S, T>{H_}.count(), team);
        for (Index block = blocks.begin; block < blocks.end; ++block)
          UnitBlocks<S, T>{H_}.with_vectors(block, [&](auto vector, auto vectors) {
            cell_backward<S, decltype(vector), vectors()>(s, chunk, t, rows, block);
          });
        if (by_units_ && !(go_on = team.barrier())) return;
        const Range outputs = divided(OutputBlocks<T>{H_}.count(), team);
        T* to = S::operand == kHidden ? d_[0] : doperand_;  // h_prev on top of what is in d; another operand alone
        for (Index block = outputs.begin; block < outputs.end; ++block) {
          const OutputBlocks<T> columns{H_};
          const Index first = columns.first(block);
          columns.with_vectors(block, [&](auto vector, auto vectors) {
            for_row_tiles(rows, [&](Index b, Index height) {
              T* row[kTileRows];
              row_pointers(row, to + b * d_stride_ + first, d_stride_);
              multiply_runs<decltype(vector), vectors()>(
                  recurrent_runs_[s].run, *recurrent_runs_[s].count, chunk.row(t, b), height,
                  panels_.recurrent[s] + first * S::gates * H_, row, columns.valid(block), S::operand == kHidden);
            });
          });
          if (!(go_on = team.proceed(rows.size() * S::gates * H_ * columns.width(block)))) return;
        }
        if (by_units_) go_on = team.barrier();
      });
      if (!go_on) return false;
    }
    // The left sides of dW and dU: x and the operands of the steps, by columns.
    const Range mine = part(chunk.size(), by_units_ ? team.index : 0, by_units_ ? team.size : 1);
    for (Index t = chunk.t0; t < chunk.t0 + chunk.steps; ++t)
      for (Index b = rows.begin; b < rows.end; ++b) {
        const Index r = chunk.row(t, b);
        if (by_units_ && (r < mine.begin || r >= mine.end)) continue;
        gather_columns(x_row(t, chunk.rows.begin + b), I_, r, x_columns_);
        for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
          gather_columns(operand<decltype(stage)>(t)[chunk.rows.begin + b], H_, r, operand_columns_[s]);
        });
      }
    return true;
  }

  Range divided(Index n, const Team& team) const { return by_units_ ? part(n, team.index, team.size) : Range{0, n}; }
  const T* x_row(Index t, Index b) const { return call_.x + t * call_.x_time_stride + b * call_.x_batch_stride; }
  Rows<const T> slot(Index t, int i) const { return tape_slot<Cell>(call_.tape, call_.time, H_, t, i); }
  Rows<const T> state_before(Index t, int s) const {
    return t > 0 ? slot(t - 1, saved + s) : initial_state(call_.initial_state[s], zeros_, H_);
  }
  template <class S>
  Rows<const T> operand(Index t) const {
    if constexpr (S::operand == kHidden)
      return state_before(t, 0);
    else
      return slot(t, S::operand);
  }
  /// The gradients of the sums of a block, from chunk row r on; `width`: elements per row.
  template <class S>
  FASTRNN_INLINE T* dsums(int s, Index block, Index r) const {
    const UnitBlocks<S, T> blocks{H_};
    return dsums_[s] + (blocks.first(block) * chunk_rows_ + r * blocks.width(block)) * S::accumulators;
  }

  /// The cell's gradient at step t, for one block of units.
  template <class S, class V, int N>
  void cell_backward(int s, const Chunk& chunk, Index t, Range rows, Index block) {
    const Rows<const T> now = slot(t, 0);
    Rows<const T> before[states];
    for (int i = 0; i < states; ++i) before[i] = state_before(t, i);
    const Rows<const T> dy{call_.dy + t * call_.dy_time_stride, call_.dy_batch_stride};
    for (int n = 0; n < N; ++n) {
      const Index unit = UnitBlocks<S, T>{H_}.first(block) + n * kLanes<V>;
      const First<V> valid = H_ - unit;
      T* out = dsums<S>(s, block, chunk.row(t, rows.begin)) + n * kLanes<V>;
      for (Index b = rows.begin; b < rows.end; ++b, out += S::accumulators * N * kLanes<V>) {
        const Index row = chunk.rows.begin + b;
        V saved_value[Cell::traits.tape_slots], prev[states], next[states], d[states], da[S::accumulators];
        for (int i = 0; i < saved; ++i) saved_value[i] = load<V>(now[row] + i * H_ + unit, valid);
        for (int i = 0; i < states; ++i) {
          prev[i] = load<V>(before[i][row] + unit, valid);
          next[i] = load<V>(now[row] + (saved + i) * H_ + unit, valid);
          d[i] = load<V>(d_[i] + b * d_stride_ + unit, valid);
        }
        if (call_.dy) d[0] = add(d[0], load<V>(dy[row] + unit, valid));
        const V doperand = s + 1 < stages ? load<V>(doperand_ + b * d_stride_ + unit, valid) : zero<V>();
        S::backward(saved_value, prev, next, d, doperand, da);
        for (int i = 0; i < S::accumulators; ++i) store(out + i * N * kLanes<V>, da[i]);
        if (s == 0)
          for (int i = 0; i < states; ++i) store(d_[i] + b * d_stride_ + unit, d[i], valid);
      }
    }
  }

  /// The gradients of the sums as left side of a product with WT (input) or UT: per block of units and gate, the units;
  /// gates whose units lie next to each other in one run.
  struct RunList {
    Run<T>* run;  ///< in the workspace, where the threads of a team share it
    Index* count;
  };
  template <class S>
  Index most_runs() const {
    return UnitBlocks<S, T>{H_}.count() * S::gates;
  }
  template <class S>
  void list_runs(int s, bool input, const RunList& list) const {
    const UnitBlocks<S, T> blocks{H_};
    Index count = 0;
    for (Index block = 0; block < blocks.count(); ++block) {
      const Index width = blocks.width(block);
      for (int g = 0; g < S::gates; ++g) {
        const T* const first = dsums<S>(s, block, 0) + (input ? g : S::recurrent_sum(g)) * width;
        Run<T>* const last = list.run + count - 1;
        if (g > 0 && last->first + last->depth == first)
          last->depth += blocks.valid(block);
        else
          list.run[count++] = {first, S::accumulators * width, blocks.valid(block)};
      }
    }
    *list.count = count;
  }

  /// Row r of a matrix [chunk_rows, n] into columns, kTileRows at a time: `[n / kTileRows][chunk row][kTileRows]`.
  void gather_columns(const T* row, Index n, Index r, T* columns) const {
    T* to = columns + r * kTileRows;
    for (Index i = 0; i < n; i += kTileRows, to += chunk_rows_ * kTileRows) {
      if (n - i >= kTileRows)
        for (int j = 0; j < kTileRows; ++j) to[j] = row[i + j];
      else
        for (Index j = 0; j < n - i; ++j) to[j] = row[i + j];
    }
  }

  /// From the dsums of a whole chunk: dx, and its share of dW, dU and db.
  bool reduce(const Chunk& chunk, Team& team) {
    if (call_.dx && !input_gradient(chunk, team)) return false;
    bool go_on = true;
    for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
      using S = decltype(stage);
      go_on = go_on && weight_gradient<S>(s, true, chunk, team) && weight_gradient<S>(s, false, chunk, team);
      const Range blocks = part(UnitBlocks<S, T>{H_}.count(), team.index, team.size);
      for (Index block = blocks.begin; gradients_.bias && block < blocks.end; ++block)
        UnitBlocks<S, T>{H_}.with_vectors(
            block, [&](auto vector, auto vectors) { bias_gradient<S, decltype(vector), vectors()>(s, chunk, block); });
    });
    return go_on;
  }

  bool input_gradient(const Chunk& chunk, Team& team) {
    const Range rows = part(chunk.size(), team.index, team.size);
    const OutputBlocks<T> outputs{I_};
    for (Index block = 0; block < outputs.count(); ++block) {
      const Index first = outputs.first(block);
      for_row_tiles(rows, [&](Index r, Index height) {
        T* row[kTileRows];
        for (Index m = 0; m < height; ++m) {
          const Index t = chunk.t0 + (r + m) / chunk.rows.size(), b = chunk.rows.begin + (r + m) % chunk.rows.size();
          row[m] = call_.dx + t * call_.dx_time_stride + b * call_.dx_batch_stride + first;
        }
        for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
          using S = decltype(stage);
          outputs.with_vectors(block, [&](auto vector, auto vectors) {
            multiply_runs<decltype(vector), vectors()>(input_runs_[s].run, *input_runs_[s].count, r, height,
                                                       panels_.kernel[s] + first * S::gates * H_, row,
                                                       outputs.valid(block), s > 0);
          });
        });
      });
      if (!team.proceed(rows.size() * outputs.width(block) * G_ * H_)) return false;
    }
    return true;
  }

  /// dW += xT.dsums (input) or dU += operandT.dsums.
  template <class S>
  bool weight_gradient(int s, bool input, const Chunk& chunk, Team& team) {
    const Index depth = input ? I_ : H_;
    const UnitBlocks<S, T> blocks{H_};
    const Index tiles = ceil_div(depth, kTileRows);
    const Range mine = part(blocks.count() * tiles, team.index, team.size);
    for (Index item = mine.begin; item < mine.end;) {
      const Index block = item / tiles, end = smaller(mine.end, (block + 1) * tiles);
      const Index vectors = blocks.used(block), lanes = blocks.width(block) / vectors;
      OuterProduct<T> product;
      product.right = dsums<S>(s, block, 0);
      product.right_step = S::accumulators * blocks.width(block);
      product.depth = chunk.size();
      product.to_stride = G_ * H_;
      product.vectors = S::gates * vectors;
      product.add = chunk.add;
      Index v = 0;
      for (int g = 0; g < S::gates; ++g)
        for (Index n = 0; n < vectors; ++n, ++v) {
          const Index unit = blocks.first(block) + n * lanes;
          product.right_offset[v] = ((input ? g : S::recurrent_sum(g)) * vectors + n) * lanes;
          product.to_offset[v] = (S::first_gate + g) * H_ + unit;
          product.lanes[v] = H_ - unit;
        }
      for (; item < end; ++item) {
        const Index i = (item - block * tiles) * kTileRows;
        product.left = (input ? x_columns_ : operand_columns_[s]) + i * chunk_rows_;
        product.to = (input ? gradients_.kernel : gradients_.recurrent) + i * G_ * H_;
        product.rows = smaller(kTileRows, depth - i);
        if (blocks.is_half(block))
          product.template run<HalfVec<T>>();
        else
          product.template run<Vec<T>>();
        if (!team.proceed(chunk.size() * kTileRows * S::gates * blocks.width(block))) return false;
      }
    }
    return true;
  }

  template <class S, class V, int N>
  void bias_gradient(int s, const Chunk& chunk, Index block) const {
    V total[S::accumulators * N];
    for (V& sum : total) sum = zero<V>();
    const T* row = dsums<S>(s, block, 0);
    for (Index r = 0; r < chunk.size(); ++r)
      for (V& sum : total) {
        sum = add(sum, load<V>(row));
        row += kLanes<V>;
      }
    const Index first = UnitBlocks<S, T>{H_}.first(block);
    for (int bias_row = 0; bias_row < Cell::traits.bias_rows; ++bias_row)
      for (int g = 0; g < S::gates; ++g)
        for (int n = 0; n < N; ++n) {
          const Index unit = first + n * kLanes<V>;
          T* to = gradients_.bias + (bias_row * G_ + S::first_gate + g) * H_ + unit;
          const V sum = total[(bias_row == 0 ? g : S::recurrent_sum(g)) * N + n];
          store(to, chunk.add ? fastrnn::FASTRNN_ISA::add(load<V>(to, H_ - unit), sum) : sum, H_ - unit);
        }
  }

  const Backward<T>& call_;
  const Index I_, H_, G_;
  const Panels<Cell, T> panels_;
  const Index chunk_steps_, chunk_rows_;
  const Index d_stride_;  ///< padded, so that the rows of two threads share no cache line
  const T* zeros_;
  T* d_[kMaxStates];       ///< gradients of the states, [row, H]
  T* doperand_ = nullptr;  ///< gradient of what a second stage's U multiplies
  T* x_columns_;
  T* operand_columns_[stages];
  T* dsums_[stages];
  RunList input_runs_[stages];
  RunList recurrent_runs_[stages];
  WeightGradients<T> gradients_;
  bool by_units_;
};

/// The whole batch. Where there are enough rows it is cut into parts, each with weight gradients of its own, which are
/// added in order at the end: no thread waits for another. (On the small layers of the benchmarks that halved the time
/// on two cores.) Otherwise all threads work on all rows together. Which, and into how many parts, depends on the sizes
/// alone.
template <class Cell, class T>
class BackwardPass {
  // Rows of a part at least; more of them where recurrent weights larger than kCached are read for every step (3 % of a
  // GRU with 256 units) and there are enough for four parts.
  static constexpr Index kPartRows = 8, kLargePartRows = 16, kMostParts = 32, kCached = Index(1) << 19;
  static constexpr Index kMostBytes = Index(64) << 20;  // of all parts' weight gradients
  static constexpr Index kRowsAtOnce = 256;             // bounds the workspace
  // Rows times steps of a chunk: amortises loading and storing dW and dU; more of them where all threads share those.
  static constexpr Index kChunkRows = 256, kSharedChunkRows = 512;

 public:
  BackwardPass(const PackedView<T>& weights, const Backward<T>& call, int threads, void* workspace)
      : weights_(weights), call_(call) {
    const Index I = weights.inputs, H = weights.units, columns = Cell::traits.gates * H;
    sizes_[0] = I * columns;
    sizes_[1] = H * columns;
    sizes_[2] = call.dbias ? Cell::traits.bias_rows * columns : 0;
    const Index elements = sizes_[0] + sizes_[1] + sizes_[2];
    const bool large = H * columns * Index(sizeof(T)) > kCached && call.batch >= 4 * kLargePartRows;
    parts_ = smaller(call.batch / (large ? kLargePartRows : kPartRows), kMostParts);
    if (parts_ < 2 || call.time == 0 || parts_ * elements > kMostBytes / Index(sizeof(T))) parts_ = 1;
    const Index part_rows = ceil_div(call.batch, parts_);
    rows_ = larger(1, ceil_div(part_rows, larger(1, ceil_div(part_rows, kRowsAtOnce))));
    steps_ = larger(1, smaller((parts_ > 1 ? kChunkRows : kSharedChunkRows) / rows_, call.time));
    division_ = parts_ > 1 ? Division{static_cast<int>(smaller(threads, parts_)), false}
                           : divide(threads, smaller(rows_, call.batch), call.time, I + H, columns,
                                    OutputBlocks<T>{H}.count(), 2 * Cell::Stages::count, sizeof(T));

    Arena arena(workspace);
    zeros_ = arena.take<T>(H);
    partial_ = arena.take<T>((parts_ - 1) * elements);
    Arena counter(nullptr);
    BackwardRows<Cell, T>(weights, call, rows_, steps_, zeros_, counter);
    bytes_per_worker_ = counter.size();
    workers_ = arena.take<char>(bytes_per_worker_ * (parts_ > 1 ? division_.threads : 1));
    workspace_ = arena.size();
  }

  Index workspace() const { return workspace_; }

  bool run() {
    fill_zero(zeros_, weights_.units);
    T* const totals[] = {call_.dkernel, call_.drecurrent_kernel, call_.dbias};
    if (call_.batch == 0 || call_.time == 0)
      for (int i = 0; i < 3; ++i) fill_zero(totals[i], sizes_[i]);
    return run_team(division_.threads, call_.interrupt, [&](Team& team) {
      Team alone = team.alone();
      Arena arena(workers_ + (parts_ > 1 ? team.index * bytes_per_worker_ : 0));
      BackwardRows<Cell, T> worker(weights_, call_, rows_, steps_, zeros_, arena);
      const Range mine = parts_ > 1 ? part(parts_, team.index, team.size) : Range{0, 1};
      for (Index i = mine.begin; i < mine.end; ++i) {
        const Range rows = part(call_.batch, i, parts_);
        const Index groups = ceil_div(rows.size(), rows_);
        for (Index g = 0; g < groups; ++g) {
          const Range group = part(rows.size(), g, groups);
          if (!worker.run({rows.begin + group.begin, rows.begin + group.end}, gradients_of(i), g > 0,
                          division_.by_units, parts_ > 1 ? alone : team))
            return;
        }
      }
      if (!team.barrier()) return;
      for (Index i = 1; i < parts_; ++i) {
        const WeightGradients<T> from = gradients_of(i);
        const T* const terms[] = {from.kernel, from.recurrent, from.bias};
        for (int j = 0; j < 3; ++j) {
          const Range share = part(sizes_[j], team.index, team.size);
          for (Index k = share.begin; k < share.end; ++k) totals[j][k] += terms[j][k];
        }
      }
    });
  }

 private:
  WeightGradients<T> gradients_of(Index part) const {
    if (part == 0) return {call_.dkernel, call_.drecurrent_kernel, call_.dbias};
    T* first = partial_ + (part - 1) * (sizes_[0] + sizes_[1] + sizes_[2]);
    return {first, first + sizes_[0], call_.dbias ? first + sizes_[0] + sizes_[1] : nullptr};
  }

  const PackedView<T>& weights_;
  const Backward<T>& call_;
  Index sizes_[3];  ///< elements of the gradients of W, U, b
  Index parts_;
  Index rows_, steps_;  ///< at once, of a part
  Division division_;
  Index workspace_, bytes_per_worker_;
  T* zeros_;
  T* partial_;
  char* workers_;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
