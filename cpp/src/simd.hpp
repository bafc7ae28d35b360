// Vectors of the instruction set that this object is compiled for, as Eigen's packets, and the functions on them that
// the cells need. The only file that names Eigen::internal or an intrinsic.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define FASTRNN_ALWAYS __attribute__((always_inline))
#define FASTRNN_INLINE inline FASTRNN_ALWAYS

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

namespace ei = Eigen::internal;

/// The widest vector of T.
template <class T>
using Vec = typename ei::packet_traits<T>::type;

/// R vectors that go through the same operations side by side. One vector at a time, the chain of operations from a sum
/// to a state leaves the processor waiting: it looks ahead for less than one such chain.
template <class V, int R>
struct Group {
  V v[R];
};

template <class V>
struct VectorTraits {
  using Scalar = typename ei::unpacket_traits<V>::type;
  static constexpr bool is_group = false;
};
template <class V, int R>
struct VectorTraits<Group<V, R>> {
  using Scalar = typename VectorTraits<V>::Scalar;
  static constexpr bool is_group = true;
};
template <class V>
using Scalar = typename VectorTraits<V>::Scalar;
template <class V>
constexpr int kLanes = ei::unpacket_traits<V>::size;

/// A vector of half the width, for what is left over at the end of a row, where such instructions take less time (the
/// processors that run AVX-512 as two halves: 24 units of an LSTM in 1.5 instead of 2 vectors); else the widest one
/// again.
#if defined(EIGEN_VECTORIZE_AVX512)
template <class T>
using HalfVec = typename ei::unpacket_traits<Vec<T>>::half;
#else
template <class T>
using HalfVec = Vec<T>;
#endif

/// Rows of a register tile of 4 vectors: 24 accumulators where there are 32 registers, else 12.
#if defined(EIGEN_VECTORIZE_AVX512) || EIGEN_ARCH_ARM64
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kTileVectors = 4;

template <class V>
FASTRNN_INLINE V load(const Scalar<V>* p) {
  return ei::ploadu<V>(p);
}
template <class V>
FASTRNN_INLINE void store(Scalar<V>* p, const V& v) {
  ei::pstoreu(p, v);
}
/// The same to an address that is a multiple of the vector's size, past the caches where a vector is a whole line of
/// them. Other threads see it after finish_streams() of this one.
template <class V>
FASTRNN_INLINE void stream(Scalar<V>* p, const V& v) {
#if defined(EIGEN_VECTORIZE_AVX512)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#endif
  store(p, v);
}
/// Orders what was streamed before what follows.
FASTRNN_INLINE void finish_streams() {
#if defined(EIGEN_VECTORIZE_AVX512)
  _mm_sfence();
#endif
}
template <class V>
FASTRNN_INLINE V broadcast(Scalar<V> s) {
  if constexpr (VectorTraits<V>::is_group) {
    V group;
    for (auto& v : group.v) v = broadcast<std::decay_t<decltype(v)>>(s);
    return group;
  } else {
    return ei::pset1<V>(s);
  }
}
template <class V>
FASTRNN_INLINE V zero() {
  return broadcast<V>(Scalar<V>(0));
}
template <class V>
FASTRNN_INLINE V add(const V& a, const V& b) {
  return ei::padd(a, b);
}
template <class V>
FASTRNN_INLINE V sub(const V& a, const V& b) {
  return ei::psub(a, b);
}
template <class V>
FASTRNN_INLINE V mul(const V& a, const V& b) {
  return ei::pmul(a, b);
}
template <class V>
FASTRNN_INLINE V div(const V& a, const V& b) {
  return ei::pdiv(a, b);
}
/// a * b + c, in one rounding where the instruction set has FMA.
template <class V>
FASTRNN_INLINE V fma(const V& a, const V& b, const V& c) {
  return ei::pmadd(a, b, c);
}
template <class V>
FASTRNN_INLINE V negate(const V& a) {
  return ei::pnegate(a);
}
template <class V>
FASTRNN_INLINE V negative_abs(const V& a) {
  return ei::por(a, broadcast<V>(Scalar<V>(-0.0)));
}
template <class V>
FASTRNN_INLINE V copy_sign(const V& magnitude, const V& sign) {
  return ei::por(ei::pabs(magnitude), ei::pand(sign, broadcast<V>(Scalar<V>(-0.0))));
}

