// How weights and gradients of the sums lie in memory as panels (see gemm.hpp), and the packing of weights.
#pragma once

#include "stages.hpp"
#include "team.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// Where the packed weights of each stage begin.
///   forward   bias [block][sum][N], kernel [block][I][gate][N], recurrent [block][H][gate][N]
///   backward  kernel WT [output block of I][k][N], recurrent UT [output block of H][k][N], with k over the gates and
///             units in the order in which the gradients of the sums lie: (block, gate, unit in block)
/// and, in both, the cell's parameters [parameter][unit] and what layer normalization has.
template <class T>
struct Panels {
  T* bias[kMaxStages];
  T* kernel[kMaxStages];
  T* recurrent[kMaxStages];
  T* parameters;
  T* layer_norm;       ///< [2, G*H]
  T* cell_norm;        ///< [2, H]
  Index padded_units;  ///< as many whole vectors as units need
  Index size;          ///< bytes

  /// `direct`: W and U are read where they lie, and are not among the panels.
  Panels(const CellInfo<T>& cell, Pass pass, const Sizes& n, void* base, bool direct = false)
      : padded_units(output_blocks<T>(n.units).padded()) {
    Arena arena(base);
    for (int s = 0; s < cell.stages; ++s) {
      const StageInfo<T>& stage = cell.stage[s];
      const Index units = stage.units(n), columns = stage.blocks(n).padded();
      const auto size = [&](Index rows) {
        if (direct) return Index(0);
        return stage.gates * (pass == Pass::forward ? rows * columns : units * output_blocks<T>(rows).padded());
      };
      bias[s] = pass == Pass::forward ? arena.take<T>(stage.accumulators * columns) : nullptr;
      kernel[s] = arena.take<T>(size(stage.inputs(n)));
      recurrent[s] = arena.take<T>(size(stage.depth(n)));
    }
    parameters = arena.take<T>(cell.traits.parameters * padded_units);
    layer_norm = arena.take<T>(n.normalized ? 2 * cell.traits.gates * n.units : 0);
    cell_norm = arena.take<T>(cell.traits.cell_norm ? 2 * n.units : 0);
    size = arena.size();
  }
};

/// Squares next to each other in the source that are transposed one after the other: their rows share cache lines,
/// which rows 4096 bytes apart soon push out of the first level.
constexpr Index kAhead = 4;

/// A whole vector of a panel. Past the caches (AVX-512) where panels are too many for any: lines that are written there
/// are read before. (LSTM with 2048 units: 5 to 9 instead of 12 to 17 ms.)
template <bool past_caches, class V>
FASTRNN_INLINE void put(Scalar<V>* to, const V& v) {
  if constexpr (past_caches)
    stream(to, v);
  else
    store(to, v);
}

/// to[c][r] = from[r][c] for a square of as many rows and columns as a vector has lanes. Where panels are too many for
/// any cache, what comes after kAhead squares is fetched.
template <bool past_caches, class V>
FASTRNN_INLINE void transpose(const Scalar<V>* from, Index from_stride, Scalar<V>* to, Index to_stride) {
  constexpr int L = kLanes<V>;
  TransposableBlock<V> block;
  for (int r = 0; r < L; ++r) block.packet[r] = load<V>(from + r * from_stride);
  for (int r = 0; past_caches && r < L; ++r) __builtin_prefetch(from + r * from_stride + kAhead * L, 0, 2);
  transpose(block);
  for (int c = 0; c < L; ++c) put<past_caches>(to + c * to_stride, block.packet[c]);
}

/// Rows of a matrix, of each the columns from first[g] on for every g < n, as vectors `width` lanes wide in all; zeros
/// from `valid` on. To [row][g][width].
template <bool past_caches, class T>
void pack_rows(const MatrixView<T>& source, Index rows, const Index* first, Index n, Index valid, Index width, T* to) {
  using V = Vec<T>;
  constexpr Index L = kLanes<V>;
  const bool by_vectors = source.column_stride == 1 && width % L == 0;
  Index done = 0;                                                  // rows
  if (source.row_stride == 1 && valid == width && width % L == 0)  // as PyTorch has its weights
    for (; done + L <= rows; done += smaller(kAhead * L, (rows - done) / L * L))
      for (Index g = 0; g < n; ++g)
        for (Index u = 0; u < width; u += L)
          for (Index k = done; k < done + kAhead * L && k + L <= rows; k += L)
            transpose<past_caches, V>(source.data + k + (first[g] + u) * source.column_stride, source.column_stride,
                                      to + (k * n + g) * width + u, n * width);
  to += done * n * width;
  for (Index k = done; k < rows; ++k)
    for (Index g = 0; g < n; ++g, to += width) {
      const T* const from = source.data + k * source.row_stride + first[g] * source.column_stride;
      if (by_vectors && width == kLanes<V>)
        put<past_caches>(to, load<V>(from, First<V>(valid)));
      else if (by_vectors)
        for (Index u = 0; u < width; u += kLanes<V>)
          put<past_caches>(to + u, load<V>(from + u, First<V>(larger(valid - u, 0))));
      else
        for (Index u = 0; u < width; ++u) to[u] = u < valid ? from[u * source.column_stride] : T(0);
    }
}

