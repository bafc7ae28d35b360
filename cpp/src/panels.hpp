// How weights and gradients of the sums lie in memory as panels (see gemm.hpp), and the packing of weights.
#pragma once

#include "cells/cell.hpp"
#include "gemm.hpp"
#include "team.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// Hands out aligned pieces of one allocation; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(Index elements) {
    const Index begin = size_;
    size_ += ceil_div(elements * Index(sizeof(T)), 64) * 64;
    return base_ ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }
  Index size() const { return size_; }

 private:
  char* base_;
  Index size_ = 0;
};

/// The units of stage S are cut into blocks that hold, per gate or sum, as many vectors as a register tile has room
/// for.
template <class S>
constexpr int kVectorsPerSum = S::accumulators >= kTileVectors ? 1 : kTileVectors / S::accumulators;
template <class S, class T>
using UnitBlocks = Blocks<T, kVectorsPerSum<S>>;

/// Into how many blocks the stage with the widest blocks cuts the units.
template <class Cell, class T>
Index fewest_blocks(Index units) {
  Index fewest = units;
  for_each_stage(typename Cell::Stages{},
                 [&](auto stage, int) { fewest = smaller(fewest, UnitBlocks<decltype(stage), T>{units}.count()); });
  return fewest;
}

/// Which sum a vector of U's panel [k][gate][N] is added to, for multiply_add; N: vectors per gate in the block at
/// hand.
template <class S, int N>
struct RecurrentSum {
  static constexpr int of(int v) { return S::recurrent_sum(v / N) * N + v % N; }
};

/// Where the packed weights of each stage begin.
///   forward   bias [block][sum][N], kernel [block][I][gate][N], recurrent [block][H][gate][N]
///   backward  kernel WT [output block of I][k][N], recurrent UT [output block of H][k][N], with k over the gates and
///   units
///             in the order in which the gradients of the sums lie: (block, gate, unit in block)
template <class Cell, class T>
struct Panels {
  static constexpr int stages = Cell::Stages::count;
  T* bias[stages];
  T* kernel[stages];
  T* recurrent[stages];
  Index size;  ///< bytes

  Panels(Pass pass, Index inputs, Index units, void* base) {
    Arena arena(base);
    const Index padded_units = Blocks<T, 1>{units}.padded(), padded_inputs = Blocks<T, 1>{inputs}.padded();
    for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
      using S = decltype(stage);
      if (pass == Pass::forward) {
        bias[s] = arena.take<T>(S::accumulators * padded_units);
        kernel[s] = arena.take<T>(inputs * S::gates * padded_units);
        recurrent[s] = arena.take<T>(units * S::gates * padded_units);
      } else {
        bias[s] = nullptr;
        kernel[s] = arena.take<T>(S::gates * units * padded_inputs);
        recurrent[s] = arena.take<T>(S::gates * units * padded_units);
      }
    });
    size = arena.size();
  }
};

/// Columns `first` … of one row of a matrix, as vectors N lanes wide in all; zeros from `valid` on.
template <class T>
void pack_row(const MatrixView<T>& source, Index row, Index first, Index valid, Index width, T* to) {
  using V = Vec<T>;
  const T* from = source.data + row * source.row_stride + first * source.column_stride;
  if (source.column_stride == 1 && width % kLanes<V> == 0)
    for (Index u = 0; u < width; u += kLanes<V>) store(to + u, load<V>(from + u, First<V>(larger(valid - u, 0))));
  else
    for (Index u = 0; u < width; ++u) to[u] = u < valid ? from[u * source.column_stride] : T(0);
}

/// One unit block of W or U: from the gates' columns of `source` to [k][gate][N], zeros where there is no unit.
template <class S, class T>
void pack_block(const MatrixView<T>& source, Index depth, Index units, Index block, T* panel) {
  const UnitBlocks<S, T> blocks{units};
  const Index width = blocks.width(block);
  panel += blocks.first(block) * depth * S::gates;
  for (Index k = 0; k < depth; ++k)
    for (int g = 0; g < S::gates; ++g, panel += width)
      pack_row(source, k, (S::first_gate + g) * units + blocks.first(block), blocks.valid(block), width, panel);
}