// ---- What Eigen 3.4 has no portable name for: the larger of a limit and a value that may be NaN (then NaN), a choice
// ---- by sign bit, bits shifted within each lane, the halves of a vector, and loads and stores of the first n lanes.

#if defined(EIGEN_VECTORIZE_AVX512)
FASTRNN_INLINE void split(const ei::Packet16f& both, ei::Packet8f& low, ei::Packet8f& high) {
  low = _mm512_castps512_ps256(both);
  high = _mm512_extractf32x8_ps(both, 1);
}
FASTRNN_INLINE void split(const ei::Packet8d& both, ei::Packet4d& low, ei::Packet4d& high) {
  low = _mm512_castpd512_pd256(both);
  high = _mm512_extractf64x4_pd(both, 1);
}
FASTRNN_INLINE ei::Packet16f max_or_nan(const ei::Packet16f& limit, const ei::Packet16f& v) {
  return _mm512_max_ps(limit, v);
}
FASTRNN_INLINE ei::Packet8d max_or_nan(const ei::Packet8d& limit, const ei::Packet8d& v) {
  return _mm512_max_pd(limit, v);
}
FASTRNN_INLINE ei::Packet16f if_negative(const ei::Packet16f& v, const ei::Packet16f& yes, const ei::Packet16f& no) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(v)), no, yes);
}
FASTRNN_INLINE ei::Packet8d if_negative(const ei::Packet8d& v, const ei::Packet8d& yes, const ei::Packet8d& no) {
  return _mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(v)), no, yes);
}
template <int n>
FASTRNN_INLINE ei::Packet16f shift_left(const ei::Packet16f& v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), n));
}
template <int n>
FASTRNN_INLINE ei::Packet8d shift_left(const ei::Packet8d& v) {
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(v), n));
}
template <class V>
struct First {
  using Mask = std::conditional_t<kLanes<V> == 16, __mmask16, __mmask8>;
  Mask mask;
  FASTRNN_INLINE First(std::int64_t n) : mask(static_cast<Mask>(n < kLanes<V> ? (1u << n) - 1 : ~0u)) {}
};
FASTRNN_INLINE ei::Packet16f load_first(const float* p, First<ei::Packet16f> n) {
  return _mm512_maskz_loadu_ps(n.mask, p);
}
FASTRNN_INLINE ei::Packet8d load_first(const double* p, First<ei::Packet8d> n) {
  return _mm512_maskz_loadu_pd(n.mask, p);
}
FASTRNN_INLINE ei::Packet8f load_first(const float* p, First<ei::Packet8f> n) {
  return _mm256_maskz_loadu_ps(n.mask, p);
}
FASTRNN_INLINE ei::Packet4d load_first(const double* p, First<ei::Packet4d> n) {
  return _mm256_maskz_loadu_pd(n.mask, p);
}
FASTRNN_INLINE void store_first(float* p, const ei::Packet16f& v, First<ei::Packet16f> n) {
  _mm512_mask_storeu_ps(p, n.mask, v);
}
FASTRNN_INLINE void store_first(double* p, const ei::Packet8d& v, First<ei::Packet8d> n) {
  _mm512_mask_storeu_pd(p, n.mask, v);
}
FASTRNN_INLINE void store_first(float* p, const ei::Packet8f& v, First<ei::Packet8f> n) {
  _mm256_mask_storeu_ps(p, n.mask, v);
}
FASTRNN_INLINE void store_first(double* p, const ei::Packet4d& v, First<ei::Packet4d> n) {
  _mm256_mask_storeu_pd(p, n.mask, v);
}
#else
template <class V>
struct First {
  std::int64_t n;
  FASTRNN_INLINE First(std::int64_t n) : n(n) {}
};
#endif
#if defined(EIGEN_VECTORIZE_AVX2)
FASTRNN_INLINE ei::Packet8f max_or_nan(const ei::Packet8f& limit, const ei::Packet8f& v) {
  return _mm256_max_ps(limit, v);
}
FASTRNN_INLINE ei::Packet4d max_or_nan(const ei::Packet4d& limit, const ei::Packet4d& v) {
  return _mm256_max_pd(limit, v);
}
FASTRNN_INLINE ei::Packet8f if_negative(const ei::Packet8f& v, const ei::Packet8f& yes, const ei::Packet8f& no) {
  return _mm256_blendv_ps(no, yes, v);
}
FASTRNN_INLINE ei::Packet4d if_negative(const ei::Packet4d& v, const ei::Packet4d& yes, const ei::Packet4d& no) {
  return _mm256_blendv_pd(no, yes, v);
}
template <int n>
FASTRNN_INLINE ei::Packet8f shift_left(const ei::Packet8f& v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), n));
}
template <int n>
FASTRNN_INLINE ei::Packet4d shift_left(const ei::Packet4d& v) {
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(v), n));
}
#if !defined(EIGEN_VECTORIZE_AVX512)
/// n lanes of ones, then zeros: read from the right place in a row of both.
alignas(64) constexpr std::int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
FASTRNN_INLINE __m256i mask_of_bytes(std::int64_t n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMasks + 8 - n / 4));
}
FASTRNN_INLINE ei::Packet8f load_first(const float* p, First<ei::Packet8f> first) {
  return first.n >= 8 ? load<ei::Packet8f>(p) : ei::Packet8f(_mm256_maskload_ps(p, mask_of_bytes(4 * first.n)));
}
FASTRNN_INLINE ei::Packet4d load_first(const double* p, First<ei::Packet4d> first) {
  return first.n >= 4 ? load<ei::Packet4d>(p) : ei::Packet4d(_mm256_maskload_pd(p, mask_of_bytes(8 * first.n)));
}
FASTRNN_INLINE void store_first(float* p, const ei::Packet8f& v, First<ei::Packet8f> first) {
  first.n >= 8 ? store(p, v) : _mm256_maskstore_ps(p, mask_of_bytes(4 * first.n), v);
}
FASTRNN_INLINE void store_first(double* p, const ei::Packet4d& v, First<ei::Packet4d> first) {
  first.n >= 4 ? store(p, v) : _mm256_maskstore_pd(p, mask_of_bytes(8 * first.n), v);
}
#endif
#else
/// Through memory: enough where no masks exist and vectors are short.
template <class V>
FASTRNN_INLINE V load_first(const Scalar<V>* p, First<V> first) {
  if (first.n >= kLanes<V>) return load<V>(p);
  alignas(16) Scalar<V> lane[kLanes<V>] = {};
  for (int i = 0; i < kLanes<V> - 1; ++i)
    if (i < first.n) lane[i] = p[i];
  return load<V>(lane);
}
template <class V>
FASTRNN_INLINE void store_first(Scalar<V>* p, const V& v, First<V> first) {
  if (first.n >= kLanes<V>) return store(p, v);
  alignas(16) Scalar<V> lane[kLanes<V>];
  store(lane, v);
  for (int i = 0; i < kLanes<V> - 1; ++i)
    if (i < first.n) p[i] = lane[i];
}
#if defined(EIGEN_VECTORIZE_SSE)
using Floats = ei::Packet4f;
using Doubles = ei::Packet2d;
FASTRNN_INLINE Floats max_or_nan(const Floats& limit, const Floats& v) { return _mm_max_ps(limit, v); }
FASTRNN_INLINE Doubles max_or_nan(const Doubles& limit, const Doubles& v) { return _mm_max_pd(limit, v); }
FASTRNN_INLINE Floats if_negative(const Floats& v, const Floats& yes, const Floats& no) {
  const __m128 negative = _mm_castsi128_ps(_mm_srai_epi32(_mm_castps_si128(v), 31));
  return _mm_or_ps(_mm_and_ps(negative, yes), _mm_andnot_ps(negative, no));
}
FASTRNN_INLINE Doubles if_negative(const Doubles& v, const Doubles& yes, const Doubles& no) {
  const __m128i high = _mm_shuffle_epi32(_mm_castpd_si128(v), _MM_SHUFFLE(3, 3, 1, 1));
  const __m128d negative = _mm_castsi128_pd(_mm_srai_epi32(high, 31));
  return _mm_or_pd(_mm_and_pd(negative, yes), _mm_andnot_pd(negative, no));
}
template <int n>
FASTRNN_INLINE Floats shift_left(const Floats& v) {
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(v), n));
}
template <int n>
FASTRNN_INLINE Doubles shift_left(const Doubles& v) {
  return _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(v), n));
}
#elif EIGEN_ARCH_ARM64
using Floats = ei::Packet4f;
using Doubles = ei::Packet2d;
FASTRNN_INLINE Floats max_or_nan(const Floats& limit, const Floats& v) { return vmaxq_f32(limit, v); }
FASTRNN_INLINE Doubles max_or_nan(const Doubles& limit, const Doubles& v) { return vmaxq_f64(limit, v); }
FASTRNN_INLINE Floats if_negative(const Floats& v, const Floats& yes, const Floats& no) {
  return vbslq_f32(vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_f32(v), 31)), yes, no);
}
FASTRNN_INLINE Doubles if_negative(const Doubles& v, const Doubles& yes, const Doubles& no) {
  return vbslq_f64(vreinterpretq_u64_s64(vshrq_n_s64(vreinterpretq_s64_f64(v), 63)), yes, no);
}
template <int n>
FASTRNN_INLINE Floats shift_left(const Floats& v) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(v), n));
}
template <int n>
FASTRNN_INLINE Doubles shift_left(const Doubles& v) {
  return vreinterpretq_f64_s64(vshlq_n_s64(vreinterpretq_s64_f64(v), n));
}
#else
#error "fastrnn has kernels for x86-64 and 64-bit Arm; add this processor's vector functions here"
#endif
#endif

