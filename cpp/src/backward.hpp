// The backward pass, generic over the cell.
//
//   per step     the cell turns dh into the gradients of the sums, `dsums`; dh_prev = dsums.UT
//   per chunk    dx = dsums.WT, dW += xT.dsums, dU += h_prevT.dsums, db += dsums, while dsums is in cache
//
// dsums is `[block][row][sum][lane]`: the layout of a panel, so that it is the packed right side of dW and dU as it
// stands; the gradients of parameters, row by row, are further sums. A chunk is some rows of the batch by some time
// steps; its size does not depend on the number of threads, each element of dW, dU and db has one owner, which adds
// over rows and steps in one fixed order: the same bits for any number of threads.
#pragma once

#include <array>

#include "direct.hpp"
#include "normalization.hpp"
#include "sequence.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

template <class T>
struct WeightGradients {
  enum { kernel, recurrent, bias, parameters, projection, layer_norm, cell_norm, count };
  T* of[count];
};

/// How many elements each has.
template <class T>
std::array<Index, WeightGradients<T>::count> weight_sizes(const Sequence<T>& seq) {
  const CellTraits& traits = seq.cell.traits;
  const Index columns = seq.G * seq.H;
  return {seq.I * columns,
          seq.cell.stage[0].depth(seq.sizes) * columns,
          traits.bias_rows * columns,
          traits.parameters * seq.H,
          traits.projected ? seq.H * seq.sizes.outputs : 0,
          seq.sizes.normalized ? 2 * columns : 0,
          traits.cell_norm ? 2 * seq.H : 0};
}

/// Carries the gradient of some rows of the batch back through all time steps.
template <class T>
class BackwardRows {
 public:
  static constexpr Index kRowsAtOnce = 256;  // bounds the workspace
  static constexpr Index kMostChunkRows = 512;

  /// For at most `rows` rows at once, in chunks of at most `chunk_rows` rows times steps, by the threads that share it.
  BackwardRows(const Sequence<T>& sequence, const Backward<T>& call, Index rows, Index chunk_rows,
               const Processors& sharing, Arena& arena)
      : call_(call),
        seq_(sequence),
        cell_(seq_.cell),
        I_(seq_.I),
        H_(seq_.H),
        chunk_rows_(chunk_rows),
        fetches_(seq_.panels.size > sharing.threads * sharing.cached),
        d_stride_(ceil_div(larger(H_, seq_.width(0)), kLanes<Vec<T>>) * kLanes<Vec<T>>) {
    for (int s = 0; s < seq_.states; ++s) d_[s] = arena.take<T>(rows * d_stride_);
    if (cell_.stages > 1) doperand_ = arena.take<T>(rows * d_stride_);
    if (cell_.traits.cell_norm) dc_ = arena.take<T>(rows * d_stride_);
    if (seq_.sizes.normalized || cell_.traits.cell_norm)
      normalized_row_ = arena.take<T>(sharing.threads * 3 * seq_.G * H_);
    x_columns_ = arena.take<T>((call.input_factors ? seq_.G : 1) * columns_size(I_));
    for (int s = 0; s < cell_.stages; ++s) {
      const StageInfo<T>& stage = cell_.stage[s];
      dsums_[s] = arena.take<T>(chunk_rows_ * stage.sums(seq_.sizes) * seq_.panels.padded_units);
      operand_columns_[s] = arena.take<T>(left_sides(stage, false) * columns_size(stage.depth(seq_.sizes)));
      for (bool input : {true, false})
        for (int g = 0; g < left_sides(stage, input); ++g)
          runs_[s][input][g] = {arena.take<Run<T>>(stage.blocks(seq_.sizes).count() * stage.gates),
                                arena.take<Index>(1)};
      if (!flat()) continue;
      for (bool input : {true, false})
        flat_[s][input] = input || stage.apart >= 0 ? arena.take<T>(chunk_rows_ * flat_stride(stage)) : flat_[s][true];
      stretches_[s] = arena.take<Stretch>(stage.blocks(seq_.sizes).count() * stage.gates);
    }
  }

  /// The rows' dx and dinitial_state, and their share of the weights' gradients: set, or added if `add`. The team
  /// divides the rows or the units. False: stopped.
  bool run(Range rows, const WeightGradients<T>& gradients, bool add, bool by_units, Team& team) {
    gradients_ = gradients;
    by_units_ = by_units;
    const Range mine = part(rows.size(), team.index, team.size);
    for (int s = 0; team.index == 0 && s < cell_.stages; ++s)
      for (bool input : {true, false})
        for (int g = 0; g < left_sides(cell_.stage[s], input); ++g)
          list_runs(s, input, apart(cell_.stage[s], input) ? g : kAllGates, runs_[s][input][g]);
    for (int s = 0; team.index == 0 && flat() && s < cell_.stages; ++s) list_stretches(s);
    for (int s = 0; s < seq_.states; ++s)
      for (Index b = mine.begin; b < mine.end; ++b) {
        const T* from = call_.dfinal_state[s];
        copy(from ? from + seq_.schedule.row(rows.begin + b) * seq_.width(s) : seq_.zeros(), d_[s] + b * d_stride_,
             seq_.width(s));
      }
    for (Index b = mine.begin; call_.dx && seq_.schedule.masked() && b < mine.end; ++b)
      for (Index t = 0; t < call_.time; ++t)
        fill_zero(call_.dx + seq_.schedule.row(rows.begin + b) * call_.dx_batch_stride + t * call_.dx_time_stride, I_);
    if (!team.barrier()) return false;
    const Index all_steps = seq_.schedule.steps(rows);
    if (all_steps == 0 && !add && team.index == 0) set_to_zero();
    for (Index end = all_steps; end > 0;) {
      const Chunk chunk = chunk_before(end, rows, add || end < all_steps);
      end = chunk.t0;
      const bool went_on = by_units ? through_time({0, rows.size()}, chunk, team) : through_time(mine, chunk, team);
      if (!went_on || !team.barrier()) return false;
      if (!reduce(chunk, team) || !team.barrier()) return false;
    }
    for (int s = 0; s < seq_.states; ++s)
      for (Index b = mine.begin; call_.dinitial_state[s] && b < mine.end; ++b)
        copy(d_[s] + b * d_stride_, call_.dinitial_state[s] + seq_.schedule.row(rows.begin + b) * seq_.width(s),
             seq_.width(s));
    return team.barrier();
  }