/// to[c][r] = from[r][c] for a square of as many rows and columns as a vector has lanes.
template <class V>
FASTRNN_INLINE void transpose(const Scalar<V>* from, Index from_stride, Scalar<V>* to, Index to_stride) {
  TransposableBlock<V> block;
  for (int r = 0; r < kLanes<V>; ++r) block.packet[r] = load<V>(from + r * from_stride);
  transpose(block);
  for (int c = 0; c < kLanes<V>; ++c) store(to + c * to_stride, block.packet[c]);
}

/// One output block of WT or UT: from rows of `source` to [k][N], zeros where there is no row.
template <class S, class T>
void pack_transposed_block(const MatrixView<T>& source, Index rows, Index units, Index block, T* panel) {
  using V = Vec<T>;
  const OutputBlocks<T> outputs{rows};
  const UnitBlocks<S, T> blocks{units};
  const Index width = outputs.width(block), valid = outputs.valid(block);
  panel += outputs.first(block) * S::gates * units;
  for (Index p = 0; p < blocks.count(); ++p)
    for (int g = 0; g < S::gates; ++g) {
      const Index units_here = blocks.valid(p);
      const T* const first = source.data + outputs.first(block) * source.row_stride +
                             ((S::first_gate + g) * units + blocks.first(p)) * source.column_stride;
      for (Index r = 0; r < width; r += kLanes<V>) {
        Index u = 0;
        if (source.column_stride == 1 && r + kLanes<V> <= valid)
          for (; u + kLanes<V> <= units_here; u += kLanes<V>)
            transpose<V>(first + r * source.row_stride + u, source.row_stride, panel + u * width + r, width);
        for (; u < units_here; ++u)
          for (Index i = r; i < smaller(r + kLanes<V>, width); ++i)
            panel[u * width + i] = i < valid ? first[i * source.row_stride + u * source.column_stride] : T(0);
      }
      panel += units_here * width;
    }
}

/// The bias of one unit block, summed into the sums that its rows belong to: row 0 to those of x.W, row 1 to those of
/// h.U.
template <class Cell, class S, class T>
void pack_bias_block(const MatrixView<T>& source, Index units, Index block, T* panel) {
  const UnitBlocks<S, T> blocks{units};
  const Index width = blocks.width(block);
  panel += blocks.first(block) * S::accumulators;
  for (Index i = 0; i < S::accumulators * width; ++i) panel[i] = T(0);
  if (!source.data) return;
  for (int row = 0; row < Cell::traits.bias_rows; ++row)
    for (int g = 0; g < S::gates; ++g) {
      T* to = panel + (row == 0 ? g : S::recurrent_sum(g)) * width;
      const T* from = source.data + row * source.row_stride +
                      ((S::first_gate + g) * units + blocks.first(block)) * source.column_stride;
      for (Index u = 0; u < blocks.valid(block); ++u) to[u] += from[u * source.column_stride];
    }
}

template <class Cell, class T>
void pack(const Weights<T>& w, Pass pass, T* packed, int threads) {
  const Panels<Cell, T> panels(pass, w.inputs, w.units, packed);
  for_each_stage(typename Cell::Stages{}, [&](auto stage, int s) {
    using S = decltype(stage);
    if (pass == Pass::forward) {
      const Index blocks = UnitBlocks<S, T>{w.units}.count();
      parallel_for(threads, blocks, [&](Index block) {
        pack_bias_block<Cell, S>(w.bias, w.units, block, panels.bias[s]);
        pack_block<S>(w.kernel, w.inputs, w.units, block, panels.kernel[s]);
        pack_block<S>(w.recurrent_kernel, w.units, w.units, block, panels.recurrent[s]);
      });
    } else {
      const Index kernel_blocks = OutputBlocks<T>{w.inputs}.count();
      const Index blocks = kernel_blocks + OutputBlocks<T>{w.units}.count();
      parallel_for(threads, blocks, [&](Index block) {
        if (block < kernel_blocks)
          pack_transposed_block<S>(w.kernel, w.inputs, w.units, block, panels.kernel[s]);
        else
          pack_transposed_block<S>(w.recurrent_kernel, w.units, w.units, block - kernel_blocks, panels.recurrent[s]);
      });
    }
  });
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
