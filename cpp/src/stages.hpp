// The cells as the time loops see them: numbers, and functions that are compiled from a cell's struct (cells/cell.hpp).
// All else, the loops, products and panels, is compiled once for all cells.
#pragma once

#include "cells/list.hpp"
#include "schedule.hpp"
#include "table.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// How wide x, c (and all else of a unit), h and state 0 are: I, H, H or what a projection makes of it, and that or, of
/// a cell that has more than h there, several H.
struct Sizes {
  Index inputs, units, outputs, hidden;
  bool normalized;  ///< whether there is layer normalization of the products
};
template <class Weights>
Sizes sizes_of(const CellTraits& traits, const Weights& w) {
  const Index outputs = w.outputs > 0 ? w.outputs : w.units;
  return {w.inputs, w.units, outputs, traits.hidden > 1 ? traits.hidden * w.units : outputs,
          w.layer_norm.data != nullptr};
}
/// The slot of state s, of those of all states.
constexpr int state_place(const CellTraits& traits, int s) { return s == 0 ? 0 : s + traits.hidden - 1; }
constexpr int state_slots(const CellTraits& traits) { return state_place(traits, traits.states); }

/// What the sums of some rows are made of.
template <class T>
struct SumInputs {
  const T* hoisted;  ///< null, or sums of row 0 so far instead of the bias, the other rows hoisted_stride further on
  Index hoisted_stride, hoisted_block_stride;
  /// Null, or where, beside the sums of one row, b + x.W of at most kStepsAhead steps that are summed next grows: by
  /// what their x in [ahead_depth.begin, ahead_depth.end) add to it.
  T* ahead;
  Range ahead_depth;
  Index ahead_tiles;  ///< of kTileAhead of those steps each
  const T* bias;
  const T* const* x;    ///< by row; with `ahead`, of the steps
  Index x_gate_stride;  ///< from the left side of one gate to that of the next, where they have their own
  const T* kernel;
  Index inputs;
  const T* const* operand;  ///< by row
  Index operand_gate_stride;
  const T* recurrent;
  Index units;
  Range of_inputs, of_units;                 ///< the rows of W and U, and of what they multiply, that are summed now
  Following<T> next_kernel, next_recurrent;  ///< what is fetched during x.W, and during operand.U

  /// To the next block of as many units, `width`, or to the one before it: `direction` is 1 or -1.
  FASTRNN_INLINE void next_block(Index accumulators, Index gates, Index width, Index direction) {
    if (hoisted) hoisted += direction * hoisted_block_stride;
    if (ahead) ahead += direction * hoisted_block_stride;
    width *= direction;
    bias += accumulators * width;
    kernel += inputs * gates * width;
    recurrent += units * gates * width;
  }
};

/// Some rows and a block of units. (Apart from what stays the same for a whole step: what was just written field by
/// field is slow to copy as a whole.)
struct Patch {
  Index row, rows, unit;
  Index vectors;      ///< so many whole vectors of units,
  bool half;          ///< or one half vector,
  Index blocks;       ///< in each of so many blocks, one after the other,
  bool back = false;  ///< or one before the other
};

/// One step as a cell's forward sees it.
template <class T>
struct CellRows {
  Index units, outputs;  ///< of the whole layer
  const T* parameters;   ///< of all units, one vector of them parameter_stride after the other
  Index parameter_stride;
  const Activation* activations;
  Rows<const T> prev[kMaxStates];    ///< the states before the step
  Rows<T> next[kMaxStates];          ///< the states after it
  Rows<T> slots;                     ///< the cell's saved values; data null: not kept
  CallRows<T> y;                     ///< a copy of h; false: not wanted
  Index slots_ahead, y_ahead;        ///< how far ahead of a row's slots and y to fetch; 0: not worth it
  CallRows<const T> factors;         ///< of h_prev, for a cell that multiplies it by itself; false: none
  const CallRows<const T>* zoneout;  ///< of each state; null: none of any
};