 private:
  static constexpr int kAllGates = -1;

  /// The gradients of no step at all.
  void set_to_zero() const {
    for (int i = 0; i < WeightGradients<T>::count; ++i)
      if (gradients_.of[i]) fill_zero(gradients_.of[i], weight_sizes(seq_)[i]);
  }

  /// Steps [t0, t0 + steps) of the rows of the batch in `rows`. Its rows are numbered step by step.
  struct Chunk {
    Index t0, steps;
    Range rows;
    bool add;                             ///< to the weights' gradients; the first chunk sets them
    Index first_row[kMostChunkRows + 1];  ///< of each step, and where the last ends
    Index size() const { return first_row[steps]; }
    Index row(Index t, Index b) const { return first_row[t - t0] + b; }
    Index active(Index t) const { return first_row[t - t0 + 1] - first_row[t - t0]; }
  };
  /// As many steps as fit before step `end`.
  Chunk chunk_before(Index end, Range rows, bool add) const {
    Chunk chunk{end, 0, rows, add, {0}};
    for (Index size = 0; chunk.t0 > 0; --chunk.t0, ++chunk.steps) {
      size += seq_.schedule.active(rows, chunk.t0 - 1);
      if (size > chunk_rows_ || chunk.steps == kMostChunkRows) break;
    }
    for (Index k = 0; k < chunk.steps; ++k)
      chunk.first_row[k + 1] = chunk.first_row[k] + seq_.schedule.active(rows, chunk.t0 + k);
    return chunk;
  }

  /// Back through the steps of a chunk: dsums of all its rows, d of the states before it.
  bool through_time(Range all, const Chunk& chunk, Team& team) {
    for (Index t = chunk.t0 + chunk.steps - 1; t >= chunk.t0; --t) {
      const Range rows{all.begin, larger(all.begin, smaller(all.end, chunk.active(t)))};
      for (int s = cell_.stages - 1; s >= 0; --s) {
        const StageInfo<T>& stage = cell_.stage[s];
        const Range blocks = divided(stage.blocks(seq_.sizes).count(), team);
        cell_backward(s, chunk, t, rows, blocks);
        if (flat()) flatten(s, chunk.row(t, 0), rows, blocks);
        if (by_units_ && !team.barrier()) return false;
        if (stage.normalizes || stage.normalized(seq_.sizes)) {
          undo_normalization(s, chunk, t, rows, team);
          if (by_units_ && !team.barrier()) return false;
        }
        if (stage.operand == kNothing) continue;
        // Of the first step's product comes the gradient of the initial state, and nothing else.
        if (stage.operand == kHidden && t == 0 && !call_.dinitial_state[0]) continue;
        const Blocks<T> columns = output_blocks<T>(stage.depth(seq_.sizes));
        const Range outputs = divided(columns.count(), team);
        T* to = stage.operand == kHidden ? d_[0] : doperand_;  // h_prev on top of what is in d; another operand alone
        T* row[kRowsAtOnce];
        for (Index b = rows.begin; b < rows.end; ++b) row[b - rows.begin] = to + b * d_stride_;
        if (seq_.direct) {
          const Range vectors = divided(ceil_div(columns.columns, kLanes<Vec<T>>), team);
          multiply_directly(s, false, vectors, chunk.row(t, rows.begin), rows.size(), row, stage.operand == kHidden);
          if (!team.proceed(rows.size() * flat_stride(stage) * vectors.size() * kLanes<Vec<T>>)) return false;
          if (by_units_ && !team.barrier()) return false;
          continue;
        }
        const Walk walk(outputs, t);
        for (Index i = 0; i < walk.size(); ++i) {
          const Index block = walk.at(i);
          multiply_gates(s, false, columns, block, walk.following(i), chunk.row(t, rows.begin), rows.size(), row,
                         stage.operand == kHidden, [&](int g, Index m) {
                           return seq_.recurrent_factors(chunk.rows.begin + rows.begin + m, stage.first_gate + g);
                         });
          if (!team.proceed(rows.size() * stage.gates * stage.units(seq_.sizes) * columns.width(block))) return false;
        }
        if (by_units_ && !team.barrier()) return false;
      }
    }
    if (flat()) return true;
    // The left sides of dW and dU: x and the operands of the steps, by columns.
    const Range mine = part(chunk.size(), by_units_ ? team.index : 0, by_units_ ? team.size : 1);
    for (Index t = chunk.t0; t < chunk.t0 + chunk.steps; ++t) {
      const Index first = chunk.row(t, 0);
      const Index begin = larger(all.begin, mine.begin - first);
      const Index end = smaller(smaller(all.end, chunk.active(t)), mine.end - first);
      const auto gather = [&](const auto& from, Index n, int sides, auto&& factors_of, T* columns) {
        constexpr Index kTogether = 32;  // bounds the stack
        const T *row[kTogether], *factor[kTogether];
        for (Index b = begin; b < end; b += kTogether) {
          const Index rows = smaller(kTogether, end - b);
          for (Index r = 0; r < rows; ++r) row[r] = from[chunk.rows.begin + b + r];
          for (int g = 0; g < sides; ++g) {
            const bool scaled = factors_of(chunk.rows.begin + b, g);
            for (Index r = 0; scaled && r < rows; ++r) factor[r] = factors_of(chunk.rows.begin + b + r, g);
            gather_columns(row, scaled ? factor : nullptr, n, {first + b, first + b + rows},
                           columns + g * columns_size(n));
          }
        }
      };
      gather(
          seq_.x(t), I_, call_.input_factors ? seq_.G : 1,
          [&](Index b, int g) FASTRNN_ALWAYS { return seq_.input_factors(b, g); }, x_columns_);
      for (int s = 0; s < cell_.stages; ++s) {
        const StageInfo<T>& stage = cell_.stage[s];
        if (stage.operand == kNothing) continue;
        gather(
            stage.operand >= 0 ? slot(t, stage.operand) : state_before(t, 0), stage.depth(seq_.sizes),
            left_sides(stage, false),
            [&](Index b, int g) FASTRNN_ALWAYS {
              return apart(stage, false) ? seq_.recurrent_factors(b, stage.first_gate + g) : nullptr;
            },
            operand_columns_[s]);
      }
    }
    return true;
  }

