// Vectors of the instruction set that this object is compiled for, as Eigen's packets, and the functions on them that
// the cells need. The only file that names Eigen::internal or an intrinsic.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define FASTRNN_INLINE inline __attribute__((always_inline))

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

namespace ei = Eigen::internal;

/// The widest vector of T.
template <class T>
using Vec = typename ei::packet_traits<T>::type;
template <class V>
using Scalar = typename ei::unpacket_traits<V>::type;
template <class V>
constexpr int kLanes = ei::unpacket_traits<V>::size;

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
template <class V>
FASTRNN_INLINE V broadcast(Scalar<V> s) {
  return ei::pset1<V>(s);
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
FASTRNN_INLINE V abs(const V& a) {
  return ei::pabs(a);
}
template <class V>
FASTRNN_INLINE V negate(const V& a) {
  return ei::pnegate(a);
}
template <class V>
FASTRNN_INLINE V copy_sign(const V& magnitude, const V& sign) {
  return ei::por(abs(magnitude), ei::pand(sign, broadcast<V>(Scalar<V>(-0.0))));
}

// ---- What Eigen 3.4 has no portable name for: the larger of a limit and a value that may be NaN (then NaN), a choice
// by
// ---- sign bit, bits shifted within each lane, and loads and stores of the first n lanes (the others: zero,
// untouched).

#if defined(EIGEN_VECTORIZE_AVX512)
using Floats = ei::Packet16f;
using Doubles = ei::Packet8d;
FASTRNN_INLINE Floats max_or_nan(const Floats& limit, const Floats& v) { return _mm512_max_ps(limit, v); }
FASTRNN_INLINE Doubles max_or_nan(const Doubles& limit, const Doubles& v) { return _mm512_max_pd(limit, v); }
FASTRNN_INLINE Floats if_negative(const Floats& v, const Floats& yes, const Floats& no) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(v)), no, yes);
}
FASTRNN_INLINE Doubles if_negative(const Doubles& v, const Doubles& yes, const Doubles& no) {
  return _mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(v)), no, yes);
}
template <int n>
FASTRNN_INLINE Floats shift_left(const Floats& v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), n));
}
template <int n>
FASTRNN_INLINE Doubles shift_left(const Doubles& v) {
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(v), n));
}
template <class V>
FASTRNN_INLINE auto lanes(std::int64_t n) {
  return static_cast<std::conditional_t<kLanes<V> == 16, __mmask16, __mmask8>>((1u << n) - 1);
}
FASTRNN_INLINE Floats load_first(const float* p, std::int64_t n, Floats) {
  return _mm512_maskz_loadu_ps(lanes<Floats>(n), p);
}
FASTRNN_INLINE Doubles load_first(const double* p, std::int64_t n, Doubles) {
  return _mm512_maskz_loadu_pd(lanes<Doubles>(n), p);
}
FASTRNN_INLINE void store_first(float* p, const Floats& v, std::int64_t n) {
  _mm512_mask_storeu_ps(p, lanes<Floats>(n), v);
}
FASTRNN_INLINE void store_first(double* p, const Doubles& v, std::int64_t n) {
  _mm512_mask_storeu_pd(p, lanes<Doubles>(n), v);
}
#elif defined(EIGEN_VECTORIZE_AVX2)
using Floats = ei::Packet8f;
using Doubles = ei::Packet4d;
FASTRNN_INLINE Floats max_or_nan(const Floats& limit, const Floats& v) { return _mm256_max_ps(limit, v); }
FASTRNN_INLINE Doubles max_or_nan(const Doubles& limit, const Doubles& v) { return _mm256_max_pd(limit, v); }
FASTRNN_INLINE Floats if_negative(const Floats& v, const Floats& yes, const Floats& no) {
  return _mm256_blendv_ps(no, yes, v);
}
FASTRNN_INLINE Doubles if_negative(const Doubles& v, const Doubles& yes, const Doubles& no) {
  return _mm256_blendv_pd(no, yes, v);
}
template <int n>
FASTRNN_INLINE Floats shift_left(const Floats& v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), n));
}
template <int n>
FASTRNN_INLINE Doubles shift_left(const Doubles& v) {
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(v), n));
}
/// n lanes of ones, then zeros: read from the right place in a row of both.
alignas(64) constexpr std::int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
FASTRNN_INLINE __m256i lanes(std::int64_t n_bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMasks + 8 - n_bytes / 4));
}
FASTRNN_INLINE Floats load_first(const float* p, std::int64_t n, Floats) { return _mm256_maskload_ps(p, lanes(4 * n)); }
FASTRNN_INLINE Doubles load_first(const double* p, std::int64_t n, Doubles) {
  return _mm256_maskload_pd(p, lanes(8 * n));
}
FASTRNN_INLINE void store_first(float* p, const Floats& v, std::int64_t n) { _mm256_maskstore_ps(p, lanes(4 * n), v); }
FASTRNN_INLINE void store_first(double* p, const Doubles& v, std::int64_t n) {
  _mm256_maskstore_pd(p, lanes(8 * n), v);
}
#else
/// Through memory: enough where no masks exist and vectors are short.
template <class V>
FASTRNN_INLINE V load_first(const Scalar<V>* p, std::int64_t n, V) {
  alignas(16) Scalar<V> lane[kLanes<V>] = {};
  for (int i = 0; i < kLanes<V> - 1; ++i)
    if (i < n) lane[i] = p[i];
  return load<V>(lane);
}
template <class V>
FASTRNN_INLINE void store_first(Scalar<V>* p, const V& v, std::int64_t n) {
  alignas(16) Scalar<V> lane[kLanes<V>];
  store(lane, v);
  for (int i = 0; i < kLanes<V> - 1; ++i)
    if (i < n) p[i] = lane[i];
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

template <class V>
FASTRNN_INLINE V load(const Scalar<V>* p, std::int64_t n) {
  return n >= kLanes<V> ? load<V>(p) : load_first(p, n, V());
}
template <class V>
FASTRNN_INLINE void store(Scalar<V>* p, const V& v, std::int64_t n) {
  if (n >= kLanes<V>)
    store(p, v);
  else
    store_first(p, v, n);
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

/// sigmoid x = 1 - w for x >= 0 and e - e w for x < 0, with e = e^-|x| and w = e / (1 + e): one rounding less on the
/// way than 1 / (1 + e^-x). NaN stays NaN.
template <class V>
FASTRNN_INLINE V sigmoid(const V& x) {
  using C = ExpConstants<Scalar<V>>;
  V scale, p;
  exp_parts<C::scale_bits>(max_or_nan(broadcast<V>(C::lowest), negate(abs(x))), scale, p);
  const V e = mul(fma(scale, p, scale), broadcast<V>(C::unscale));  // down to denormals
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
  exp_parts<0>(max_or_nan(broadcast<V>(T(-60)), mul(broadcast<V>(T(-2)), abs(x))), scale, p);  // tanh 30 rounds to 1
  return copy_sign(div(fma(scale, p, sub(scale, one)), fma(scale, p, add(scale, one))), x);
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