/// The same for backward.
template <class T>
struct CellRowsBack {
  Index units, outputs;
  const T* parameters;
  Index parameter_stride;
  const Activation* activations;
  Rows<const T> slots, prev[kMaxStates];
  CallRows<const T> dy, factors;     ///< false: none
  Index slots_ahead, dy_ahead;       ///< as in CellRows; negative where steps are fetched
  const CallRows<const T>* zoneout;  ///< of each state; null: none of any
  Rows<T> d[kMaxStates];
  Rows<const T> doperand;
  Rows<const T> dc;  ///< of a cell that normalizes c: what flows back through that, before zoneout
  Index d_row;       ///< row number of the first row at hand in d, doperand and dc
  Index sums;        ///< per unit and row, of which the cell writes the first ones
};

constexpr bool concerns(unsigned states, int s) { return (states >> s) & 1; }

/// A stage of a cell. See cells/cell.hpp for the numbers.
template <class T>
struct StageInfo {
  int first_gate, gates, apart, accumulators, operand, parameters, first_slot, slots;
  bool projects, normalizes;
  int vectors;  ///< per sum in a block of units: as many as a register tile has room for
  /// The sums of some rows and blocks, then the cell on them while they are in registers; null: not for this cell.
  void (*fused)(SumInputs<T>& from, const CellRows<T>& at, const Patch& patch);
  /// The cell on finished sums [row][sum][vector] of a tile of one block, which begins at row `first` of those at hand.
  void (*forward)(const CellRows<T>& at, const Patch& patch, Index first, Index rows, const T* sums);
  /// Writes dsums [row][sum][vector].
  void (*backward)(const CellRowsBack<T>& at, const Patch& patch, T* dsums);

  int recurrent_sum(int g) const { return g == apart ? gates : g; }
  bool sees_x() const { return !projects && !normalizes; }
  /// Whether its products are normalized before the cell sees them.
  bool normalized(const Sizes& n) const { return n.normalized && sees_x(); }
  /// Per unit, in what backward writes: the gradients of the sums and of the parameters, or what the stage before is
  /// left; then, with normalization, those of x.W, of operand.U, of the gains of the one and of the other, by gates.
  int sums(const Sizes& n) const { return cell_sums() + (normalized(n) ? 4 * gates : 0); }
  int cell_sums() const { return accumulators + parameters + normalizes; }
  /// Which of them is the gradient of x.W (input) or operand.U.
  int product_sum(bool input, int g, const Sizes& n) const {
    return normalized(n) ? cell_sums() + (input ? g : gates + g) : input ? g : recurrent_sum(g);
  }
  int gain_sum(bool input, int g) const { return cell_sums() + (input ? 2 : 3) * gates + g; }
  Index units(const Sizes& n) const { return projects ? n.outputs : n.units; }
  Blocks<T> blocks(const Sizes& n) const { return {units(n), vectors}; }
  /// How many values per row W multiplies, and U.
  Index inputs(const Sizes& n) const { return sees_x() ? n.inputs : 0; }
  Index depth(const Sizes& n) const { return operand == kNothing ? 0 : operand == kHidden ? n.hidden : n.units; }
};

constexpr int kMaxStages = 3;

template <class T>
struct CellInfo {
  CellTraits traits;
  int stages;
  StageInfo<T> stage[kMaxStages];

  int first_state_slot() const { return traits.tape_slots - state_slots(traits); }
  /// Into how many blocks the stage with the widest blocks cuts the units.
  Index fewest_blocks(const Sizes& n) const {
    Index fewest = n.units;
    for (int s = 0; s < stages; ++s) fewest = smaller(fewest, stage[s].blocks(n).count());
    return fewest;
  }
};

// ---- Sums

/// Which sum a vector of a panel [k][gate][N] is added to, for multiply_add; N: vectors per gate in the block at hand.
/// `gates_apart`: whether each gate has a left side of its own.
template <int gates, int apart, int N, bool recurrent, bool gates_apart>
struct GateSum {
  static constexpr int of(int v) { return (recurrent && v / N == apart ? gates : v / N) * N + v % N; }
  static constexpr int left(int v) { return gates_apart ? v / N : 0; }
};

/// Of how many steps b + x.W grows beside the sums of one row: tiles with as many rows as there are registers for.
/// (With fewer tiles W is read more often, and drives U from its cache.)
constexpr int kTileAhead = kTileRows - 1, kTilesAhead = 4, kStepsAhead = kTilesAhead * kTileAhead;
/// Tiles of few rows read W so often that it takes longer: up to 8 % with the 16 registers of AVX2.
constexpr bool kSumsAhead = kTileAhead >= 4;