  Range divided(Index n, const Team& team) const { return by_units_ ? part(n, team.index, team.size) : Range{0, n}; }
  /// Whether the gates have left sides of their own in the products with W (input) or U, and how many there are.
  bool apart(const StageInfo<T>& stage, bool input) const {
    return stage.sees_x() && (input ? call_.input_factors : call_.recurrent_factors);
  }
  /// Whether the gradients of the sums are also kept row by row, in the order of the weights' columns: dW and dU of few
  /// rows times steps take their time in writing them, which goes fastest row by row.
  bool flat() const {
    return chunk_rows_ <= kMostDirectRows && !call_.input_factors && !call_.recurrent_factors && !seq_.sizes.normalized;
  }
  Index flat_stride(const StageInfo<T>& stage) const { return stage.gates * stage.units(seq_.sizes); }
  T* flat_row(int s, bool input, Index r) const { return flat_[s][input] + r * flat_stride(cell_.stage[s]); }

  /// Keep what the cell left in some blocks. `first_row`: the first of the step in the chunk.
  void flatten(int s, Index first_row, Range rows, Range mine) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    for (Index block = mine.begin; block < mine.end; ++block)
      for (Index r = first_row + rows.begin; r < first_row + rows.end; ++r)
        for (int g = 0; g < stage.gates; ++g) {
          const Index width = blocks.width(block), to = g * stage.units(seq_.sizes) + blocks.first(block);
          for (bool input : {true, false})
            if (input || stage.apart >= 0)
              copy(dsums(s, block, r) + (input ? g : stage.recurrent_sum(g)) * width, flat_row(s, input, r) + to,
                   blocks.valid(block));
        }
  }
  /// The columns of the weights in the order in which panels have them.
  void list_stretches(int s) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    Stretch* next = stretches_[s];
    for (Index block = 0; block < blocks.count(); ++block)
      for (int g = 0; g < stage.gates; ++g)
        *next++ = {g * stage.units(seq_.sizes) + blocks.first(block), blocks.valid(block)};
  }
  /// The columns `mine`, in vectors, of dsums.WT (input) or dsums.UT of weights where they lie.
  void multiply_directly(int s, bool input, Range mine, Index row, Index rows, T* const* to, bool add) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const MatrixView<T>& matrix = matrix_of(stage, *seq_.direct, input);
    const Index first = mine.begin * kLanes<Vec<T>>;
    const Index columns =
        smaller(mine.end * kLanes<Vec<T>>, input ? stage.inputs(seq_.sizes) : stage.depth(seq_.sizes)) - first;
    if (columns <= 0) return;
    const T* left[kMostDirectRows];
    T* out[kMostDirectRows];
    for (Index m = 0; m < rows; ++m) {
      left[m] = flat_row(s, input, row + m);
      out[m] = to[m] + first;
      if (!add) fill_zero(out[m], columns);
    }
    DirectProduct<T> product;
    product.matrix = {matrix.data + stage.first_gate * H_ * matrix.column_stride + first * matrix.row_stride,
                      matrix.column_stride, matrix.row_stride};
    product.stretches = stretches_[s];
    product.count = stage.blocks(seq_.sizes).count() * stage.gates;
    product.groups = 1;
    product.group_step = 0;
    product.columns = columns;
    product.vectors = columns;
    product.block_step = 0;
    product.template run<Vec<T>>(left, rows, out);
  }

  int left_sides(const StageInfo<T>& stage, bool input) const { return apart(stage, input) ? stage.gates : 1; }
  Index columns_size(Index n) const { return ceil_div(n, kTileRows) * kTileRows * chunk_rows_; }
  Rows<const T> slot(Index t, int i) const { return seq_.tape_slot(call_.tape, t, i); }
  Rows<const T> state_before(Index t, int s) const {
    return t > 0 ? slot(t - 1, seq_.state_slot(s)) : seq_.initial_state(s);
  }
  /// The gradients of the sums of a block, from chunk row r on.
  FASTRNN_INLINE T* dsums(int s, Index block, Index r) const {
    const Blocks<T> blocks = cell_.stage[s].blocks(seq_.sizes);
    return dsums_[s] + (blocks.first(block) * chunk_rows_ + r * blocks.width(block)) * cell_.stage[s].sums(seq_.sizes);
  }

  /// From the gradients of what stage s normalized those of what it was before: of c, or of the stage's products.
  void undo_normalization(int s, const Chunk& chunk, Index t, Range rows, const Team& team) {
    const StageInfo<T>& stage = cell_.stage[s];
    const Index n = seq_.G * H_;
    T* const dy = normalized_row_ + team.index * 3 * n;
    T *const da = dy + n, *const dgain = da + n;
    const Range share = divided(rows.size(), team);
    for (Index b = rows.begin + share.begin; b < rows.begin + share.end; ++b) {
      const Index tape_row = chunk.rows.begin + b, r = chunk.row(t, b);
      if (stage.normalizes) {
        const auto sum = [](int i) { return [i](int) { return i; }; };
        for_each_gate(s, r, sum(0), [&](int, Index unit, T* from, Index count) { copy(from, dy + unit, count); });
        for_each_gate(s, r, sum(1), [&](int, Index unit, T* from, Index count) {
          copy(from, doperand_ + b * d_stride_ + unit, count);
        });
        const T* const c = slot(t, seq_.state_slot(1, call_.zoneout[1]))[tape_row];
        normalization_backward(c, seq_.panels.cell_norm, dy, H_, dc_ + b * d_stride_, dgain);
        for_each_gate(s, r, sum(1), [&](int, Index unit, T* to, Index count) { copy(dgain + unit, to, count); });
        continue;
      }
      const auto undo = [&](bool input, int first_stage, int end_stage) {
        const auto for_each = [&](auto&& sum_of, auto&& f) {
          for (int i = first_stage; i < end_stage; ++i)
            if (cell_.stage[i].sees_x()) for_each_gate(i, r, [&](int g) { return sum_of(cell_.stage[i], g); }, f);
        };
        const int first = input ? 0 : stage.first_gate;
        const Index offset = first * H_, size = input ? n : stage.gates * H_;
        using Stage = StageInfo<T>;
        for_each([&](const Stage& of, int g) { return input ? g : of.recurrent_sum(g); },
                 [&](int g, Index unit, T* from, Index count) { copy(from, dy + g * H_ + unit, count); });
        normalization_backward(slot(t, seq_.product_slot(input))[tape_row] + offset,
                               seq_.panels.layer_norm + (input ? 0 : n) + offset, dy + offset, size, da + offset,
                               dgain + offset);
        for_each([&](const Stage& of, int g) { return of.product_sum(input, g, seq_.sizes); },
                 [&](int g, Index unit, T* to, Index count) { copy(da + g * H_ + unit, to, count); });
        for_each([&](const Stage& of, int g) { return of.gain_sum(input, g); },
                 [&](int g, Index unit, T* to, Index count) { copy(dgain + g * H_ + unit, to, count); });
      };
      undo(false, s, s + 1);
      if (s == 0) undo(true, 0, cell_.stages);
    }
  }
  /// f(gate, unit, where, n) for pieces of the sums sum_of(g) of chunk row r, one after the other in memory, for each
  /// gate g of a stage; gates are counted by the columns of the kernels. A stage without gates has one here.
  template <class S, class F>
  void for_each_gate(int s, Index r, S&& sum_of, F&& f) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    for (Index block = 0; block < blocks.count(); ++block)
      for (int g = 0; g < larger(1, stage.gates); ++g)
        f(stage.first_gate + g, blocks.first(block), dsums(s, block, r) + sum_of(g) * blocks.width(block),
          blocks.valid(block));
  }

  /// The cell's gradient at step t, for some blocks of units.
  void cell_backward(int s, const Chunk& chunk, Index t, Range rows, Range mine) {
    const Blocks<T> blocks = cell_.stage[s].blocks(seq_.sizes);
    CellRowsBack<T> at;
    at.units = H_;
    at.outputs = seq_.sizes.outputs;
    const CallRows<const T> zoneout[kMaxStates] = {seq_.zoneout(0, t), seq_.zoneout(1, t)};
    at.zoneout = seq_.zoneout() ? zoneout : nullptr;
    at.parameters = seq_.panels.parameters;
    at.parameter_stride = seq_.panels.padded_units;
    at.activations = seq_.activations;
    at.factors = seq_.recurrent_factors();
    at.slots = slot(t, 0);
    at.d_row = rows.begin;
    at.sums = cell_.stage[s].sums(seq_.sizes);
    at.doperand = {doperand_, d_stride_};
    at.dc = {dc_, d_stride_};
    at.dy = {seq_.schedule, call_.dy, call_.dy_batch_stride, call_.dy_time_stride, t};
    const auto ahead = seq_.ahead(rows.size(), blocks.width(0), call_.dy_time_stride);
    at.slots_ahead = ahead.slots;
    at.dy_ahead = ahead.output;
    for (int i = 0; i < seq_.states; ++i) {
      at.prev[i] = state_before(t, i);
      at.d[i] = {d_[i], d_stride_};
    }
    for (Index block = mine.begin; block < mine.end; ++block) {
      const Patch patch{chunk.rows.begin + rows.begin, rows.size(),
                        blocks.first(block),           blocks.used(block),
                        blocks.is_half(block),         1};
      cell_.stage[s].backward(at, patch, dsums(s, block, chunk.row(t, rows.begin)));
    }
  }

  /// The gradients of the sums as left side of a product with WT (input) or UT: per block of units and gate, the units;
  /// gates whose units lie next to each other in one run. Of all gates or of one.
  struct RunList {
    Run<T>* run;  ///< in the workspace, where the threads of a team share it
    Index* count;
  };
  void list_runs(int s, bool input, int only, const RunList& list) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const bool all = only == kAllGates;
    Index count = 0;
    for (Index block = 0; block < blocks.count(); ++block) {
      const Index width = blocks.width(block), valid = blocks.valid(block);
      for (int g = all ? 0 : only; g < (all ? stage.gates : only + 1); ++g) {
        const T* const first = dsums(s, block, 0) + stage.product_sum(input, g, seq_.sizes) * width;
        Run<T>* const last = list.run + count - 1;
        if (all && g > 0 && last->first + last->depth == first)
          last->depth += valid;
        else
          list.run[count++] = {first, stage.sums(seq_.sizes) * width, valid,
                               blocks.first(block) * stage.gates + g * valid};
      }
    }
    *list.count = count;
  }

  /// One block of dsums.WT (input) or dsums.UT, by the list of all gates; or, where the gates have left sides of their
  /// own, by each gate's list times its factors of row m, factor(gate, m). Fetches what follows: block `next`.
  template <class F>
  void multiply_gates(int s, bool input, const Blocks<T>& columns, Index block, Index next, Index row, Index rows,
                      T* const* to, bool add, F&& factor) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const RunList* const lists = runs_[s][input];
    const Index first = columns.first(block);
    const auto panel_of = [&](Index block) {
      return (input ? seq_.panels.kernel[s] : seq_.panels.recurrent[s]) +
             columns.first(block) * stage.gates * stage.units(seq_.sizes);
    };
    const T* const panel = panel_of(block);
    with_constant<kTileVectors>(columns.used(block), [&](auto n) {
      using V = Vec<T>;
      const auto multiply = [&](int g, const T* const* factors) {
        const Run<T>* const run = lists[g].run;
        const Index count = *lists[g].count, valid = columns.valid(block);
        if (!fetches_ || factors)
          return multiply_runs<V, n(), false>(run, count, row, rows, panel, to, first, valid, add || g > 0, {},
                                              factors);
        for (Index begin = 0, end; begin < count; begin = end) {
          Index depth = run[begin].depth;
          for (end = begin + 1; end < count && depth + run[end].depth <= Following<T>::kPieceDepth; ++end)
            depth += run[end].depth;
          const T* const following = end < count ? panel + run[end].panel_row * n() * kLanes<V> : panel_of(next);
          multiply_runs<V, n(), true>(run + begin, end - begin, row, rows, panel, to, first, valid, add || begin > 0,
                                      Following<T>::of(following, depth, n() * kLanes<V>, rows));
        }
      };
      if (!apart(stage, input)) return multiply(0, nullptr);
      const T* factors[kMostChunkRows];
      for (int g = 0; g < stage.gates; ++g) {
        for (Index m = 0; m < rows; ++m) factors[m] = factor(g, m);
        multiply(g, factors);
      }
    });
  }

  /// n values of each row of the chunk in `rows`, times their factors if there are any, into columns, kTileRows at a
  /// time: `[n / kTileRows][chunk row][kTileRows]`.
  void gather_columns(const T* const* row, const T* const* factor, Index n, Range rows, T* columns) const {
    constexpr Index kMove = kTileRows > 4 ? 8 : 4;  // values that are copied at once
    static_assert(kTileRows <= kMove && kMove <= 2 * kTileRows, "the next row overwrites what is too much");
    T* to = columns + rows.begin * kTileRows;
    for (Index i = 0; i < n; i += kTileRows, to += chunk_rows_ * kTileRows)
      with_constant<kTileRows>(smaller(kTileRows, n - i), [&](auto here) {
        Index r = 0;
        for (; factor && r < rows.size(); ++r)
          for (Index j = 0; j < here(); ++j) to[r * kTileRows + j] = row[r][i + j] * factor[r][i + j];
        for (; n - i >= kMove && r + 1 < rows.size(); ++r) copy(row[r] + i, to + r * kTileRows, kMove);
        for (; r < rows.size(); ++r) copy(row[r] + i, to + r * kTileRows, here());
      });
  }

  /// From the dsums of a whole chunk: dx, and its share of dW, dU and db.
  bool reduce(const Chunk& chunk, Team& team) {
    if (call_.dx && !input_gradient(chunk, team)) return false;
    for (int s = 0; s < cell_.stages; ++s) {
      const StageInfo<T>& stage = cell_.stage[s];
      if (stage.sees_x() && !weight_gradient(s, true, chunk, team)) return false;
      if (stage.operand != kNothing && !weight_gradient(s, false, chunk, team)) return false;
      if (stage.projects) continue;  // it has no bias
      const Blocks<T> blocks = stage.blocks(seq_.sizes);
      const Range mine = part(blocks.count(), team.index, team.size);
      for (Index block = mine.begin; block < mine.end; ++block)
        with_vectors<T, 1>(blocks.is_half(block), 1,
                           [&](auto vector, auto) { bias_gradient<decltype(vector)>(s, chunk, block); });
    }
    return true;
  }

  bool input_gradient(const Chunk& chunk, Team& team) {
    const bool direct = seq_.direct != nullptr;
    const Range rows = direct ? Range{0, chunk.size()} : part(chunk.size(), team.index, team.size);
    T* row[kMostChunkRows];
    Index batch_row[kMostChunkRows];
    for (Index r = rows.begin, t = chunk.t0; r < rows.end; ++r) {
      while (r >= chunk.row(t + 1, 0)) ++t;
      batch_row[r - rows.begin] = chunk.rows.begin + r - chunk.row(t, 0);
      row[r - rows.begin] = CallRows<T>{seq_.schedule, call_.dx, call_.dx_batch_stride, call_.dx_time_stride,
                                        t}[batch_row[r - rows.begin]];
    }
    for (int s = 0; direct && s < cell_.stages && cell_.stage[s].sees_x(); ++s)
      multiply_directly(s, true, part(ceil_div(I_, kLanes<Vec<T>>), team.index, team.size), 0, rows.size(), row, s > 0);
    if (direct) return team.proceed(rows.size() * I_ * seq_.G * H_);
    const Blocks<T> outputs = output_blocks<T>(I_);
    const Walk walk({0, outputs.count()}, 0);
    for (Index block = 0; block < walk.size(); ++block) {
      for (int s = 0; s < cell_.stages && cell_.stage[s].sees_x(); ++s)
        multiply_gates(s, true, outputs, block, walk.following(block), rows.begin, rows.size(), row, s > 0,
                       [&](int g, Index m) { return seq_.input_factors(batch_row[m], cell_.stage[s].first_gate + g); });
      if (!team.proceed(rows.size() * outputs.width(block) * seq_.G * H_)) return false;
    }
    return true;
  }

  /// dW += xT.dsums (input) or dU += operandT.dsums.
  bool weight_gradient(int s, bool input, const Chunk& chunk, Team& team) {
    const StageInfo<T>& stage = cell_.stage[s];
    const Index depth = input ? I_ : stage.depth(seq_.sizes);
    if (flat()) return flat_weight_gradient(s, input, part(depth, team.index, team.size), chunk, team);
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const Index tiles = ceil_div(depth, kTileRows);
    const Range mine = part(blocks.count() * tiles, team.index, team.size);
    const T* const columns = input ? x_columns_ : operand_columns_[s];
    for (Index item = mine.begin; item < mine.end;) {
      const Index block = item / tiles, end = smaller(mine.end, (block + 1) * tiles), begin = item;
      for (int gate = 0; gate < left_sides(stage, input); ++gate) {  // one after the other, or all at once
        const OuterProduct<T> product =
            outer_product(s, input, block, gate, apart(stage, input) ? gate + 1 : stage.gates, chunk);
        const Index left_gate = input && apart(stage, input) ? stage.first_gate + gate : gate;
        for (item = begin; item < end; ++item) {
          const Index i = (item - block * tiles) * kTileRows;
          const T* const left = columns + left_gate * columns_size(depth) + i * chunk_rows_;
          if (blocks.is_half(block))
            product.template run<HalfVec<T>>(left, chunk_rows_ * kTileRows, i, smaller(kTileRows, depth - i));
          else
            product.template run<Vec<T>>(left, chunk_rows_ * kTileRows, i, smaller(kTileRows, depth - i));
          if (!team.proceed(chunk.size() * kTileRows * product.vectors * kLanes<Vec<T>>)) return false;
        }
      }
    }
    return true;
  }

  /// The same, for rows `mine` of the weights, of a chunk that is flat: it is the only one.
  bool flat_weight_gradient(int s, bool input, Range mine, const Chunk& chunk, Team& team) {
    const StageInfo<T>& stage = cell_.stage[s];
    const T *left[kMostDirectRows], *right[kMostDirectRows];
    for (Index r = 0, t = chunk.t0; r < chunk.size(); ++r) {
      while (r >= chunk.row(t + 1, 0)) ++t;
      const Index b = chunk.rows.begin + r - chunk.row(t, 0);
      left[r] = input ? seq_.x(t)[b] : stage.operand >= 0 ? slot(t, stage.operand)[b] : state_before(t, 0)[b];
      right[r] = flat_row(s, input, r);
    }
    const OuterProduct<T> whole = outer_product(s, input, 0, 0, 1, chunk);
    const FlatOuterProduct<T> product{
        left, right, chunk.size(), flat_stride(stage), whole.to + stage.first_gate * H_, whole.to_stride};
    product.run(mine);
    return team.proceed(chunk.size() * mine.size() * flat_stride(stage));
  }

  /// What does not depend on the left side, for some gates of a block of units.
  OuterProduct<T> outer_product(int s, bool input, Index block, int first_gate, int end_gate,
                                const Chunk& chunk) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const Index vectors = blocks.used(block), lanes = blocks.width(block) / vectors;
    OuterProduct<T> product;
    product.right = dsums(s, block, 0);
    product.right_step = stage.sums(seq_.sizes) * blocks.width(block);
    product.depth = chunk.size();
    product.to = gradients_.of[input            ? WeightGradients<T>::kernel
                               : stage.projects ? WeightGradients<T>::projection
                                                : WeightGradients<T>::recurrent];
    product.to_stride = stage.projects ? stage.units(seq_.sizes) : seq_.G * H_;
    product.vectors = (end_gate - first_gate) * vectors;
    product.add = chunk.add;
    Index v = 0;
    for (int g = first_gate; g < end_gate; ++g)
      for (Index n = 0; n < vectors; ++n, ++v) {
        const Index unit = blocks.first(block) + n * lanes;
        product.right_offset[v] = (stage.product_sum(input, g, seq_.sizes) * vectors + n) * lanes;
        product.to_offset[v] = (stage.first_gate + g) * H_ + unit;
        product.lanes[v] = stage.units(seq_.sizes) - unit;
      }
    return product;
  }

  /// db and the gradients of the parameters and gains.
  template <class V>
  void bias_gradient(int s, const Chunk& chunk, Index block) const {
    constexpr int L = kLanes<V>, most = 2 * kTileVectors;
    alignas(64) T totals[6 * kTileVectors * L];  // a peephole LSTM has 23
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const Index vectors = blocks.used(block), count = stage.sums(seq_.sizes) * vectors;
    const auto put = [&](int of, T* to, Index column) {  // sum `of` to row `column` of as many as there are units
      for (Index n = 0; to && n < vectors; ++n) {
        const Index unit = blocks.first(block) + n * L;
        T* const at = to + column * H_ + unit;
        const V sum = load<V>(totals + (of * vectors + n) * L);
        store(at, chunk.add ? add(load<V>(at, H_ - unit), sum) : sum, H_ - unit);
      }
    };
    for (Index first = 0; first < count; first += most)
      with_constant<most>(smaller(most, count - first), [&](auto n) {
        const T* row = dsums(s, block, 0) + first * L;
        V sum[n()];
        for (V& of : sum) of = zero<V>();
        for (Index r = 0; r < chunk.size(); ++r, row += count * L)
          for (int i = 0; i < n(); ++i) sum[i] = add(sum[i], load<V>(row + i * L));
        for (int i = 0; i < n(); ++i) store(totals + (first + i) * L, sum[i]);
      });
    using Of = WeightGradients<T>;
    if (stage.normalizes) {
      put(1, gradients_.of[Of::cell_norm], 0);
      return put(0, gradients_.of[Of::cell_norm], 1);
    }
    for (int g = 0; g < stage.gates; ++g) {
      for (int row = 0; row < cell_.traits.bias_rows; ++row)
        put(row == 0 ? g : stage.recurrent_sum(g), gradients_.of[Of::bias], row * seq_.G + stage.first_gate + g);
      for (bool input : {true, false})
        if (stage.normalized(seq_.sizes))
          put(stage.gain_sum(input, g), gradients_.of[Of::layer_norm], (input ? 0 : seq_.G) + stage.first_gate + g);
    }
    for (int p = 0; p < stage.parameters; ++p) put(stage.accumulators + p, gradients_.of[Of::parameters], p);
  }

  const Backward<T>& call_;
  const Sequence<T>& seq_;
  const CellInfo<T>& cell_;
  const Index I_, H_;
  const Index chunk_rows_;
  const bool fetches_;     ///< the weights that follow, which are too many for a cache
  const Index d_stride_;   ///< padded, so that the rows of two threads share no cache line
  T* d_[kMaxStates];       ///< gradients of the states, [row, H]
  T* doperand_ = nullptr;  ///< gradient of what a second stage's U multiplies, or what that stage leaves to the first
  T* dc_ = nullptr;        ///< gradient of c through its normalization
  T* normalized_row_ = nullptr;  ///< of each thread, see undo_normalization
  T* x_columns_;
  T* operand_columns_[kMaxStages];
  T* dsums_[kMaxStages];
  RunList runs_[kMaxStages][2][kTileVectors];  ///< of a stage, with WT at 1 and with UT at 0, of a gate
  T* flat_[kMaxStages][2] = {};                ///< as runs_; see flat()
  Stretch* stretches_[kMaxStages] = {};
  WeightGradients<T> gradients_;
  bool by_units_;
};

