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

/// What a product fetches into the second-level cache beside its work: for every k a line, `step` apart.
template <class T>
struct Fetch {
  const T* first;
  Index step;
  FASTRNN_INLINE void next() {
    __builtin_prefetch(first, 0, 2);
    first += step;
  }
};
struct NoFetch {
  FASTRNN_INLINE void next() {}
};

/// What is read after a piece of a panel, and fetched by the tiles that work on that piece, each its share, an address
/// for every k. A row of a panel has up to four lines: fewer than four tiles leave some to the processor's own
/// fetching; more of them fetch some twice, but all at the same rate (3 to 9 % less time than with four of eleven tiles
/// at it). (With fetching and pieces, on 2 cores: forward passes of large layers take 15 to 25 % less time, backward
/// passes 10 to 14 %.)
template <class T>
struct Following {
  static constexpr Index kPieceDepth = 1024;  // rows of a piece: with what follows it finds room in such a cache
  // Of a tile: a lower one has little to do for each line that it reads.
  static constexpr int kFewestRows = kTileRows > 4 ? 4 : kTileRows;

  const T* first;  ///< null: nothing
  Index size;      ///< elements
  Index step;      ///< from one address of a tile's share to the next

  /// For `rows` rows, of as many elements as there are in `depth` rows of a panel of that width.
  static Following of(const T* first, Index depth, Index width, Index rows) {
    return {first, depth * width, ceil_div(width, ceil_div(larger(rows, 1), kTileRows))};
  }
  /// The share of the tile that begins at `row` and sums over `depth`; if there is none, `resident` over and over
  /// again.
  FASTRNN_INLINE Fetch<T> share(Index row, Index depth, const T* resident) const {
    const Index begin = ceil_div(row, kTileRows) * depth * step;  // the tile's number, see for_row_tiles
    return first && begin < size ? Fetch<T>{first + begin, step} : Fetch<T>{resident, 0};
  }
};

/// acc[m][Sum::of(v)] += row[m][Sum::left(v) * left_step + k * row_step] * column[v][k * column_step …] for all m, v
/// and k ascending over [0, depth).
template <class Sum, class T, class V, int M, int A, int N, class Beside = NoFetch>
FASTRNN_INLINE void multiply_add(V (&acc)[M][A], const T* const (&row)[M], Index row_step, Index left_step,
                                 const T* const (&column)[N], Index column_step, Index depth, Beside beside = {}) {
#pragma GCC unroll 2  // large layers are 2 to 5 % faster
  for (Index k = 0; k < depth; ++k) {
    V right[N];
    beside.next();
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) right[v] = load<V>(column[v] + k * column_step);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      V left = zero<V>();
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        if (v == 0 || Sum::left(v) != Sum::left(v - 1))
          left = broadcast<V>(row[m][Sum::left(v) * left_step + k * row_step]);
        acc[m][Sum::of(v)] = fma(left, right[v], acc[m][Sum::of(v)]);
      }
    }
  }
}

/// Every vector has a sum of its own, all have one left side.
struct Same {
  static constexpr int of(int v) { return v; }
  static constexpr int left(int) { return 0; }
};

/// Rows a fixed distance apart.
template <class T, int M>
FASTRNN_INLINE void row_pointers(T* (&rows)[M], T* first, Index stride) {
  for (int m = 0; m < M; ++m) rows[m] = first + m * stride;
}

/// How columns are cut into blocks of `vectors` <= kTileVectors vectors each, a power of two (no division at each
/// step). The last block may have fewer; of blocks of one vector it is half a vector where that holds what is left
/// over. (A half vector beside several whole ones would be a narrow block, whose sums wait for each other: backward
/// passes with 20 units were 8 to 18 % slower.)
template <class T>
struct Blocks {
  static constexpr Index kWhole = kLanes<Vec<T>>, kHalf = kLanes<HalfVec<T>>;
  Index columns, vectors = 1;

  bool has_half() const { return vectors == 1 && kHalf < kWhole && columns % kWhole > 0 && columns % kWhole <= kHalf; }
  Index whole() const { return ceil_div(columns - has_half() * (columns % kWhole), kWhole); }  ///< whole vectors
  Index count() const { return ((whole() + vectors - 1) >> __builtin_ctzll(vectors)) + has_half(); }
  Index full() const { return whole() >> __builtin_ctzll(vectors); }  ///< blocks of `vectors` whole vectors
  bool is_half(Index block) const { return kHalf < kWhole && block * vectors >= whole(); }
  Index first(Index block) const { return smaller(block * vectors, whole()) * kWhole; }
  /// How many vectors a block has.
  Index used(Index block) const { return is_half(block) ? 1 : smaller(vectors, whole() - block * vectors); }
  Index width(Index block) const { return is_half(block) ? kHalf : used(block) * kWhole; }  ///< columns and padding
  Index valid(Index block) const { return smaller(width(block), columns - first(block)); }  ///< columns
  Index padded() const { return whole() * kWhole + has_half() * kHalf; }
};

/// The order in which blocks of weights are visited: every other step goes from the last one to the first. What a cache
/// keeps of weights that are too many for it is what the step before visited last. (With 2 MiB of cache for each core,
/// steps of one row: GRU with 512 units on one thread 30 % faster, LSTM with 1024 on two 15 %.)
struct Walk {
  Range blocks;
  bool back;

