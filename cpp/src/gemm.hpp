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

/// Call f(first, height) for tiles of nearly equal height, at most kTileRows, that cover the range.
template <class F>
FASTRNN_INLINE void for_row_tiles(Range rows, F&& f) {
  const Index tiles = ceil_div(rows.size(), kTileRows);
  for (Index i = 0; i < tiles; ++i) {
    const Range tile = part(rows.size(), i, tiles);
    f(rows.begin + tile.begin, tile.size());
  }
}

/// acc[m][Sum::of(v)] += row[m][k * row_step] * column[v][k * column_step …] for all m, v and k ascending over [0,
/// depth).
template <class Sum, class T, class V, int M, int A, int N>
FASTRNN_INLINE void multiply_add(V (&acc)[M][A], const T* const (&row)[M], Index row_step, const T* const (&column)[N],
                                 Index column_step, Index depth) {
  for (Index k = 0; k < depth; ++k) {
    V right[N];
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) right[v] = load<V>(column[v] + k * column_step);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V left = broadcast<V>(row[m][k * row_step]);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) acc[m][Sum::of(v)] = fma(left, right[v], acc[m][Sum::of(v)]);
    }
  }
}

struct Same {
  static constexpr int of(int v) { return v; }
};

/// Rows a fixed distance apart.
template <class T, int M>
FASTRNN_INLINE void row_pointers(T* (&rows)[M], T* first, Index stride) {
  for (int m = 0; m < M; ++m) rows[m] = first + m * stride;
}

/// How n columns are cut into blocks of `vectors` vectors each. The last block may have fewer; where half a vector
/// holds what is left over, the last block is one of those.
template <class T, int vectors>
struct Blocks {
  static constexpr Index kWhole = kLanes<Vec<T>>, kHalf = kLanes<HalfVec<T>>;
  Index columns;

  bool has_half() const { return kHalf < kWhole && columns % kWhole > 0 && columns % kWhole <= kHalf; }
  Index whole() const { return ceil_div(columns - has_half() * (columns % kWhole), kWhole); }  ///< whole vectors
  Index count() const { return ceil_div(whole(), vectors) + has_half(); }
  bool is_half(Index block) const { return kHalf < kWhole && block * vectors >= whole(); }
  Index first(Index block) const { return smaller(block * vectors, whole()) * kWhole; }
  Index used(Index block) const { return is_half(block) ? 1 : smaller(vectors, whole() - block * vectors); }
  Index width(Index block) const { return is_half(block) ? kHalf : used(block) * kWhole; }  ///< columns and padding
  Index valid(Index block) const { return smaller(width(block), columns - first(block)); }  ///< columns
  Index padded() const { return whole() * kWhole + has_half() * kHalf; }

  /// f(V(), std::integral_constant<int, N>()) with the type and the number of the block's vectors.
  template <class F>
  FASTRNN_INLINE void with_vectors(Index block, F&& f) const {
    if constexpr (kHalf < kWhole)
      if (is_half(block)) return f(HalfVec<T>(), std::integral_constant<int, 1>());
    with_constant<vectors>(used(block), [&](auto n) { f(Vec<T>(), n); });
  }
};

/// Columns of a product whose right side is a transposed weight matrix.
template <class T>
using OutputBlocks = Blocks<T, kTileVectors>;

/// A piece of the left side of a product: `depth` values of each row, row r at first + r * stride.
template <class T>
struct Run {
  const T* first;
  Index stride, depth;
};

/// to[m][c] (+)= the runs of row `row` + m, one after the other, times the panel [k][vector][lane] of N vectors V; for
/// `rows` <= kTileRows rows and `columns` of the panel's columns.
template <class V, int N, class T>
void multiply_runs(const Run<T>* runs, Index count, Index row, Index rows, const T* panel, T* const* to, Index columns,
                   bool add) {
  constexpr int L = kLanes<V>;
  with_constant<kTileRows>(rows, [&](auto height) {
    constexpr int M = height();
    V acc[M][N];
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) acc[m][n] = add ? load<V>(to[m] + n * L, columns - n * L) : zero<V>();
    const T *left[M], *right[N];
    for (const Run<T>* run = runs; run < runs + count; ++run) {
      row_pointers(left, run->first + row * run->stride, run->stride);
      row_pointers(right, panel, L);
      multiply_add<Same>(acc, left, 1, right, N * L, run->depth);
      panel += run->depth * N * L;
    }
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) store(to[m] + n * L, acc[m][n], columns - n * L);
  });
}

/// to[m][v] (+)= the sum over k < depth of left[k][m] * right[k], at offset[v]: an outer product of `rows` <= kTileRows
/// columns of the left side, kTileRows apart, and `vectors` <= kTileVectors vectors V of the right side, of which
/// lanes[v] are kept.
template <class T>
struct OuterProduct {
  const T* left;
  const T* right;
  Index right_step, depth;
  T* to;
  Index to_stride;
  Index rows, vectors;
  Index right_offset[kTileVectors], to_offset[kTileVectors], lanes[kTileVectors];
  bool add;

  template <class V>
  void run() const {
    with_constant<kTileRows>(rows, [&](auto height) {
      with_constant<kTileVectors>(vectors, [&](auto width) {
        constexpr int M = height(), N = width();
        V acc[M][N];
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < N; ++v)
            acc[m][v] = add ? load<V>(to + m * to_stride + to_offset[v], lanes[v]) : zero<V>();
        const T *l[M], *r[N];
        if (rows == kTileRows)  // the next tile's: 2 % of a backward pass whose dW and dU no cache holds
          for (int m = 0; m < M; ++m)
            for (int v = 0; v < N; ++v) __builtin_prefetch(to + (m + kTileRows) * to_stride + to_offset[v], 1, 2);
        row_pointers(l, left, 1);
        for (int v = 0; v < N; ++v) r[v] = right + right_offset[v];
        multiply_add<Same>(acc, l, kTileRows, r, right_step, depth);
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < N; ++v) store(to + m * to_stride + to_offset[v], acc[m][v], lanes[v]);
      });
    });
  }
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