/// The whole batch. Where there are enough rows, and rows times steps, it is cut into parts, each with weight gradients
/// of its own, which are added in order at the end: no thread waits for another. (On the small layers of the benchmarks
/// that halved the time on two cores.) Otherwise all threads work on all rows together. Which, and into how many parts,
/// depends on the sizes alone.
template <class T>
class BackwardPass {
  // Rows of a part at least: of two parts, of more of them, and where recurrent weights larger than kCached are read
  // for every step (3 % of a GRU with 256 units) and there are enough for four parts.
  static constexpr Index kHalfRows = 8, kPartRows = 6, kLargePartRows = 12, kMostParts = 32, kCached = Index(1) << 19;
  // Of one part's weight gradients, and of those of all parts; and how many cost as much as the barriers of a step.
  static constexpr Index kMostPartBytes = 8'000'000, kMostBytes = Index(64) << 20, kBarrierBytes = Index(1) << 16;
  static constexpr Index kRowsAtOnce = BackwardRows<T>::kRowsAtOnce;
  // Rows times steps of a chunk: amortises loading and storing dW and dU; more of them where all threads share those.
  static constexpr Index kChunkRows = 256, kSharedChunkRows = 512;

 public:
  BackwardPass(const PackedView<T>& weights, const Backward<T>& call, const Processors& with, void* workspace)
      : BackwardPass(weights, call, with, Arena(workspace)) {}