/// acc += operand.U of one row, and between that what SumInputs says of `ahead`: the one waits for weights from a
/// cache, the other for the multipliers.
template <int gates, int apart, class V, int N, class T, int A>
__attribute__((noinline)) void tile_sums_ahead(V (&acc)[A], const SumInputs<T>& from) {
  constexpr int L = kLanes<V>, columns = gates * N, rows = kTileAhead;
  const T *operand = from.operand[0], *recurrent = from.recurrent;
  V own[A];
  for (int i = 0; i < A; ++i) own[i] = acc[i];
  const auto add_operand = [&](int k) FASTRNN_ALWAYS {
    const V left = broadcast<V>(operand[k]);
#pragma GCC unroll 8
    for (int v = 0; v < columns; ++v) {
      V& sum = own[GateSum<gates, apart, N, true, false>::of(v)];
      sum = fma(left, load<V>(recurrent + (k * columns + v) * L), sum);
    }
  };
  const Index begin = from.ahead_depth.begin, depth = from.ahead_depth.size();
  const Index both = smaller(depth, from.units / (from.ahead_tiles * rows));
  for (Index tile = 0; tile < from.ahead_tiles; ++tile) {
    const T *x[rows], *kernel = from.kernel + begin * columns * L;
    T* const to = from.ahead + tile * rows * A * L;
    V next[rows][columns];
    for (int m = 0; m < rows; ++m) {
      x[m] = from.x[tile * rows + m] + begin;
      const T* const at = begin == 0 ? from.bias : to + m * A * L;
      for (int v = 0; v < columns; ++v) next[m][v] = load<V>(at + v * L);
    }
    const auto add_x = [&](Index k, int m, const V(&right)[columns]) FASTRNN_ALWAYS {
      const V left = broadcast<V>(x[m][k]);
#pragma GCC unroll 8
      for (int v = 0; v < columns; ++v) next[m][v] = fma(left, right[v], next[m][v]);
    };
    const auto load_kernel = [&](V(&right)[columns]) FASTRNN_ALWAYS {
#pragma GCC unroll 8
      for (int v = 0; v < columns; ++v) right[v] = load<V>(kernel + v * L);
      kernel += columns * L;
    };
    V right[columns];
    Index k = 0;
    for (; k < both; ++k) {
      load_kernel(right);
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
        add_x(k, m, right);
        add_operand(m);
      }
      operand += rows;
      recurrent += rows * columns * L;
    }
    for (; k < depth; ++k) {
      load_kernel(right);
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) add_x(k, m, right);
    }
    for (int m = 0; m < rows; ++m) {
      for (int v = 0; v < columns; ++v) store(to + (m * A + v) * L, next[m][v]);
      for (int v = columns; v < A; ++v) store(to + (m * A + v) * L, load<V>(from.bias + v * L));
    }
  }
  for (Index k = both * from.ahead_tiles * rows; k < from.units; ++k, ++operand, recurrent += columns * L)
    add_operand(0);
  for (int i = 0; i < A; ++i) acc[i] = own[i];
}

