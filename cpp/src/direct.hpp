// Products of a few rows with a matrix that lies as its owner has it: for weights that are used once, where packing
// them takes longer than all else. Each output is the chain of fused multiply-adds that gemm.hpp makes of it: the same
// bits.
#pragma once

#include "gemm.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// Rows that go through a direct product together.
constexpr int kDirectRows = 4;

/// Consecutive k: [first, first + depth).
struct Stretch {
  Index first, depth;
};

/// to[m][o] += the sum over k, in the order of the stretches, of left[m][k] * matrix(k, o). The outputs are `groups` of
/// `columns` columns each, group_step apart in the matrix; in the results, a group begins at to_group[g], and has
/// blocks of `vectors` vectors, block_step apart.
template <class T>
struct DirectProduct {
  MatrixView<T> matrix;  ///< [k, o]; one of its strides is 1
  const Stretch* stretches;
  Index count;
  Index groups, group_step, columns;
  Index to_group[kTileVectors] = {};
  Index vectors, block_step;

  /// For `rows` rows.
  template <class V>
  void run(const T* const* left, Index rows, T* const* to) const {
    for (Index row = 0; row < rows; row += kDirectRows)
      with_constant<kDirectRows>(smaller(kDirectRows, rows - row), [&](auto height) {
        if (matrix.column_stride == 1)
          by_rows<V, height()>(left + row, to + row);
        else
          by_columns<V, height()>(left + row, to + row);
      });
  }

 private:
  /// f(o, where) for each vector of outputs.
  template <class V, class F>
  FASTRNN_INLINE void for_each_vector(F&& f) const {
    constexpr Index L = kLanes<V>;
    for (Index g = 0; g < groups; ++g)
      for (Index o = 0, block = to_group[g]; o < columns; block += block_step)
        for (Index v = 0; v < vectors && o < columns; ++v, o += L) f(g * group_step, o, block + v * L);
  }

  /// Several rows of the matrix at a time, each read through.
  template <class V, int M>
  void by_rows(const T* const* left, T* const* to) const {
    constexpr Index kDepth = 8;
    for (const Stretch* s = stretches; s < stretches + count; ++s)
      for (Index k = s->first; k < s->first + s->depth; k += kDepth)
        with_constant<kDepth>(smaller(kDepth, s->first + s->depth - k), [&](auto depth) {
          constexpr int K = depth();
          const T* const rows = matrix.data + k * matrix.row_stride;
          V factor[M][K];
          for (int m = 0; m < M; ++m)
            for (int i = 0; i < K; ++i) factor[m][i] = broadcast<V>(left[m][k + i]);
          for_each_vector<V>([&](Index first, Index o, Index where) FASTRNN_ALWAYS {
            const T* const from = rows + first + o;
            const auto add = [&](auto&& load_row, auto&& load_sum, auto&& store_sum) FASTRNN_ALWAYS {
              V sum[M];
              for (int m = 0; m < M; ++m) sum[m] = load_sum(to[m] + where);
              for (int i = 0; i < K; ++i) {
                const V row = load_row(from + i * matrix.row_stride);
                for (int m = 0; m < M; ++m) sum[m] = fma(factor[m][i], row, sum[m]);
              }
              for (int m = 0; m < M; ++m) store_sum(to[m] + where, sum[m]);
            };
            if (columns - o >= kLanes<V>) {
              const auto whole = [](const T* p) FASTRNN_ALWAYS { return load<V>(p); };
              add(whole, whole, [](T* p, const V& v) FASTRNN_ALWAYS { store(p, v); });
            } else {
              const First<V> valid(columns - o);
              const auto some = [&](const T* p) FASTRNN_ALWAYS { return load<V>(p, valid); };
              add(some, some, [&](T* p, const V& v) FASTRNN_ALWAYS { store(p, v, valid); });
            }
          });
        });
  }

  /// A vector of columns at a time, transposed in squares.
  template <class V, int M>
  void by_columns(const T* const* left, T* const* to) const {
    constexpr Index L = kLanes<V>;
    for_each_vector<V>([&](Index first, Index o, Index where) FASTRNN_ALWAYS {
      const Index here = smaller(L, columns - o);
      const T* const from = matrix.data + (first + o) * matrix.column_stride;
      V sum[M];
      for (int m = 0; m < M; ++m) sum[m] = load<V>(to[m] + where, here);
      for (const Stretch* s = stretches; s < stretches + count; ++s) {
        const Index end = s->first + s->depth;
        Index k = s->first;
        TransposableBlock<V> block;
        if (here == L)
          for (; k + L <= end; k += L) {
#pragma GCC unroll 16
            for (int c = 0; c < L; ++c) block.packet[c] = load<V>(from + c * matrix.column_stride + k);
            transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i)
              for (int m = 0; m < M; ++m) sum[m] = fma(broadcast<V>(left[m][k + i]), block.packet[i], sum[m]);
          }
        for (; k < end; k += L) {
          const First<V> valid(end - k);
          for (int c = 0; c < L; ++c)
            block.packet[c] = c < here ? load<V>(from + c * matrix.column_stride + k, valid) : zero<V>();
          transpose(block);
          for (int i = 0; i < smaller(L, end - k); ++i)
            for (int m = 0; m < M; ++m) sum[m] = fma(broadcast<V>(left[m][k + i]), block.packet[i], sum[m]);
        }
      }
      for (int m = 0; m < M; ++m) store(to[m] + where, sum[m], here);
    });
  }
};

/// to[i][c] = the sum over r of left[r][i] * right[r][c] for the rows i of a range: an outer product of a few rows
/// each, written row by row.
template <class T>
struct FlatOuterProduct {
  const T* const* left;
  const T* const* right;
  Index depth, columns;
  T* to;
  Index to_stride;

  void run(Range rows) const {
    for (Index first = 0; first < depth; first += kMostDepth)
      with_constant<kMostDepth>(smaller(kMostDepth, depth - first), [&](auto n) {
        for (Index i = rows.begin; i < rows.end; ++i) row<n()>(i, first);
      });
  }

 private:
  static constexpr int kMostDepth = 8;

  template <int D>
  FASTRNN_INLINE void row(Index i, Index first) const {
    using V = Vec<T>;
    constexpr Index L = kLanes<V>;
    T* const out = to + i * to_stride;
    V factor[D];
    for (int r = 0; r < D; ++r) factor[r] = broadcast<V>(left[first + r][i]);
    Index c = 0;
    for (; c + L <= columns; c += L) {
      V sum = first ? load<V>(out + c) : zero<V>();
      for (int r = 0; r < D; ++r) sum = fma(factor[r], load<V>(right[first + r] + c), sum);
      store(out + c, sum);
    }
    if (c < columns) {
      const First<V> valid(columns - c);
      V sum = first ? load<V>(out + c, valid) : zero<V>();
      for (int r = 0; r < D; ++r) sum = fma(factor[r], load<V>(right[first + r] + c, valid), sum);
      store(out + c, sum, valid);
    }
  }
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