  Index workspace() const { return workspace_; }

  bool run() {
    seq_.prepare();
    const WeightGradients<T> total = gradients_of(0);
    return run_team(division_.threads, call_.interrupt, [&](Team& team) {
      Team alone = team.alone();
      Arena arena(workers_ + (parts_ > 1 ? team.index * bytes_per_worker_ : 0));
      BackwardRows<T> worker(seq_, call_, rows_, chunk_rows_, sharing_, arena);
      const Range mine = parts_ > 1 ? part(parts_, team.index, team.size) : Range{0, 1};
      for (Index i = mine.begin; i < mine.end; ++i) {
        const Range rows = seq_.schedule.share(i, parts_);
        const Index groups = larger(1, ceil_div(rows.size(), rows_));
        for (Index g = 0; g < groups; ++g) {
          const Range group = part(rows.size(), g, groups);
          if (!worker.run({rows.begin + group.begin, rows.begin + group.end}, gradients_of(i), g > 0,
                          division_.by_units, parts_ > 1 ? alone : team))
            return;
        }
      }
      if (!team.barrier()) return;
      for (Index i = 1; i < parts_; ++i) {
        const WeightGradients<T> term = gradients_of(i);
        for (int j = 0; j < WeightGradients<T>::count; ++j) {
          const Range share = part(sizes_[j], team.index, team.size);
          for (Index k = share.begin; k < share.end; ++k) total.of[j][k] += term.of[j][k];
        }
      }
    });
  }