/// The sums of M rows from `first` on, [row][sum][vector], for a block of N vectors V per sum. Half vectors of two
/// gates lie next to each other everywhere: of an even number of gates with one left side two are summed as a whole
/// vector (LSTM with 20 or 37 units 8 %; not for one row, whose sums wait for each other: LSTM with 20 units 4 %
/// slower).
template <int gates, int apart, class V, int N, int M, bool gates_apart, bool fetches, class T, int A>
FASTRNN_INLINE void tile_sums(V (&sums)[M][A], const SumInputs<T>& from, Index first) {
  constexpr int L = kLanes<V>;
  if constexpr (L < kLanes<Vec<T>> && gates % 2 == 0 && apart < 0 && M > 1 && !gates_apart) {
    Vec<T> pairs[M][A / 2];
    tile_sums<gates / 2, apart, Vec<T>, N, M, gates_apart, fetches>(pairs, from, first);
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < A; i += 2) split(pairs[m][i / 2], sums[m][i], sums[m][i + 1]);
    return;
  }
  const T *row[M], *column[gates * N];
  const auto fetch = [&]([[maybe_unused]] const Following<T>& following, [[maybe_unused]] Index depth) FASTRNN_ALWAYS {
    if constexpr (fetches)
      return following.share(first, depth, from.bias);
    else
      return NoFetch();
  };
  if (from.hoisted) {
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < A; ++i) sums[m][i] = load<V>(from.hoisted + (first + m) * from.hoisted_stride + i * L);
  } else {
    for (int i = 0; i < A; ++i) {
      const V bias = load<V>(from.bias + i * L);
      for (int m = 0; m < M; ++m) sums[m][i] = bias;
    }
  }
  if (from.of_inputs.size() > 0) {
    for (int m = 0; m < M; ++m) row[m] = from.x[first + m] + from.of_inputs.begin;
    row_pointers(column, from.kernel + from.of_inputs.begin * gates * N * L, L);
    const Index depth = from.of_inputs.size();
    multiply_add<GateSum<gates, apart, N, false, gates_apart>>(sums, row, 1, from.x_gate_stride, column, gates * N * L,
                                                               depth, fetch(from.next_kernel, depth));
  }
  for (int m = 0; m < M; ++m) row[m] = from.operand[first + m] + from.of_units.begin;
  if constexpr (M == 1 && !gates_apart && kSumsAhead)
    if (from.ahead) {
      V one[A];  // `sums` itself would be kept in memory
      for (int i = 0; i < A; ++i) one[i] = sums[0][i];
      tile_sums_ahead<gates, apart, V, N>(one, from);
      for (int i = 0; i < A; ++i) sums[0][i] = one[i];
      return;
    }
  row_pointers(column, from.recurrent + from.of_units.begin * gates * N * L, L);
  const Index depth = from.of_units.size();
  multiply_add<GateSum<gates, apart, N, true, gates_apart>>(sums, row, 1, from.operand_gate_stride, column,
                                                            gates * N * L, depth, fetch(from.next_recurrent, depth));
}

/// The sums of a tile into memory, for any stage.
template <int gates, int apart, class T>
void store_tile_sums_of(const SumInputs<T>& from, Index first, Index rows, bool half, Index vectors, bool gates_apart,
                        T* to) {
  constexpr int sums_per_unit = gates + (apart >= 0);
  with_vectors<T, kTileVectors / sums_per_unit>(half, vectors, [&](auto vector, auto n) {
    using V = decltype(vector);
    with_constant<kTileRows>(rows, [&](auto height) {
      constexpr int N = n(), M = height(), A = sums_per_unit * N;
      V sums[M][A];
      if (gates > 1 && gates_apart)
        tile_sums<gates, apart, V, N, M, (gates > 1), M >= Following<T>::kFewestRows>(sums, from, first);
      else
        tile_sums<gates, apart, V, N, M, false, M >= Following<T>::kFewestRows>(sums, from, first);
      for (int m = 0; m < M; ++m)
        for (int i = 0; i < A; ++i) store(to + (m * A + i) * kLanes<V>, sums[m][i]);
    });
  });
}
template <class T, class... Argument>
void store_tile_sums(const StageInfo<T>& stage, const Argument&... of) {
  switch (stage.apart >= 0 ? 0 : stage.gates) {
    case 0:
      return store_tile_sums_of<3, 2, T>(of...);  // Gru, the only one with such a gate
    case 1:
      return store_tile_sums_of<1, -1, T>(of...);
    case 2:
      return store_tile_sums_of<2, -1, T>(of...);
    case 3:
      return store_tile_sums_of<3, -1, T>(of...);
    default:
      return store_tile_sums_of<4, -1, T>(of...);
  }
}

// ---- Forward. (Here and below, the rows at hand are copied to where no vector that is stored can alias them.)

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

/// Fetch n vectors, `stride` apart, into a cache.
template <bool written, class T>
FASTRNN_INLINE void fetch(const T* from, Index stride, int n) {
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) __builtin_prefetch(from + i * stride, written, 3);
}