/// What a stage multiplies x by, or its operand.
template <class T>
const MatrixView<T>& matrix_of(const StageInfo<T>& stage, const Weights<T>& w, bool input) {
  return input ? w.kernel : stage.projects ? w.projection : w.recurrent_kernel;
}

/// One unit block of some of the `depth` rows of W or U: from the gates' columns of `source` to [k][gate][N], zeros
/// where there is no unit.
template <bool past_caches, class T>
void pack_block(const StageInfo<T>& stage, MatrixView<T> source, Index depth, Range rows, const Sizes& n, Index block,
                T* panel) {
  const Blocks<T> blocks = stage.blocks(n);
  Index first[kTileVectors];
  for (int g = 0; g < stage.gates; ++g) first[g] = (stage.first_gate + g) * n.units + blocks.first(block);
  source.data += rows.begin * source.row_stride;
  pack_rows<past_caches>(source, rows.size(), first, stage.gates, blocks.valid(block), blocks.width(block),
                         panel + (blocks.first(block) * depth + rows.begin * blocks.width(block)) * stage.gates);
}

/// One output block of WT or UT, of what the unit blocks `of` multiply: from rows of `source` to [k][N], zeros where
/// there is no row.
template <bool past_caches, class T>
void pack_transposed_block(const StageInfo<T>& stage, const MatrixView<T>& source, Index rows, Range of, const Sizes& n,
                           Index block, T* panel) {
  using V = Vec<T>;
  const Blocks<T> outputs = output_blocks<T>(rows);
  const Blocks<T> blocks = stage.blocks(n);
  const Index width = outputs.width(block), valid = outputs.valid(block);
  panel += outputs.first(block) * stage.gates * stage.units(n);
  const bool by_rows = source.column_stride == 1;
  const Index ahead = by_rows ? kAhead : 1, r_step = by_rows ? kLanes<V> : width;
  const T* const from =
      source.data + outputs.first(block) * source.row_stride + stage.first_gate * n.units * source.column_stride;
  for (Index begin = of.begin; begin < of.end; begin += ahead) {
    const Index here = smaller(ahead, of.end - begin);
    Index first_unit[kAhead], units[kAhead];
    for (Index p = 0; p < here; ++p) {
      first_unit[p] = blocks.first(begin + p);
      units[p] = blocks.valid(begin + p);
    }
    for (Index r0 = 0; r0 < width; r0 += r_step)
      for (int g = 0; g < stage.gates; ++g)
        for (Index p = 0; p < here; ++p) {
          const Index units_here = units[p];
          const T* const first = from + (g * n.units + first_unit[p]) * source.column_stride;
          T* const to = panel + (first_unit[p] * stage.gates + g * units_here) * width;
          for (Index r = r0; r < r0 + r_step; r += kLanes<V>) {
            Index u = 0;
            if (source.column_stride == 1 && r + kLanes<V> <= valid)
              for (; u + kLanes<V> <= units_here; u += kLanes<V>)
                transpose<past_caches, V>(first + r * source.row_stride + u, source.row_stride, to + u * width + r,
                                          width);
            else if (source.row_stride == 1)
              for (; u < units_here; ++u)
                put<past_caches>(to + u * width + r,
                                 load<V>(first + r + u * source.column_stride, First<V>(larger(valid - r, 0))));
            for (; u < units_here; ++u)
              for (Index i = r; i < r + kLanes<V>; ++i)
                to[u * width + i] = i < valid ? first[i * source.row_stride + u * source.column_stride] : T(0);
          }
        }
  }
}