 private:
  BackwardPass(const PackedView<T>& weights, const Backward<T>& call, const Processors& with, Arena arena)
      : seq_(weights, Pass::backward, call, arena), call_(call), sizes_(weight_sizes(seq_)) {
    const Index H = seq_.H;
    if (!call.dbias) sizes_[WeightGradients<T>::bias] = 0;
    for (Index size : sizes_) elements_ += size;
    const bool large = sizes_[1] * Index(sizeof(T)) > kCached && call.batch >= 4 * kLargePartRows;
    const Index least = large ? kLargePartRows : call.batch < 4 * kPartRows ? kHalfRows : kPartRows;
    const Index bytes = elements_ * Index(sizeof(T));
    // Each part writes gradients of its own and they are added: not worth it for less than a chunk of rows times steps
    // (up to 3 times the time of a GRU with 256 units and 32 rows), but that two parts have no barriers.
    const auto pays = [&](Index parts) {
      return parts * kChunkRows <= call.batch * call.time || (parts == 2 && bytes <= call.time * kBarrierBytes);
    };
    // A power of two, as most numbers of threads are: two threads take as long for three parts as for four such parts.
    parts_ = 1;
    while (bytes <= kMostPartBytes && 2 * parts_ * least <= call.batch && 2 * parts_ <= kMostParts &&
           2 * parts_ * bytes <= kMostBytes && pays(2 * parts_))
      parts_ *= 2;
    const Index part_rows = ceil_div(call.batch, parts_);
    rows_ = larger(1, ceil_div(part_rows, larger(1, ceil_div(part_rows, kRowsAtOnce))));
    chunk_rows_ = rows_ * larger(1, smaller((parts_ > 1 ? kChunkRows : kSharedChunkRows) / rows_, call.time));
    division_ = parts_ > 1
                    ? Division{static_cast<int>(smaller(with.threads, parts_)), false}
                    : divide(with, smaller(rows_, call.batch), call.time, seq_.I + larger(H, seq_.width(0)), seq_.G * H,
                             output_blocks<T>(H).count(), (seq_.G + 1) * H, 2 * seq_.cell.stages, sizeof(T));

    partial_ = arena.take<T>((parts_ - 1) * elements_);
    Arena counter(nullptr);
    sharing_ = {parts_ > 1 ? 1 : division_.threads, with.cached};
    BackwardRows<T>(seq_, call, rows_, chunk_rows_, sharing_, counter);
    bytes_per_worker_ = counter.size();
    workers_ = arena.take<char>(bytes_per_worker_ * (parts_ > 1 ? division_.threads : 1));
    workspace_ = arena.size();
  }

  WeightGradients<T> gradients_of(Index part) const {
    if (part == 0)
      return {{call_.dkernel, call_.drecurrent_kernel, call_.dbias, call_.dparameters, call_.dprojection,
               call_.dlayer_norm, call_.dcell_norm}};
    WeightGradients<T> gradients;
    T* next = partial_ + (part - 1) * elements_;
    for (int j = 0; j < WeightGradients<T>::count; next += sizes_[j++]) gradients.of[j] = sizes_[j] ? next : nullptr;
    return gradients;
  }

  Sequence<T> seq_;
  const Backward<T>& call_;
  std::array<Index, WeightGradients<T>::count> sizes_;  ///< elements of each
  Index elements_ = 0;                                  ///< of all together
  Index parts_;
  Index rows_, chunk_rows_;  ///< at once, of a part
  Division division_;
  Processors sharing_;  ///< that share a worker's memory
  Index workspace_, bytes_per_worker_;
  T* partial_;
  char* workers_;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