/// Stage S of a cell on one vector of the units of R rows from row `row` on; `plain`: there is no zoneout.
template <class Cell, class S, bool plain, class T, class V, int R>
FASTRNN_INLINE void finish_group(const CellRows<T>& at, Index row, Index unit,
                                 const Group<V, R> (&a)[S::accumulators]) {
  constexpr int states = Cell::traits.states, slots = Cell::traits.tape_slots;
  constexpr unsigned written = S::states & ~Cell::Stages::template after<S>();
  const First<V> valid = (S::projects ? at.outputs : at.units) - unit;
  const typename Cell::Activations functions(at.activations);
  constexpr int further = Cell::traits.hidden - 1;  // vectors of state 0 beside h
  Group<V, R> slot[slots], prev[states], next[states + further], parameter[S::parameters + 1];
  for (int i = 0; i < S::parameters; ++i)
    for (V& p : parameter[i].v) p = load<V>(at.parameters + i * at.parameter_stride + unit);
  for (int i = 0; i < S::first_slot; ++i)
    load_rows(slot[i], at.slots[row] + i * at.units + unit, at.slots.stride, valid);
  for (int i = 0; i < states; ++i)
    if (concerns(S::states, i)) load_rows(prev[i], at.prev[i][row] + unit, at.prev[i].stride, valid);
  if constexpr (S::operand == kNothing && !S::normalizes)
    if (at.factors)
      for (int r = 0; r < R; ++r) prev[0].v[r] = mul(prev[0].v[r], load<V>(at.factors[row + r] + unit, valid));
  S::forward(functions, parameter, a, slot, prev, next);
  if (concerns(written, 0) && at.slots_ahead)
    for (int r = 0; r < R; ++r) {
      fetch<true>(at.slots[row + r] + unit + at.slots_ahead, at.units, slots);
      if (at.y) fetch<true>(at.y[row + r] + unit + at.y_ahead, 0, 1);
    }
  if (at.slots.data)
    for (int i = S::first_slot; i < S::first_slot + S::slots; ++i)
      store_rows(at.slots[row] + i * at.units + unit, at.slots.stride, slot[i], valid);
  for (int i = 0; i < states; ++i)
    for (int part = 0; concerns(written, i) && part <= (i == 0 ? further : 0); ++part) {
      Group<V, R>& value = next[part == 0 ? i : states - 1 + part];
      const Index column = part * at.units + unit;
      if (!plain && at.zoneout && at.zoneout[i]) {
        if (at.slots.data)
          store_rows(at.slots[row] + (slots + state_place(Cell::traits, i)) * at.units + column, at.slots.stride, value,
                     valid);
        for (int r = 0; r < R; ++r) {
          const V z = load<V>(at.zoneout[i][row + r] + column, valid);
          value.v[r] = mix(z, load<V>(at.prev[i][row + r] + column, valid), value.v[r]);  // prev may be scaled
        }
      }
      store_rows(at.next[i][row] + column, at.next[i].stride, value, valid);
    }
  if (concerns(written, 0) && at.y)
    for (int r = 0; r < R; ++r) store(at.y[row + r] + unit, next[0].v[r], valid);
}

template <class Cell, class S, class T>
void cell_forward(const CellRows<T>& step, const Patch& patch, Index first, Index rows, const T* sums) {
  const CellRows<T> at = step;
  const Index row = patch.row + first, unit = patch.unit, vectors = patch.vectors;
  with_vectors<T, 1>(patch.half, 1, [&](auto vector, auto) {
    using V = decltype(vector);
    constexpr Index L = kLanes<V>;
    const Index row_stride = S::accumulators * vectors * L;
    const auto group = [&](Index r, auto rows_here) FASTRNN_ALWAYS {
      constexpr int R = rows_here();
      for (Index n = 0; n < vectors; ++n) {
        Group<V, R> a[S::accumulators];
        for (int i = 0; i < S::accumulators; ++i)
          for (int g = 0; g < R; ++g) a[i].v[g] = load<V>(sums + (r + g) * row_stride + (i * vectors + n) * L);
        finish_group<Cell, S, false>(at, row + r, unit + n * L, a);
      }
    };
    Index r = 0;
    for (; r + kGroupRows <= rows; r += kGroupRows) group(r, std::integral_constant<int, kGroupRows>());
    for (; r < rows; ++r) group(r, std::integral_constant<int, 1>());
  });
}