/// The first n lanes of a vector, or all of it if it has no more: what is beyond them reads as zero and is not written.
template <class V>
FASTRNN_INLINE V load(const Scalar<V>* p, First<V> n) {
  return load_first(p, n);
}
/// V is deduced from v alone, not from n (enable_if hides it there), so that a plain number converts to First.
template <class V>
FASTRNN_INLINE void store(Scalar<V>* p, const V& v, First<std::enable_if_t<true, V>> n) {
  store_first(p, v, n);
}

/// f on every lane, for functions that no vector code is worth.
template <class V, class F>
FASTRNN_INLINE V map_lanes(const V& v, F&& f) {
  if constexpr (VectorTraits<V>::is_group) {
    V result;
    for (std::size_t r = 0; r < sizeof v.v / sizeof v.v[0]; ++r) result.v[r] = map_lanes(v.v[r], f);
    return result;
  } else {
    alignas(64) Scalar<V> lane[kLanes<V>];
    store(lane, v);
    for (Scalar<V>& x : lane) x = f(x);
    return load<V>(lane);
  }
}

/// As many vectors as each has lanes, and their transposition in place.
template <class V>
using TransposableBlock = ei::PacketBlock<V, kLanes<V>>;
template <class V>
FASTRNN_INLINE void transpose(TransposableBlock<V>& block) {
  ei::ptranspose(block);
}
#if defined(EIGEN_VECTORIZE_AVX512)
// With fewer instructions than Eigen's, which go through vectors of half the width: first within lanes of 128 bits,
// then the lanes.
#define FASTRNN_TRANSPOSE_LANES(shuffle, a, b, c, d, to)           \
  {                                                                \
    const auto t0 = shuffle(a, b, 0x88), t1 = shuffle(a, b, 0xdd); \
    const auto t2 = shuffle(c, d, 0x88), t3 = shuffle(c, d, 0xdd); \
    to(0) = shuffle(t0, t2, 0x88), to(1) = shuffle(t1, t3, 0x88);  \
    to(2) = shuffle(t0, t2, 0xdd), to(3) = shuffle(t1, t3, 0xdd);  \
  }
