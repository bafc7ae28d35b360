// The forward pass, generic over the cell. Per step: sums = b + x.W + h_prev.U, one chain; the cell turns them into h,
// in the fused kernels while they are in registers, in the general ones (any activations, factors, cells) from a buffer
// as large as a tile: their products are compiled once for all cells.
#pragma once

#include "direct.hpp"
#include "normalization.hpp"
#include "sequence.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

template <class T>
class ForwardPass {
  static constexpr Index kRowsAtOnce = kMostRowsByUnits;  // rows that go through all steps together: weights are reused
  static constexpr Index kTileSums = kTileVectors * kLanes<Vec<T>>;
  static constexpr Index kPieceDepth = Following<T>::kPieceDepth;
  // Rows of x.W computed at once where a step has few rows, and where no cache holds the weights either.
  static constexpr Index kHoistedRows = 8 * kTileRows, kMostHoistedRows = 32 * kTileRows;

 public:
  ForwardPass(const PackedView<T>& weights, const Forward<T>& call, const Processors& with, void* workspace)
      : ForwardPass(weights, call, with, Arena(workspace)) {}

  Index workspace() const { return workspace_; }

  bool run() {
    seq_.prepare();
    return run_team(division_.threads, call_.interrupt, [&](Team& team) {
      const Range mine = seq_.schedule.share(team.index, team.size);
      if (division_.by_units) {
        if (through_time({0, call_.batch}, team)) finish(mine);
      } else {
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
  ForwardPass(const PackedView<T>& weights, const Forward<T>& call, const Processors& with, Arena arena)
      : call_(call),
        seq_(weights, Pass::forward, call, arena),
        cell_(seq_.cell),
        I_(seq_.I),
        H_(seq_.H),
        cached_(with.cached),
        division_(divide(with, call.batch, call.time, I_ + larger(H_, seq_.width(0)), seq_.G * H_,
                         cell_.fewest_blocks(seq_.sizes),
                         (cell_.stages + (seq_.sizes.normalized ? 2 * seq_.G : 0)) * H_, cell_.stages, sizeof(T))) {
    const Index B = call.batch;
    if (!call.tape && (!call.y || !is_kept_in_y())) h_ = arena.take<T>(2 * B * seq_.width(0));
    for (int s = 1; s < seq_.states; ++s)
      if (!call.tape) carried_[s] = arena.take<T>(B * H_);
    if (!call.tape && (cell_.stages > 1 || seq_.sizes.normalized)) slots_ = arena.take<T>(B * seq_.tape_slots() * H_);
    const Index fewest_rows = division_.by_units ? B : B / division_.threads;
    if (hoisted_steps(fewest_rows) > 0)
      for (int s = 0; s < cell_.stages; ++s) {
        if (!is_hoisted(cell_.stage[s])) continue;
        hoisted_size_[s] = hoisted_rows() * cell_.stage[s].accumulators * seq_.panels.padded_units;
        hoisted_[s] = arena.take<T>((division_.by_units ? 1 : division_.threads) * hoisted_size_[s]);
      }
    if (gates_apart()) {
      scaled_rows_ = division_.by_units ? B : smaller(B, kRowsAtOnce);
      scaled_size_ = scaled_rows_ * seq_.G * (I_ + larger(H_, seq_.width(0)));
      scaled_ = arena.take<T>(division_.threads * scaled_size_);
    }
    const Index most_rows = smaller(B, kRowsAtOnce);  // shares of a masked batch differ
    fetches_ = streams() && most_rows > kTileRows;    // beside one tile the processor's own fetching is as good
    if (fetches_ && I_ + larger(H_, seq_.width(0)) > kPieceDepth) {
      partial_size_ = most_rows * kTileSums;
      partial_ = arena.take<T>(division_.threads * partial_size_);
    }
    workspace_ = arena.size();
  }

  /// What a cell sees of step k.
  CellRows<T> step(Index k) const {
    CellRows<T> v;
    v.units = H_;
    v.outputs = seq_.sizes.outputs;
    v.parameters = seq_.panels.parameters;
    v.parameter_stride = seq_.panels.padded_units;
    v.activations = seq_.activations;
    v.factors = seq_.recurrent_factors();
    v.zoneout = nullptr;
    if (call_.tape)
      v.slots = seq_.tape_slot(call_.tape, k, 0);
    else if (slots_)
      v.slots = {slots_, seq_.tape_slots() * H_};
    if (call_.tape || !is_kept_in_y()) v.y = {seq_.schedule, call_.y, call_.y_batch_stride, call_.y_time_stride, k};
    for (int s = 0; s < seq_.states; ++s) {
      v.next[s] = state_rows(s, k);
      const Rows<T> before = k > 0 ? state_rows(s, k - 1) : Rows<T>{};
      v.prev[s] = k > 0 ? Rows<const T>{before.data, before.stride} : seq_.initial_state(s);
    }
    return v;
  }
  /// Whether, where no tape keeps it, y can be what keeps state 0 from step to step.
  bool is_kept_in_y() const { return !seq_.schedule.masked() && cell_.traits.hidden == 1; }
  /// Where state s after step k is kept.
  Rows<T> state_rows(int s, Index k) const {
    if (call_.tape) return seq_.tape_slot(call_.tape, k, seq_.state_slot(s));
    if (!seq_.schedule.masked()) {
      if (s == 0 && call_.y && is_kept_in_y()) return {call_.y + k * call_.y_time_stride, call_.y_batch_stride};
      if (k == call_.time - 1 && call_.final_state[s]) return {call_.final_state[s], seq_.width(s)};
    }
    return {s == 0 ? h_ + (k & 1) * call_.batch * seq_.width(0) : carried_[s], seq_.width(s)};
  }

  /// All steps of some rows: all units, or with a team that divides the units this thread's share. False: stopped.
  bool through_time(Range all, Team& team) {
    const Index steps = seq_.schedule.steps(all);
    const bool overlaps = sums_ahead(all.size());
    const Index together = overlaps ? kStepsAhead : hoisted_steps(all.size());
    CallRows<const T> zoneout[kMaxStates];
    for (Index k = 0, hoisted_row = 0, half = 0; k < steps; ++k, ++hoisted_row) {
      if (hoisted_row == together) {  // k % together == 0
        hoisted_row = 0;
        half = overlaps ? kStepsAhead - half : 0;
      }
      const Range rows{all.begin, all.begin + seq_.schedule.active(all, k)};
      CellRows<T> at = step(k);
      for (int s = 0; seq_.zoneout() && s < kMaxStates; ++s) zoneout[s] = seq_.zoneout(s, k);
      if (seq_.zoneout()) at.zoneout = zoneout;
      Standard<T> standards[2][kRowsAtOnce];  // of x.W and of the product with U, by row
      for (int s = 0; s < cell_.stages; ++s) {
        const StageInfo<T>& stage = cell_.stage[s];
        const Blocks<T> blocks = stage.blocks(seq_.sizes);
        const Range mine = divided(blocks.count(), team);
        const bool normalizes = stage.normalizes || stage.normalized(seq_.sizes);
        const Walk walk(mine, normalizes ? 0 : k);
        const auto to_fetch = seq_.ahead(rows.size(), walk.direction() * blocks.width(0), call_.y_time_stride);
        at.slots_ahead = call_.tape ? to_fetch.slots : 0;
        at.y_ahead = to_fetch.output;
        if (normalizes) {
          if (!run_normalized(s, at, k, rows, mine, standards, team)) return false;
          continue;
        }
        T* const hoisted = together && is_hoisted(stage) ? hoisted_here(s, team) : nullptr;
        if (hoisted && hoisted_row == 0 && (k == 0 || !overlaps)) {
          if (seq_.direct)
            sum_inputs_directly(s, rows, mine, hoisted);
          else
            hoist(s, k, smaller(together, call_.time - k), together, rows, mine, hoisted);
        }
        T* const scaled = gates_apart() ? scaled_ + team.index * scaled_size_ : nullptr;
        if (scaled) scale_operands(stage, at, k, rows, scaled);
        const T *x[kRowsAtOnce], *operand[kRowsAtOnce];
        set_rows(stage, at, k, rows, scaled, x, operand);
        const Index ahead = k - hoisted_row + together;  // the first of the steps whose sums grow now
        const Range ahead_depth = part(I_, hoisted_row, kStepsAhead);
        const bool looks_ahead = overlaps && stage.sees_x() && ahead < steps && ahead_depth.size() > 0;
        for (Index t = 0; looks_ahead && t < together; ++t)
          x[t] = call_.x + smaller(ahead + t, steps - 1) * call_.x_time_stride + rows.begin * call_.x_batch_stride;
        if (seq_.direct) {
          Index to[kMostDirectRows];
          for (Index b = 0; b < rows.size(); ++b) to[b] = b * together + k;
          sum_directly(s, false, rows.size(), mine, operand, to, hoisted);
        }
        for (Index i = 0, together_here; i < walk.size(); i += together_here) {
          const Index block = walk.at(i);
          const Index width = blocks.width(block);
          const Index work = rows.size() * (stage.inputs(seq_.sizes) + stage.depth(seq_.sizes)) * stage.gates * width;
          const bool fused = stage.fused && !scaled && !at.zoneout && !fetches_;
          together_here = fused ? blocks_at_once(blocks, walk, i, work) : 1;
          const Patch patch{rows.begin,    rows.size(), blocks.first(block), blocks.used(block), blocks.is_half(block),
                            together_here, walk.back};
          SumInputs<T> from = inputs_of(s, patch.unit);
          from.x = x;
          from.operand = operand;
          from.hoisted_stride = together * stage.accumulators * width;
          from.hoisted_block_stride = hoisted_rows() * stage.accumulators * width;
          if (hoisted) {
            from.hoisted = hoisted + hoisted_offset(stage, patch.unit, width, half + hoisted_row);
            from.of_inputs = {0, 0};
            if (seq_.direct) from.of_units = {0, 0};
          }
          if (fetches_)
            fetch_or_sum_pieces(stage, patch, width, partial_ ? partial_ + team.index * partial_size_ : nullptr,
                                inputs_of(s, blocks.first(walk.following(i))), from);
          if (looks_ahead) {
            from.ahead = hoisted + hoisted_offset(stage, patch.unit, width, kStepsAhead - half);
            from.ahead_depth = ahead_depth;
            from.ahead_tiles = ceil_div(smaller(together, steps - ahead), kTileAhead);
          }
          if (fused)
            stage.fused(from, at, patch);
          else
            for_row_tiles({0, rows.size()}, [&](Index first, Index height) {
              Tile sums;
              store_tile_sums(stage, from, first, height, patch.half, patch.vectors, gates_apart(), &sums.at[0]);
              stage.forward(at, patch, first, height, sums.at);
            });
          if (!team.proceed(together_here * work)) return false;
        }
        const bool ends = k + 1 == steps && s + 1 == cell_.stages && !finishes();
        if (division_.by_units && !ends && !team.barrier()) return false;
      }
    }
    return true;
  }

  /// Bytes of weights that stay in caches, of all that a thread reads in a step.
  Index cached_here() const { return cached_ * (division_.by_units ? division_.threads : 1); }
  /// Whether they are more than that.
  bool streams() const { return !seq_.direct && seq_.panels.size > cached_here(); }

  /// Sums [row][sum][vector].
  struct Tile {
    alignas(64) T at[kTileRows * kTileSums];
  };
  Range divided(Index n, const Team& team) const {
    return division_.by_units ? part(n, team.index, team.size) : Range{0, n};
  }

  /// Set what is fetched while a block is summed: the panels of the block that follows in the same stage. If they are
  /// deep, sum all pieces but the last, and leave that to `from`.
  void fetch_or_sum_pieces(const StageInfo<T>& stage, const Patch& patch, Index columns, T* partial,
                           const SumInputs<T>& following, SumInputs<T>& from) const {
    const Index width = stage.gates * columns, inputs = from.of_inputs.size(), depth = inputs + from.of_units.size();
    const auto panel = [&](Index row) {  // rows of W, of U, and then those of what follows
      const SumInputs<T>& of = row < depth ? from : following;
      const Index r = row < depth ? row : row - depth;
      return r < inputs ? of.kernel + r * width : of.recurrent + (r - inputs) * width;
    };
    const Index pieces = partial ? ceil_div(depth, kPieceDepth) : 1;
    for (Index i = 0; i < pieces; ++i) {
      const Range piece = part(depth, i, pieces);
      from.of_inputs = {smaller(piece.begin, inputs), smaller(piece.end, inputs)};
      from.of_units = {larger(piece.begin - inputs, 0), larger(piece.end - inputs, 0)};
      const Index next_units = piece.end + from.of_inputs.size();
      from.next_kernel = Following<T>::of(panel(piece.end), from.of_inputs.size(), width, patch.rows);
      from.next_recurrent = Following<T>::of(panel(next_units), from.of_units.size(), width, patch.rows);
      if (i + 1 == pieces) return;
      for_row_tiles({0, patch.rows}, [&](Index first, Index height) {
        store_tile_sums(stage, from, first, height, patch.half, patch.vectors, gates_apart(),
                        partial + first * stage.accumulators * columns);
      });
      from.hoisted = partial;
      from.hoisted_stride = stage.accumulators * columns;
    }
  }

  /// A stage that normalizes, or whose products are normalized: those of all units have to be there before the cell.
  bool run_normalized(int s, const CellRows<T>& at, Index k, Range rows, Range mine,
                      Standard<T> (*standards)[kRowsAtOnce], Team& team) {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const auto run_cell = [&](auto&& sums_of) {
      for (Index block = mine.begin; block < mine.end; ++block) {
        const Patch patch{rows.begin, rows.size(), blocks.first(block), blocks.used(block), blocks.is_half(block), 1};
        for_row_tiles({0, rows.size()}, [&](Index first, Index height) {
          Tile sums;
          sums_of(patch, first, height, sums.at);
          stage.forward(at, patch, first, height, sums.at);
        });
      }
    };
    const auto standardize = [&](const auto& of, Index n, Standard<T>* to) {
      for (Index r = 0; r < rows.size(); ++r) to[r] = standard_of(of[rows.begin + r], n);
    };
    if (stage.normalizes) {
      standardize(cell_state(at), H_, standards[0]);
      run_cell([&](const Patch& patch, Index first, Index height, T* sums) {
        normalize_state(at, patch, first, height, standards[0], sums);
      });
    } else {
      if (s == 0)  // x.W of all stages is normalized as a whole
        for (int i = 0; i < cell_.stages; ++i)
          if (cell_.stage[i].sees_x() && !multiply(i, true, at, k, rows, team)) return false;
      if (!multiply(s, false, at, k, rows, team)) return false;
      if (division_.by_units && !team.barrier()) return false;
      if (s == 0) standardize(product(at, true), seq_.G * H_, standards[0]);
      standardize(product(at, false, stage.first_gate), stage.gates * H_, standards[1]);
      run_cell([&](const Patch& patch, Index first, Index height, T* sums) {
        normalize_products(s, at, patch, first, height, standards, sums);
      });
    }
    return !division_.by_units || team.barrier();
  }

  /// x.W (input) or operand.U for this thread's units of a stage, into its slots.
  bool multiply(int s, bool input, const CellRows<T>& at, Index k, Range rows, Team& team) {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const Range mine = divided(blocks.count(), team);
    T* const scaled = gates_apart() ? scaled_ + team.index * scaled_size_ : nullptr;
    if (scaled) scale_operands(stage, at, k, rows, scaled);
    const T *x[kRowsAtOnce], *operand[kRowsAtOnce];
    set_rows(stage, at, k, rows, scaled, x, operand);
    alignas(64) const T no_bias[kTileVectors * kLanes<Vec<T>>] = {};
    const Rows<T> to = product(at, input, stage.first_gate);
    for (Index block = mine.begin; block < mine.end; ++block) {
      const Index unit = blocks.first(block), vectors = blocks.used(block);
      SumInputs<T> from = inputs_of(s, unit);
      from.bias = no_bias;
      from.x = x;
      from.operand = operand;
      (input ? from.of_units : from.of_inputs) = {0, 0};
      for_row_tiles({0, rows.size()}, [&](Index first, Index height) {
        Tile sums;
        store_tile_sums(stage, from, first, height, blocks.is_half(block), vectors, gates_apart(), &sums.at[0]);
        with_vectors<T, 1>(blocks.is_half(block), 1, [&](auto vector, auto) {
          using V = decltype(vector);
          for (Index r = 0; r < height; ++r)
            for (int g = 0; g < stage.gates; ++g)
              for (Index n = 0; n < vectors; ++n) {
                const Index sum = r * stage.accumulators + (input ? g : stage.recurrent_sum(g)),
                            u = unit + n * kLanes<V>;
                store(to[rows.begin + first + r] + g * H_ + u, load<V>(sums.at + (sum * vectors + n) * kLanes<V>),
                      First<V>(H_ - u));
              }
        });
      });
      if (!team.proceed(rows.size() * (from.of_inputs.size() + from.of_units.size()) * stage.gates *
                        blocks.width(block)))
        return false;
    }
    return true;
  }

  /// Where x.W (input) or operand.U of a gate and those after it lie.
  Rows<T> product(const CellRows<T>& at, bool input, int gate = 0) const {
    return {at.slots.data + (seq_.product_slot(input) + gate) * H_, at.slots.stride};
  }
  /// c as the cell left it, before zoneout.
  Rows<const T> cell_state(const CellRows<T>& at) const {
    if (at.zoneout && at.zoneout[1]) return {at.slots.data + seq_.state_slot(1, true) * H_, at.slots.stride};
    return {at.next[1].data, at.next[1].stride};
  }

  /// to = b + gain n(x.W) + gain n(operand.U), as the cell sees it.
  void normalize_products(int s, const CellRows<T>& at, const Patch& patch, Index first, Index rows,
                          const Standard<T> (*standards)[kRowsAtOnce], T* to) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const T* const bias = seq_.panels.bias[s] + patch.unit * stage.accumulators;
    with_vectors<T, 1>(patch.half, 1, [&](auto vector, auto) {
      using V = decltype(vector);
      const Index sums = stage.accumulators * patch.vectors;
      for (Index r = 0; r < rows; ++r) {
        T* const row = to + r * sums * kLanes<V>;
        copy(bias, row, sums * kLanes<V>);
        for (bool input : {true, false}) {
          const Standard<T> standard = standards[!input][first + r];
          const T* const product_row = product(at, input, stage.first_gate)[patch.row + first + r];
          const T* const gain = seq_.panels.layer_norm + ((input ? 0 : seq_.G) + stage.first_gate) * H_;
          for (int g = 0; g < stage.gates; ++g)
            for (Index n = 0; n < patch.vectors; ++n) {
              const Index from = g * H_ + patch.unit + n * kLanes<V>;
              T* const sum = row + ((input ? g : stage.recurrent_sum(g)) * patch.vectors + n) * kLanes<V>;
              const First<V> valid = H_ - (patch.unit + n * kLanes<V>);
              store(sum, normalized<V>(product_row + from, gain + from, standard, load<V>(sum), valid));
            }
        }
      }
    });
  }
  /// to = bias + gain n(c).
  void normalize_state(const CellRows<T>& at, const Patch& patch, Index first, Index rows, const Standard<T>* standards,
                       T* to) const {
    const T *gain = seq_.panels.cell_norm, *bias = gain + H_;
    with_vectors<T, 1>(patch.half, 1, [&](auto vector, auto) {
      using V = decltype(vector);
      for (Index r = 0; r < rows; ++r)
        for (Index n = 0; n < patch.vectors; ++n, to += kLanes<V>) {
          const Index unit = patch.unit + n * kLanes<V>;
          const First<V> valid = H_ - unit;
          store(to, normalized<V>(cell_state(at)[patch.row + first + r] + unit, gain + unit, standards[first + r],
                                  load<V>(bias + unit, valid), valid));
        }
    });
  }
  /// b + gain n(a).
  template <class V>
  static FASTRNN_INLINE V normalized(const T* a, const T* gain, const Standard<T>& s, const V& b, First<V> valid) {
    const V n = mul(sub(load<V>(a, valid), broadcast<V>(s.mean)), broadcast<V>(s.scale));
    return fma(load<V>(gain, valid), n, b);
  }

  /// How many blocks from number i of a walk on are as wide as that one, as far as they are little work together.
  static Index blocks_at_once(const Blocks<T>& blocks, const Walk& walk, Index i, Index work_of_one) {
    constexpr Index kWork = 10'000'000;  // 0.1 ms
    const Index block = walk.at(i), full = blocks.full();
    const Index alike = block >= full ? 1 : walk.back ? walk.size() - i : smaller(walk.blocks.end, full) - block;
    return alike * work_of_one <= kWork ? alike : smaller(alike, larger(1, kWork / work_of_one));
  }

  /// What the sums of a block of units, from unit `first` on, are made of beside their rows.
  SumInputs<T> inputs_of(int s, Index first) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Index inputs = stage.inputs(seq_.sizes), depth = stage.depth(seq_.sizes);
    SumInputs<T> from;
    from.hoisted = from.ahead = nullptr;
    from.bias = seq_.panels.bias[s] + first * stage.accumulators;
    from.kernel = seq_.panels.kernel[s] + first * inputs * stage.gates;
    from.inputs = inputs;
    from.recurrent = seq_.panels.recurrent[s] + first * depth * stage.gates;
    from.units = depth;
    from.of_inputs = {0, inputs};
    from.of_units = {0, depth};
    from.next_kernel = from.next_recurrent = {};
    from.x_gate_stride = I_;
    from.operand_gate_stride = depth;
    return from;
  }
  /// What W and U multiply in each row.
  void set_rows(const StageInfo<T>& stage, const CellRows<T>& at, Index k, Range rows, const T* scaled, const T** x_row,
                const T** operand_row) const {
    const InputRows<T> x = seq_.x(k);
    const Rows<const T> operand = operand_of(stage, at);
    for (Index b = 0; b < rows.size(); ++b) {
      x_row[b] = scaled ? scaled + b * stage.gates * I_ : x[rows.begin + b];
      operand_row[b] =
          scaled ? scaled_operands(stage, scaled) + b * stage.gates * stage.depth(seq_.sizes) : operand[rows.begin + b];
    }
  }
  Rows<const T> operand_of(const StageInfo<T>& stage, const CellRows<T>& at) const {
    return stage.operand >= 0 ? Rows<const T>{at.slots.data + stage.operand * H_, at.slots.stride} : at.prev[0];
  }

  T* hoisted_here(int s, const Team& team) const {
    return hoisted_[s] + (division_.by_units ? 0 : team.index * hoisted_size_[s]);
  }
  bool gates_apart() const { return call_.input_factors || call_.recurrent_factors; }
  /// For how many steps x.W is computed at once: a step with fewer rows than a tile is high would read all of W for
  /// little work, and one with fewer than three such tiles if no cache holds the weights (LSTM with 1024 units and 8
  /// rows: 24 % less time). 0: x.W is part of each step's own product. For all steps of weights where they lie.
  Index hoisted_steps(Index rows) const {
    if (seq_.direct) return call_.time;
    constexpr Index kEnough = kTileRows, kEnoughStreamed = 3 * kTileRows;
    static_assert(kEnoughStreamed <= kRowsAtOnce / 2, "where run() cuts a thread's rows, no part has fewer");
    if (rows == 0 || rows >= (streams() ? kEnoughStreamed : kEnough) || call_.time <= 1 || seq_.schedule.masked() ||
        gates_apart() || call_.ids || seq_.sizes.normalized)
      return 0;
    return smaller(hoisted_rows() / rows, call_.time);
  }
  /// Whether each step of one row also does its part of x.W of later steps. It pays (3 to 11 % of the time) where
  /// x.W is not much less work than h.U, a thread's weights are too many for the first level of its cache, and all
  /// weights not too many for the last one; not where W would drive a share of U out of the second level (a GRU with
  /// 512 units and 2 MiB for each thread: 13 to 30 % slower), nor where panels are multiplied in pieces.
  bool sums_ahead(Index rows) const {
    constexpr Index kFewest = 1 << 17, kMost = 1 << 23;
    static_assert(2 * kStepsAhead <= kHoistedRows, "two of them are kept");
    const Index row = seq_.G * H_ * Index(sizeof(T)), bytes = (I_ + seq_.width(0)) * row;
    if (seq_.width(0) * row <= cached_here() && bytes > cached_here()) return false;
    return kSumsAhead && rows == 1 && partial_size_ == 0 && I_ >= 2 * kStepsAhead && 2 * I_ > H_ &&
           call_.time >= 3 * kStepsAhead && hoisted_steps(1) > 0 && bytes > kFewest * division_.threads &&
           bytes <= kMost && cell_.stage[0].fused && !seq_.zoneout() && !seq_.direct;
  }
  /// With weights that are not packed all sums are made ahead of the cell.
  bool is_hoisted(const StageInfo<T>& stage) const { return seq_.direct || stage.sees_x(); }
  Index hoisted_rows() const {
    return seq_.direct ? call_.batch * call_.time : streams() ? kMostHoistedRows : kHoistedRows;
  }
  /// Where the sums of chunk row `row` and the block of units from `first` on lie.
  Index hoisted_offset(const StageInfo<T>& stage, Index first, Index width, Index row) const {
    return (first * hoisted_rows() + row * width) * stage.accumulators;
  }

  /// b + x.W of all steps, of weights where they lie, rows in the order [row of the batch][step].
  void sum_inputs_directly(int s, Range rows, Range mine, T* hoisted) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const T* x[kMostDirectRows];
    Index to[kMostDirectRows], count = 0;
    for (Index t = 0; t < call_.time; ++t) {
      const InputRows<T> x_t = seq_.x(t);
      for (Index b = 0; b < seq_.schedule.active(rows, t); ++b) {
        x[count] = x_t[rows.begin + b];
        to[count++] = b * call_.time + t;
      }
    }
    for (Index block = mine.begin; block < mine.end; ++block)
      for (Index r = 0; r < count; ++r) {
        const Index first = blocks.first(block), width = blocks.width(block);
        copy(seq_.panels.bias[s] + first * stage.accumulators, hoisted + hoisted_offset(stage, first, width, to[r]),
             width * stage.accumulators);
      }
    sum_directly(s, true, count, mine, x, to, hoisted);
  }

  /// hoisted += x.W (input) or operand.U of some rows of it, of weights where they lie.
  void sum_directly(int s, bool input, Index rows, Range mine, const T* const* left, const Index* to,
                    T* hoisted) const {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    const Stretch all{0, input ? stage.inputs(seq_.sizes) : stage.depth(seq_.sizes)};
    if (all.depth == 0) return;
    const Walk walk(mine, 0);
    for (Index block = mine.begin, alike; block < mine.end; block += alike) {
      alike = blocks_at_once(blocks, walk, block - mine.begin, 0);
      const Index first = blocks.first(block), width = blocks.width(block);
      T* row[kMostDirectRows];
      for (Index r = 0; r < rows; ++r) row[r] = hoisted + hoisted_offset(stage, first, width, to[r]);
      DirectProduct<T> product;
      product.matrix = matrix_of(stage, *seq_.direct, input);
      product.matrix.data += (stage.first_gate * H_ + first) * product.matrix.column_stride;
      product.stretches = &all;
      product.count = 1;
      product.groups = stage.gates;
      product.group_step = H_;
      product.columns = smaller(alike * width, stage.units(seq_.sizes) - first);
      for (int g = 0; g < stage.gates; ++g) product.to_group[g] = (input ? g : stage.recurrent_sum(g)) * width;
      product.vectors = blocks.used(block);
      product.block_step = hoisted_rows() * stage.accumulators * width;
      with_vectors<T, 1>(blocks.is_half(block), 1,
                         [&](auto vector, auto) { product.template run<decltype(vector)>(left, rows, row); });
    }
  }

  /// b + x.W of `steps` steps from t0, rows of a chunk in the order [row of the batch][step].
  void hoist(int s, Index t0, Index steps, Index stride, Range rows, Range mine, T* to) {
    const StageInfo<T>& stage = cell_.stage[s];
    const Blocks<T> blocks = stage.blocks(seq_.sizes);
    for (Index block = mine.begin; block < mine.end; ++block) {
      const Index first = blocks.first(block), width = blocks.width(block);
      const SumInputs<T> from = inputs_of(s, first);
      for (Index b = rows.begin; b < rows.end; ++b) {
        const Run<T> x{call_.x + t0 * call_.x_time_stride + b * call_.x_batch_stride, call_.x_time_stride, I_, 0};
        T* row[kMostHoistedRows];
        for (Index t = 0; t < steps; ++t) {
          row[t] = to + hoisted_offset(stage, first, width, (b - rows.begin) * stride + t);
          copy(from.bias, row[t], stage.accumulators * width);
        }
        with_vectors<T, 1>(blocks.is_half(block), 1, [&](auto vector, auto) {
          with_constant<kTileVectors>(stage.gates * blocks.used(block), [&](auto n) {
            multiply_runs<decltype(vector), n(), false>(&x, 1, 0, steps, from.kernel, row, 0, stage.gates * width,
                                                        true);
          });
        });
      }
    }
  }

  /// What each gate multiplies, [row][gate][I] and then [row][gate][H]: x and the operand times their factors.
  void scale_operands(const StageInfo<T>& stage, const CellRows<T>& at, Index k, Range rows, T* to) const {
    const auto scale_or_copy = [](const T* from, const T* factors, T* to, Index n) {
      if (factors)
        scale(from, factors, to, n);
      else
        copy(from, to, n);
    };
    const InputRows<T> x = seq_.x(k);
    const Index depth = stage.depth(seq_.sizes);
    for (Index b = rows.begin; b < rows.end; ++b)
      for (int g = 0; g < stage.gates; ++g) {
        const Index row = (b - rows.begin) * stage.gates + g;
        scale_or_copy(x[b], seq_.input_factors(b, stage.first_gate + g), to + row * I_, stage.inputs(seq_.sizes));
        scale_or_copy(operand_of(stage, at)[b],
                      !stage.sees_x() ? nullptr : seq_.recurrent_factors(b, stage.first_gate + g),
                      scaled_operands(stage, to) + row * depth, depth);
      }
  }
  template <class U>
  U* scaled_operands(const StageInfo<T>& stage, U* scaled) const {
    return scaled + scaled_rows_ * stage.gates * I_;
  }

  /// Whether anything is left to finish() for the threads that divide the units.
  bool finishes() const {
    bool all_there = !seq_.schedule.masked();
    for (int s = 0; s < seq_.states; ++s)
      all_there = all_there && (!call_.final_state[s] || state_rows(s, call_.time - 1).data == call_.final_state[s]);
    return !all_there;
  }
  /// The final states that were not written in place, and the outputs of masked steps.
  void finish(Range rows) const {
    const Schedule& schedule = seq_.schedule;
    for (int s = 0; s < seq_.states; ++s)
      for (Index r = rows.begin; call_.final_state[s] && r < rows.end; ++r) {
        const Index length = schedule.length(r);
        const T* from = seq_.initial_state(s)[r];
        if (length > 0) from = state_rows(s, length - 1)[r];
        T* const to = call_.final_state[s] + schedule.row(r) * seq_.width(s);
        if (from != to) copy(from, to, seq_.width(s));
      }
    for (Index r = rows.begin; schedule.masked() && call_.y && r < rows.end; ++r) {
      T* const y = call_.y + schedule.row(r) * call_.y_batch_stride;
      const auto fill = [&](Index begin, Index end, const T* from) {
        for (Index t = begin; t < end; ++t) copy(from, y + t * call_.y_time_stride, seq_.sizes.outputs);
      };
      Index t = 0;  // outputs before it are there
      for (Index k = 0; k < schedule.length(r); ++k) {
        const Index at = schedule.step(r, k), end = at + schedule.outputs(r, k);
        fill(t, at, seq_.zeros());
        fill(at + 1, end, y + at * call_.y_time_stride);
        t = end;
      }
      fill(t, call_.time, seq_.zeros());
    }
  }

  const Forward<T>& call_;
  Sequence<T> seq_;
  const CellInfo<T>& cell_;
  const Index I_, H_;
  const Index cached_;  ///< see Processors
  const Division division_;
  Index workspace_;
  T* h_ = nullptr;               ///< h of even and odd steps, where it is kept nowhere else
  T* carried_[kMaxStates] = {};  ///< the other states
  T* slots_ = nullptr;
  T* hoisted_[kMaxStages] = {};
  Index hoisted_size_[kMaxStages] = {};
  bool fetches_;          ///< the panels that follow: the weights are too many for a cache, the rows for one tile
  T* partial_ = nullptr;  ///< a thread's sums of the first pieces of panels
  Index partial_size_ = 0;
  T* scaled_ = nullptr;  ///< a thread's operands times their factors, see scale_operands
  Index scaled_size_ = 0, scaled_rows_ = 0;
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
