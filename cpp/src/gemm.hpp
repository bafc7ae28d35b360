// Packed panels and the register-blocked product that every kernel is built from.
//
// A panel holds a block of output columns for all k: `[k][vector][lane]`, so that the inner loop reads it straight
// through. Every output element is one chain of fused multiply-adds over ascending k, in every tile height: its bits do
// not depend on how rows are grouped into tiles, nor on where a sum over k is cut and its accumulators stored and
// loaded again.
#pragma once

#include "fastrnn/fastrnn.hpp"
#include "simd.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

using Index = std::int64_t;

FASTRNN_INLINE constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
FASTRNN_INLINE constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
FASTRNN_INLINE constexpr Index larger(Index a, Index b) { return a > b ? a : b; }

/// Item `index` of `parts` contiguous ranges that divide [0, n) as evenly as possible.
struct Range {
  Index begin, end;
  Index size() const { return end - begin; }
};
FASTRNN_INLINE Range part(Index n, Index index, Index parts) {
  const Index share = n / parts, rest = n % parts;
  const Index begin = index * share + smaller(index, rest);
  return {begin, begin + share + (index < rest)};
}

/// Call f(std::integral_constant<int, n>) for a run-time n in [1, Max].
template <int Max, class F>
FASTRNN_INLINE void with_constant(Index n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_constant<Max - 1>(n, f);
  }
  f(std::integral_constant<int, Max>{});
}

/// Call f(first, std::integral_constant<int, rows>) for tiles of nearly equal height that cover the range.
template <class F>
FASTRNN_INLINE void for_row_tiles(Range rows, F&& f) {
  const Index tiles = ceil_div(rows.size(), kTileRows);
  for (Index i = 0; i < tiles; ++i) {
    const Range tile = part(rows.size(), i, tiles);
    with_constant<kTileRows>(tile.size(), [&](auto height) { f(rows.begin + tile.begin, height); });
  }
}

/// acc[m][Map::sum(v)] += a[m][k * step] * panel[k][Map::column(v)] for v < Map::count, k ascending over [0, depth).
/// The panel has Map::stride vectors per k.
template <class Map, class T, class V, int M, int N>
FASTRNN_INLINE void multiply_add(V (&acc)[M][N], const T* const (&a)[M], Index step, const T* panel, Index depth) {
  for (Index k = 0; k < depth; ++k, panel += Map::stride * kLanes<V>) {
    V column[Map::count];
#pragma GCC unroll 8
    for (int v = 0; v < Map::count; ++v) column[v] = load<V>(panel + Map::column(v) * kLanes<V>);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V row = broadcast<V>(a[m][k * step]);
#pragma GCC unroll 8
      for (int v = 0; v < Map::count; ++v) acc[m][Map::sum(v)] = fma(row, column[v], acc[m][Map::sum(v)]);
    }
  }
}

/// How n columns are cut into blocks of `vectors` vectors each; the last block may have fewer.
template <class V, int vectors>
struct Blocks {
  static constexpr Index width = vectors * Index(kLanes<V>);
  Index columns;

  Index count() const { return ceil_div(columns, width); }
  Index first(Index block) const { return block * width; }
  Index valid(Index block) const { return smaller(width, columns - first(block)); }  ///< columns in this block
  Index used(Index block) const { return ceil_div(valid(block), kLanes<V>); }        ///< vectors in this block
  Index padded() const { return ceil_div(columns, kLanes<V>) * kLanes<V>; }
};

/// Columns of a product whose right side is a transposed weight matrix.
template <class V>
using OutputBlocks = Blocks<V, kTileVectors>;

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
