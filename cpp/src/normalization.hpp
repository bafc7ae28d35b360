// Layer normalization (Ba, Kiros and Hinton, "Layer normalization", 2016) of the products of a row, and of c.
#pragma once

#include <cmath>

#include "gemm.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

/// n = (a - mean) scale has mean 0 and standard deviation 1.
template <class T>
struct Standard {
  T mean, scale;
};

/// The sum of term(i) over i < n, in an order that depends on n alone.
template <class T, class F>
FASTRNN_INLINE T sum_of(Index n, F&& term) {
  constexpr Index L = 2 * kLanes<Vec<T>>;
  T lane[L] = {};
  Index i = 0;
  for (; i + L <= n; i += L)
    for (Index j = 0; j < L; ++j) lane[j] += term(i + j);
  for (; i < n; ++i) lane[i % L] += term(i);
  for (Index half = L / 2; half > 0; half /= 2)
    for (Index j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

template <class T>
Standard<T> standard_of(const T* a, Index n) {
  constexpr T epsilon = T(1e-5);
  const T mean = sum_of<T>(n, [&](Index i) { return a[i]; }) / T(n);
  const T variance = sum_of<T>(n, [&](Index i) { return (a[i] - mean) * (a[i] - mean); }) / T(n);
  return {mean, 1 / std::sqrt(variance + epsilon)};
}

/// Of y = gain n(a): from the gradient of y those of a and, this row's share, of the gain.
template <class T>
void normalization_backward(const T* a, const T* gain, const T* dy, Index n, T* da, T* dgain) {
  const Standard<T> s = standard_of(a, n);
  const auto normal = [&](Index i) { return (a[i] - s.mean) * s.scale; };
  const T mean = sum_of<T>(n, [&](Index i) { return dy[i] * gain[i]; }) / T(n);
  const T slope = sum_of<T>(n, [&](Index i) { return dy[i] * gain[i] * normal(i); }) / T(n);
  for (Index i = 0; i < n; ++i) {
    da[i] = s.scale * (dy[i] * gain[i] - mean - normal(i) * slope);
    dgain[i] = dy[i] * normal(i);
  }
}

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