  Walk(Range blocks, Index step) : blocks(blocks), back(step % 2 != 0) {}
  Index size() const { return blocks.size(); }
  Index at(Index i) const { return back ? blocks.end - 1 - i : blocks.begin + i; }
  /// The block after number i; after the last one itself, with which the next step begins.
  Index following(Index i) const { return at(smaller(i + 1, size() - 1)); }
  Index direction() const { return back ? -1 : 1; }
};

/// f(V(), std::integral_constant<int, N>()) with the type and the number of a block's vectors.
template <class T, int Max, class F>
FASTRNN_INLINE void with_vectors(bool half, Index vectors, F&& f) {
  if constexpr (Max == 1 && kLanes<HalfVec<T>> < kLanes<Vec<T>>)
    if (half) return f(HalfVec<T>(), std::integral_constant<int, 1>());
  with_constant<Max>(vectors, [&](auto n) { f(Vec<T>(), n); });
}

/// Columns of a product whose right side is a transposed weight matrix.
template <class T>
Blocks<T> output_blocks(Index columns) {
  return {columns, kTileVectors};
}

/// A piece of the left side of a product: `depth` values of each row, row r at first + r * stride, to be multiplied by
/// the rows of a panel from `panel_row` on.
template <class T>
struct Run {
  const T* first;
  Index stride, depth, panel_row;
};

/// to[m][first + c] (+)= the runs of row `row` + m, one after the other, times the panel [k][vector][lane] of N vectors
/// V; for `rows` rows and `columns` of the panel's columns. With factors: (+)= factor[m][first + c] times that.
template <class V, int N, bool fetches, class T>
__attribute__((noinline)) void multiply_runs(const Run<T>* runs, Index count, Index row, Index rows, const T* panel,
                                             T* const* to, Index first, Index columns, bool add,
                                             Following<T> following = {}, const T* const* factor = nullptr) {
  constexpr int L = kLanes<V>;
  for_row_tiles({0, rows}, [&](Index r, Index tile_rows) {
    with_constant<kTileRows>(tile_rows, [&](auto height) {
      constexpr int M = height();
      V acc[M][N];
      // (A list of these kept right sides from registers.)
      const auto out = [&](int m) FASTRNN_ALWAYS { return to[r + m] + first; };
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = add && !factor ? load<V>(out(m) + n * L, columns - n * L) : zero<V>();
      const T *left[M], *right[N];
      constexpr bool here = fetches && M >= Following<T>::kFewestRows;
      std::conditional_t<here, Fetch<T>, NoFetch> fetch;
      if constexpr (here) fetch = following.share(r, following.size / (N * L), panel);
      for (const Run<T>* run = runs; run < runs + count; ++run) {
        row_pointers(left, run->first + (row + r) * run->stride, run->stride);
        row_pointers(right, panel + run->panel_row * N * L, L);
        multiply_add<Same>(acc, left, 1, 0, right, N * L, run->depth, fetch);
        if constexpr (here) fetch.first += run->depth * fetch.step;
      }
      if (factor)
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < N; ++n) {
            const V product = mul(load<V>(factor[r + m] + first + n * L, columns - n * L), acc[m][n]);
            acc[m][n] = add ? fastrnn::FASTRNN_ISA::add(load<V>(out(m) + n * L, columns - n * L), product) : product;
          }
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(out(m) + n * L, acc[m][n], columns - n * L);
    });
  });
}

/// to[m][v] (+)= the sum over k < depth of left[k][m] * right[k], at offset[v]: an outer product of some columns of the
/// left side and `vectors` <= kTileVectors vectors V of the right side, of which lanes[v] are kept.
template <class T>
struct OuterProduct {
  const T* right;
  Index right_step, depth;
  T* to;
  Index to_stride;
  Index vectors;
  Index right_offset[kTileVectors], to_offset[kTileVectors], lanes[kTileVectors];
  bool add;

  /// For `rows` <= kTileRows columns of the left side, kTileRows apart, and as many rows of the result from `row` on.
  /// Fetches the columns `to_next` further on (1 to 3 % of backward passes of large layers).
  template <class V>
  void run(const T* left, Index to_next, Index row, Index rows) const {
    with_constant<kTileRows>(rows, [&](auto height) {
      with_constant<kTileVectors>(vectors, [&](auto width) {
        constexpr int M = height(), N = width();
        T* const first = to + row * to_stride;
        V acc[M][N];
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < N; ++v)
            acc[m][v] = add ? load<V>(first + m * to_stride + to_offset[v], lanes[v]) : zero<V>();
        const T *l[M], *r[N];
        if constexpr (M == kTileRows)  // the next tile's: 2 % of a backward pass whose dW and dU no cache holds
          for (int m = 0; m < M; ++m)
            for (int v = 0; v < N; ++v) __builtin_prefetch(first + (m + kTileRows) * to_stride + to_offset[v], 1, 2);
        row_pointers(l, left, 1);
        for (int v = 0; v < N; ++v) r[v] = right + right_offset[v];
        if constexpr (M == kTileRows)
          multiply_add<Same>(acc, l, kTileRows, 0, r, right_step, depth, Fetch<T>{left + to_next, kTileRows});
        else
          multiply_add<Same>(acc, l, kTileRows, 0, r, right_step, depth);
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < N; ++v) store(first + m * to_stride + to_offset[v], acc[m][v], lanes[v]);
      });
    });
  }
};

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