/// The bias of one unit block, summed into the sums that its rows belong to: row 0 to those of x.W, row 1 to those of
/// h.U.
template <class T>
void pack_bias_block(const StageInfo<T>& stage, int bias_rows, const MatrixView<T>& source, const Sizes& n, Index block,
                     T* panel) {
  const Blocks<T> blocks = stage.blocks(n);
  const Index width = blocks.width(block);
  panel += blocks.first(block) * stage.accumulators;
  for (Index i = 0; i < stage.accumulators * width; ++i) panel[i] = T(0);
  if (!source.data || !stage.sees_x()) return;
  for (int row = 0; row < bias_rows; ++row)
    for (int g = 0; g < stage.gates; ++g) {
      T* to = panel + (row == 0 ? g : stage.recurrent_sum(g)) * width;
      const T* from = source.data + row * source.row_stride +
                      ((stage.first_gate + g) * n.units + blocks.first(block)) * source.column_stride;
      for (Index u = 0; u < blocks.valid(block); ++u) to[u] += from[u * source.column_stride];
    }
}

/// All but W and U.
template <class T>
void pack_vectors(const CellInfo<T>& cell, const Weights<T>& w, Pass pass, const Panels<T>& panels) {
  const Sizes n = sizes_of(cell.traits, w);
  const Index first_unit = 0, columns = cell.traits.gates * n.units;
  pack_rows<false>(w.parameters, cell.traits.parameters, &first_unit, 1, w.units, panels.padded_units,
                   panels.parameters);
  if (n.normalized) pack_rows<false>(w.layer_norm, 2, &first_unit, 1, columns, columns, panels.layer_norm);
  if (cell.traits.cell_norm) pack_rows<false>(w.cell_norm, 2, &first_unit, 1, n.units, n.units, panels.cell_norm);
  for (int s = 0; pass == Pass::forward && s < cell.stages; ++s)
    for (Index block = 0; block < cell.stage[s].blocks(n).count(); ++block)
      pack_bias_block(cell.stage[s], cell.traits.bias_rows, w.bias, n, block, panels.bias[s]);
}

/// W and U of a stage.
template <bool past_caches, class T>
void pack_stage(int s, const CellInfo<T>& cell, const Weights<T>& w, Pass pass, const Sizes& n, const Panels<T>& panels,
                int threads) {
  // Where rows (or columns) in memory go across the panels, and are too many to stay in a cache from one block to the
  // next, a few of them are packed into all blocks before the next ones. (LSTM: 0.34 instead of 0.49 ms with 512 units,
  // 1.4 instead of 2.2 with 1024.)
  constexpr Index kCached = Index(1) << 21, kStripRows = 8, kStripBlocks = 2;
  const StageInfo<T>& stage = cell.stage[s];
  const bool forward = pass == Pass::forward;
  const Index units = stage.blocks(n).count();
  parallel_for(threads, threads, [&](Index thread) {
    for (bool input : {true, false}) {
      const MatrixView<T>& source = matrix_of(stage, w, input);
      const Index rows = input ? stage.inputs(n) : stage.depth(n), depth = forward ? rows : units;
      const Range mine = part(forward ? units : output_blocks<T>(rows).count(), thread, threads);
      const bool across = (forward ? source.column_stride : source.row_stride) == 1 && panels.size > kCached;
      const Index strip = !across ? depth : forward ? kStripRows : kStripBlocks;
      T* const to = (input ? panels.kernel : panels.recurrent)[s];
      for (Index begin = 0; begin < depth; begin += strip)
        for (Index block = mine.begin; block < mine.end; ++block) {
          const Range here{begin, smaller(begin + strip, depth)};
          if (forward)
            pack_block<past_caches>(stage, source, rows, here, n, block, to);
          else
            pack_transposed_block<past_caches>(stage, source, rows, here, n, block, to);
        }
    }
    if (past_caches) finish_streams();
  });
}

/// All of a cell's weights.
template <class T>
void pack(const CellInfo<T>& cell, const Weights<T>& w, Pass pass, T* packed, int threads) {
  constexpr Index kMostCached = Index(1) << 26;  // what a third level may well hold is left to it
  const Sizes n = sizes_of(cell.traits, w);
  const Panels<T> panels(cell, pass, n, packed);
  pack_vectors(cell, w, pass, panels);
  for (int s = 0; s < cell.stages; ++s)
    (panels.size > kMostCached ? pack_stage<true, T> : pack_stage<false, T>)(s, cell, w, pass, n, panels, threads);
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