/// The cell on rows m … M - 1 of a tile in registers, a few of them at a time.
template <class Cell, class S, class V, int N, int M, int m, class T>
FASTRNN_INLINE void finish_tile(const CellRows<T>& at, Index row, Index unit, const V (&sums)[M][S::accumulators * N]) {
  if constexpr (m < M) {
    constexpr int groups = (M - m + kGroupRows - 1) / kGroupRows, R = (M - m + groups - 1) / groups;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Group<V, R> a[S::accumulators];
      for (int i = 0; i < S::accumulators; ++i)
        for (int r = 0; r < R; ++r) a[i].v[r] = sums[m + r][i * N + n];
      finish_group<Cell, S, true>(at, row + m, unit + n * kLanes<V>, a);
    }
    finish_tile<Cell, S, V, N, M, m + R>(at, row, unit, sums);
  }
}

/// Leaves `from` where the block after the last begins. (Called once for many blocks: with a call for each, a step of
/// one row took 30 ns longer per block.)
template <class Cell, class S, class T>
void fused_rows(SumInputs<T>& from, const CellRows<T>& at, const Patch& patch) {
  with_vectors<T, kTileVectors / S::accumulators>(patch.half, patch.vectors, [&](auto vector, auto n) {
    using V = decltype(vector);
    constexpr int N = n();
    const Index direction = patch.back ? -1 : 1;
    for (Index block = 0, unit = patch.unit; block < patch.blocks; ++block, unit += direction * N * kLanes<V>) {
      for_row_tiles({0, patch.rows}, [&, row = patch.row](Index first, Index rows) {
        with_constant<kTileRows>(rows, [&](auto height) {
          constexpr int M = height();
          V sums[M][S::accumulators * N];
          tile_sums<S::gates, S::apart, V, N, M, false, false>(sums, from, first);
          finish_tile<Cell, S, V, N, M, 0>(at, row + first, unit, sums);
        });
      });
      from.next_block(S::accumulators, S::gates, N * kLanes<V>, direction);
    }
  });
}

// ---- Backward

template <class Cell, class S, class T>
void cell_backward(const CellRowsBack<T>& step, const Patch& patch, T* dsums) {
  const CellRowsBack<T> at = step;
  const Index first_row = patch.row, rows = patch.rows, first_unit = patch.unit, vectors = patch.vectors;
  constexpr int states = Cell::traits.states, saved = Cell::traits.tape_slots - state_slots(Cell::traits);
  constexpr int further = Cell::traits.hidden - 1;  // vectors of state 0 beside h
  constexpr int sums = S::accumulators + S::parameters + S::normalizes;
  constexpr bool last = Cell::Stages::template ends_with<S>();
  constexpr unsigned left = S::states & ~Cell::Stages::template before<S>();  // whose gradients are final
  const typename Cell::Activations functions(at.activations);
  with_vectors<T, 1>(patch.half, 1, [&](auto vector, auto) {
    using V = decltype(vector);
    constexpr Index L = kLanes<V>;
    for (Index n = 0; n < vectors; ++n) {
      const Index unit = first_unit + n * L;
      const First<V> valid = (S::projects ? at.outputs : at.units) - unit;
      T* out = dsums + n * L;
      V parameter[S::parameters + 1];
      for (int i = 0; i < S::parameters; ++i) parameter[i] = load<V>(at.parameters + i * at.parameter_stride + unit);
      for (Index b = 0; b < rows; ++b, out += at.sums * vectors * L) {
        const Index row = first_row + b;
        const T* const from = at.slots[row] + unit;
        V slot[saved + 1], prev[states], next[states], d[states + further], da[sums], kept[states + further];
        const auto for_each_vector = [&](unsigned of, auto&& f) FASTRNN_ALWAYS {  // f(state, number in d, column)
          for (int i = 0; i < states; ++i)
            for (int part = 0; concerns(of, i) && part <= (i == 0 ? further : 0); ++part)
              f(i, part == 0 ? i : states - 1 + part, part * at.units + unit);
        };
        for (int i = 0; i < saved; ++i) slot[i] = load<V>(from + i * at.units, valid);
        if (last && at.slots_ahead) {
          fetch<false>(from + at.slots_ahead, at.units, Cell::traits.tape_slots);
          if (at.dy) fetch<false>(at.dy[row] + unit + at.dy_ahead, 0, 1);
        }
        for (int i = 0; i < states; ++i)
          if (concerns(S::states, i)) {
            const bool mixed = at.zoneout && at.zoneout[i];
            prev[i] = load<V>(at.prev[i][row] + unit, valid);
            next[i] = load<V>(
                from + (saved + state_place(Cell::traits, i) + (mixed ? state_slots(Cell::traits) : 0)) * at.units,
                valid);
          }
        for_each_vector(S::states, [&](int i, int n, Index column)
                                       FASTRNN_ALWAYS { d[n] = load<V>(at.d[i][at.d_row + b] + column, valid); });
        if (concerns(S::states, 0) && at.dy)
          at.dy.for_each_output(row, [&](const T* dy) FASTRNN_ALWAYS { d[0] = add(d[0], load<V>(dy + unit, valid)); });
        const V doperand = last ? zero<V>() : load<V>(at.doperand[at.d_row + b] + unit, valid);
        if (at.zoneout)
          for_each_vector(S::states, [&](int i, int n, Index column) FASTRNN_ALWAYS {
            if (!at.zoneout[i]) return;  // mixed = z prev + (1 - z) next
            const V z = load<V>(at.zoneout[i][row] + column, valid);
            kept[n] = mul(z, d[n]);
            d[n] = mul(sub(one<V>(), z), d[n]);
          });
        if (Cell::traits.cell_norm && concerns(left, 1)) d[1] = add(d[1], load<V>(at.dc[at.d_row + b] + unit, valid));
        const bool scaled = S::operand == kNothing && !S::normalizes && at.factors;
        const V factor = scaled ? load<V>(at.factors[row] + unit, valid) : one<V>();
        if (scaled) prev[0] = mul(prev[0], factor);
        S::backward(functions, parameter, slot, prev, next, d, doperand, da);
        if (scaled) d[0] = mul(d[0], factor);
        for (int i = 0; i < sums; ++i) store(out + i * vectors * L, da[i]);
        for_each_vector(left, [&](int i, int n, Index column) FASTRNN_ALWAYS {
          if (at.zoneout && at.zoneout[i]) d[n] = add(d[n], kept[n]);
          store(at.d[i][at.d_row + b] + column, d[n], valid);
        });
      }
    }
  });
}