FASTRNN_INLINE void transpose(TransposableBlock<ei::Packet16f>& block) {
  __m512 s[16];
#pragma GCC unroll 4
  for (int q = 0; q < 16; q += 4) {
    const __m512* const p = &block.packet[q];
    const __m512 low01 = _mm512_unpacklo_ps(p[0], p[1]), high01 = _mm512_unpackhi_ps(p[0], p[1]);
    const __m512 low23 = _mm512_unpacklo_ps(p[2], p[3]), high23 = _mm512_unpackhi_ps(p[2], p[3]);
    s[q] = _mm512_shuffle_ps(low01, low23, 0x44);
    s[q + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
    s[q + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
    s[q + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto to = [&](int lane) FASTRNN_ALWAYS -> ei::Packet16f& { return block.packet[4 * lane + j]; };
    FASTRNN_TRANSPOSE_LANES(_mm512_shuffle_f32x4, s[j], s[4 + j], s[8 + j], s[12 + j], to)
  }
}
FASTRNN_INLINE void transpose(TransposableBlock<ei::Packet8d>& block) {
  __m512d s[8];
#pragma GCC unroll 4
  for (int q = 0; q < 8; q += 2) {
    s[q] = _mm512_unpacklo_pd(block.packet[q], block.packet[q + 1]);
    s[q + 1] = _mm512_unpackhi_pd(block.packet[q], block.packet[q + 1]);
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const auto to = [&](int lane) FASTRNN_ALWAYS -> ei::Packet8d& { return block.packet[2 * lane + j]; };
    FASTRNN_TRANSPOSE_LANES(_mm512_shuffle_f64x2, s[j], s[2 + j], s[4 + j], s[6 + j], to)
  }
}
#undef FASTRNN_TRANSPOSE_LANES
#endif

// ---- The same on groups

/// f on each member.
template <class F, class V, int R, class... G>
FASTRNN_INLINE Group<V, R> each(F&& f, const Group<V, R>& first, const G&... others) {
  Group<V, R> result;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) result.v[r] = f(first.v[r], others.v[r]...);
  return result;
}
#define FASTRNN_ON_GROUPS(name, parameters, ...)                                          \
  template <class V, int R>                                                               \
  FASTRNN_INLINE Group<V, R> name parameters {                                            \
    return each([](const auto&... v) FASTRNN_ALWAYS { return name(v...); }, __VA_ARGS__); \
  }
#define FASTRNN_G const Group<V, R>&
FASTRNN_ON_GROUPS(negative_abs, (FASTRNN_G a), a)
FASTRNN_ON_GROUPS(negate, (FASTRNN_G a), a)
FASTRNN_ON_GROUPS(add, (FASTRNN_G a, FASTRNN_G b), a, b)
FASTRNN_ON_GROUPS(sub, (FASTRNN_G a, FASTRNN_G b), a, b)
FASTRNN_ON_GROUPS(mul, (FASTRNN_G a, FASTRNN_G b), a, b)
FASTRNN_ON_GROUPS(div, (FASTRNN_G a, FASTRNN_G b), a, b)
FASTRNN_ON_GROUPS(copy_sign, (FASTRNN_G a, FASTRNN_G b), a, b)
FASTRNN_ON_GROUPS(max_or_nan, (FASTRNN_G a, FASTRNN_G b), a, b)
FASTRNN_ON_GROUPS(fma, (FASTRNN_G a, FASTRNN_G b, FASTRNN_G c), a, b, c)
FASTRNN_ON_GROUPS(if_negative, (FASTRNN_G a, FASTRNN_G b, FASTRNN_G c), a, b, c)
#undef FASTRNN_G
#undef FASTRNN_ON_GROUPS
template <int n, class V, int R>
FASTRNN_INLINE Group<V, R> shift_left(const Group<V, R>& group) {
  return each([](const V& v) FASTRNN_ALWAYS { return shift_left<n>(v); }, group);
}

// ---- exp, tanh, sigmoid

/// Constants of e^y = 2^n (1 + p(r)), y = n ln2 + r, |r| <= ln2/2, p(r) = r + r^2 q(r). q is the minimax polynomial of
/// (expm1(r) - r) / r^2 weighted with r^2; its error in e^r is 2^-28 (float) and 2^-58 (double).
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float round = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits
  static constexpr float log2e = 0x1.715476p+0f;
  static constexpr float ln2_high = 0x1.62ep-1f;  // 12 bits: times an |n| <= 150 it is exact
  static constexpr float ln2_low = 0x1.0bfbe8p-15f;
  static constexpr float q[] = {0x1p-1f, 0x1.55548ep-3f, 0x1.55545ep-5f, 0x1.123b56p-7f, 0x1.6db426p-10f};
  static constexpr float lowest = -104.0f;  // e^-104 < 2^-150: rounds to zero
  static constexpr int scale_bits = 64;     // 2^(n + scale_bits) is normal for every n in use
  static constexpr float unscale = 0x1p-64f;
};
template <>
struct ExpConstants<double> {
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double round = 0x1.8p52;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42feep-1;  // 32 bits
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double q[] = {0x1.000000000000cp-1,  0x1.5555555555560p-3,  0x1.5555555550008p-5,
                                 0x1.111111110d9bdp-7,  0x1.6c16c185addabp-10, 0x1.a01a01b9c8171p-13,
                                 0x1.a019968579334p-16, 0x1.71dde21e5c66ap-19, 0x1.28b05430c766ap-22,
                                 0x1.af820560335adp-26};
  static constexpr double lowest = -746.0;
  static constexpr int scale_bits = 512;
  static constexpr double unscale = 0x1p-512;
};

/// e^y = scale * (1 + p), for lowest <= y <= 0 or NaN. scale is 2^(n + extra_bits) of the n that belongs to y.
template <int extra_bits, class V>
FASTRNN_INLINE void exp_parts(const V& y, V& scale, V& p) {
  using T = Scalar<V>;
  using C = ExpConstants<T>;
  const V magic = broadcast<V>(C::round + T(C::bias + extra_bits));
  const V shifted = fma(y, broadcast<V>(C::log2e), magic);
  const V n = sub(shifted, magic);
  const V r = fma(n, broadcast<V>(-C::ln2_low), fma(n, broadcast<V>(-C::ln2_high), y));
  constexpr int degree = static_cast<int>(sizeof C::q / sizeof(T)) - 1;
  V q = broadcast<V>(C::q[degree]);
  for (int i = degree - 1; i >= 0; --i) q = fma(q, r, broadcast<V>(C::q[i]));
  p = fma(mul(r, r), q, r);
  scale = shift_left<C::mantissa_bits>(shifted);
}

/// e^y for y <= 0, down to denormals. NaN stays NaN.
template <class V>
FASTRNN_INLINE V exp_negative(const V& y) {
  using C = ExpConstants<Scalar<V>>;
  V scale, p;
  exp_parts<C::scale_bits>(max_or_nan(broadcast<V>(C::lowest), y), scale, p);
  return mul(fma(scale, p, scale), broadcast<V>(C::unscale));
}

/// sigmoid x = 1 - w for x >= 0 and e - e w for x < 0, with e = e^-|x| and w = e / (1 + e): one rounding less on the
/// way than 1 / (1 + e^-x). NaN stays NaN.
template <class V>
FASTRNN_INLINE V sigmoid(const V& x) {
  const V e = exp_negative(negative_abs(x));
  const V one = broadcast<V>(Scalar<V>(1));
  const V base = if_negative(x, e, one);
  return fma(negate(base), div(e, add(one, e)), base);
}

/// tanh |x| = (1 - e) / (1 + e) with e = e^-2|x|, numerator and denominator each rounded once; then the sign of x. NaN
/// stays NaN.
template <class V>
FASTRNN_INLINE V tanh(const V& x) {
  using T = Scalar<V>;
  const V one = broadcast<V>(T(1));
  V scale, p;
  // -2|x| is cut off at -60: tanh 30 rounds to 1.
  exp_parts<0>(max_or_nan(broadcast<V>(T(-60)), mul(broadcast<V>(T(2)), negative_abs(x))), scale, p);
  return copy_sign(div(fma(scale, p, sub(scale, one)), fma(scale, p, add(scale, one))), x);
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