// ---- The table

template <class Cell, class T, class S>
constexpr StageInfo<T> stage_info() {
  void (*fused)(SumInputs<T>&, const CellRows<T>&, const Patch&) = nullptr;
  if constexpr (Cell::Activations::standard) fused = fused_rows<Cell, S, T>;
  return {S::first_gate,
          S::gates,
          S::apart,
          S::accumulators,
          S::operand,
          S::parameters,
          S::first_slot,
          S::slots,
          S::projects,
          S::normalizes,
          kTileVectors / S::accumulators,
          fused,
          cell_forward<Cell, S, T>,
          cell_backward<Cell, S, T>};
}
template <class Cell, class T, class... S>
constexpr CellInfo<T> cell_info(StageList<S...>) {
  return {Cell::traits, sizeof...(S), {stage_info<Cell, T, S>()...}};
}
template <class Cell, class T>
constexpr CellInfo<T> kCellInfo = cell_info<Cell, T>(typename Cell::Stages{});

/// The cell: the one with fused kernels if `fused` and there is one.
template <class T>
const CellInfo<T>& cell_info(Cell cell, bool fused) {
#define FASTRNN_CASE(name, Struct) \
  case Cell::name:                 \
    return kCellInfo<Struct<FASTRNN_FUNCTIONS>, T>;
  if (fused) switch (cell) {
#define FASTRNN_FUNCTIONS StandardActivations
      FASTRNN_FOR_EACH_FUSED_CELL(FASTRNN_CASE)
#undef FASTRNN_FUNCTIONS
      default:
        break;
    }
  switch (cell) {
#define FASTRNN_FUNCTIONS ChosenActivations
    FASTRNN_FOR_EACH_CELL(FASTRNN_CASE)
#undef FASTRNN_FUNCTIONS
  }
#undef FASTRNN_CASE
  __builtin_unreachable();
}

/// The cell with the kernels for these activations.
template <class T>
const CellInfo<T>& cell_info(Cell cell, const Activation* f) {
  const auto is = [](const Activation& f, ActivationKind kind) { return f.kind == kind && !(f.clip < INFINITY); };
  return cell_info<T>(
      cell, is(f[0], ActivationKind::sigmoid) && is(f[1], ActivationKind::tanh) && is(f[2], ActivationKind::tanh));
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
