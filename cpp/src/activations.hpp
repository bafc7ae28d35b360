// The activations of a cell's gates and states. A cell is compiled with `StandardActivations` (sigmoid and tanh,
// inlined: the fused kernels) and with `ChosenActivations` (any, picked at run time: the general kernels). Each
// activation offers
//   save(a)                  what a tape keeps of the sum a: its activated value if the slope follows from that, else a
//   value(saved)             the activated value
//   gradient(saved, value, d)  d times the slope at a. The slope is finished before d comes in: an infinite d must not
//                            meet itself with the other sign.
#pragma once

#include <cmath>

#include "fastrnn/fastrnn.hpp"
#include "simd.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {
namespace {

template <class V>
FASTRNN_INLINE V one() {
  return broadcast<V>(Scalar<V>(1));
}
/// d times s (1 - s), the derivative of sigmoid where its value is s.
template <class V>
FASTRNN_INLINE V sigmoid_gradient(const V& s, const V& d) {
  return mul(d, fma(negate(s), s, s));
}
/// d times 1 - t^2, the derivative of tanh where its value is t.
template <class V>
FASTRNN_INLINE V tanh_gradient(const V& t, const V& d) {
  return mul(d, fma(negate(t), t, one<V>()));
}

/// An activation that is saved as its value.
struct SavedAsValue {
  explicit SavedAsValue(const Activation&) {}
  template <class V>
  FASTRNN_INLINE V value(const V& saved) const {
    return saved;
  }
};

struct Sigmoid : SavedAsValue {
  using SavedAsValue::SavedAsValue;
  template <class V>
  FASTRNN_INLINE V save(const V& a) const {
    return sigmoid(a);
  }
  template <class V>
  FASTRNN_INLINE V gradient(const V&, const V& value, const V& d) const {
    return sigmoid_gradient(value, d);
  }
};

struct Tanh : SavedAsValue {
  using SavedAsValue::SavedAsValue;
  template <class V>
  FASTRNN_INLINE V save(const V& a) const {
    return tanh(a);
  }
  template <class V>
  FASTRNN_INLINE V gradient(const V&, const V& value, const V& d) const {
    return tanh_gradient(value, d);
  }
};

// ---- Parts of the others

template <class V>
FASTRNN_INLINE V clamp(const V& v, double low, double high) {
  using T = Scalar<V>;
  const V from_below = max_or_nan(broadcast<V>(static_cast<T>(low)), v);
  return negate(max_or_nan(broadcast<V>(static_cast<T>(-high)), negate(from_below)));
}
/// yes where low < v, else no.
template <class V>
FASTRNN_INLINE V if_above(const V& v, double low, const V& yes, const V& no) {
  return if_negative(sub(broadcast<V>(static_cast<Scalar<V>>(low)), v), yes, no);
}
/// yes where low < v < high, else no.
template <class V>
FASTRNN_INLINE V if_between(const V& v, double low, double high, const V& yes, const V& no) {
  return if_above(v, low, if_negative(sub(v, broadcast<V>(static_cast<Scalar<V>>(high))), yes, no), no);
}
/// e^y. NaN stays NaN.
template <class V>
FASTRNN_INLINE V exp(const V& y) {
  const V e = exp_negative(negative_abs(y));
  return if_negative(y, e, div(one<V>(), e));
}
/// e^y - 1 for y <= 0.
template <class V>
FASTRNN_INLINE V expm1_negative(const V& y) {
  V scale, p;
  exp_parts<0>(max_or_nan(broadcast<V>(Scalar<V>(-60)), y), scale, p);  // e^-60 - 1 rounds to -1
  return fma(scale, p, sub(scale, one<V>()));
}
/// log(1 + u) for 0 <= u <= 1: 2 artanh s = 2 (s + s^3/3 + s^5/5 ...) with s = u / (2 + u) <= 1/3.
template <class V>
FASTRNN_INLINE V log1p_fraction(const V& u) {
  using T = Scalar<V>;
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;  // the first left out is below 3^-(2 terms), half an ulp
  const V s = div(u, add(broadcast<V>(T(2)), u)), s2 = mul(s, s);
  V sum = broadcast<V>(T(1) / T(2 * terms - 1));
  for (int k = terms - 2; k >= 0; --k) sum = fma(sum, s2, broadcast<V>(T(1) / T(2 * k + 1)));
  return mul(mul(broadcast<V>(T(2)), s), sum);
}
/// log(1 + e^a).
template <class V>
FASTRNN_INLINE V softplus(const V& a) {
  return add(clamp(a, 0, INFINITY), log1p_fraction(exp_negative(negative_abs(a))));
}
/// The distribution function of the normal distribution.
template <class V>
FASTRNN_INLINE V normal(const V& a) {
  using T = Scalar<V>;
  return map_lanes(a, [](T x) { return T(0.5) * std::erfc(x * T(-0.70710678118654752440)); });
}
template <class V>
FASTRNN_INLINE V normal_density(const V& a) {
  using T = Scalar<V>;
  return mul(exp_negative(mul(mul(a, a), broadcast<V>(T(-0.5)))), broadcast<V>(T(0.39894228040143267794)));
}
/// sqrt(a^2 + p).
template <class V>
FASTRNN_INLINE V hypotenuse(const V& a, double p) {
  using T = Scalar<V>;
  const T root = static_cast<T>(std::sqrt(p));
  return map_lanes(a, [root](T x) { return std::hypot(x, root); });
}

/// Any activation. The values are those of Python's fastrnn.activations, where each is defined.
class ChosenActivation {
 public:
  explicit ChosenActivation(const Activation& f)
      : f_(f),
        clipped_(f.clip < INFINITY),
        saves_value_(!clipped_ && (f.kind == ActivationKind::tanh || f.kind == ActivationKind::sigmoid)) {}

  template <class V>
  FASTRNN_INLINE V save(const V& a) const {
    return saves_value_ ? activated(a) : a;
  }
  template <class V>
  FASTRNN_INLINE V value(const V& saved) const {
    return saves_value_ ? saved : activated(saved);
  }
  template <class V>
  FASTRNN_INLINE V gradient(const V& saved, const V& value, const V& d) const {
    if (saves_value_) return f_.kind == ActivationKind::tanh ? tanh_gradient(value, d) : sigmoid_gradient(value, d);
    return mul(d, slope(saved));
  }

 private:
  template <class V, int R>
  Group<V, R> activated(const Group<V, R>& sums) const {
    return each([this](const V& sum) { return activated(sum); }, sums);
  }
  template <class V>
  __attribute__((noinline)) V activated(const V& sum) const {
    const V a = clipped_ ? clamp(sum, -f_.clip, f_.clip) : sum;
    const V p = constant<V>(f_.alpha), q = constant<V>(f_.beta);
    switch (f_.kind) {
      case ActivationKind::tanh:
        return tanh(a);
      case ActivationKind::sigmoid:
        return sigmoid(a);
      case ActivationKind::affine:
        return fma(p, a, q);
      case ActivationKind::hard_tanh:
        return clamp(a, f_.alpha, f_.beta);
      case ActivationKind::leaky_relu:
        return if_above(a, 0, a, mul(p, a));
      case ActivationKind::hard_sigmoid:
        return clamp(fma(p, a, q), 0, 1);
      case ActivationKind::softsign:
        return div(a, sub(one<V>(), negative_abs(a)));
      case ActivationKind::softplus:
        return softplus(a);
      case ActivationKind::log_sigmoid:
        return negate(softplus(negate(a)));
      case ActivationKind::elu:
        return if_above(a, 0, mul(q, a), mul(p, expm1_negative(clamp(a, -INFINITY, 0))));
      case ActivationKind::celu:
        return if_above(a, 0, a, mul(p, expm1_negative(clamp(div(a, p), -INFINITY, 0))));
      case ActivationKind::exponential:
        return exp(a);
      case ActivationKind::silu:
        return mul(a, sigmoid(a));
      case ActivationKind::gelu:
        return mul(a, normal(a));
      case ActivationKind::mish:
        return mul(a, tanh(softplus(a)));
      case ActivationKind::hard_silu:
        return mul(a, clamp(fma(p, a, q), 0, 1));
      case ActivationKind::tanh_shrink:
        return sub(a, tanh(a));
      case ActivationKind::scaled_tanh:
        return mul(p, tanh(mul(q, a)));
      case ActivationKind::thresholded_relu:
        return if_above(a, f_.alpha, a, mul(clamp(a, -1, 1), zero<V>()));  // NaN stays NaN
      case ActivationKind::soft_shrink:
        return sub(a, clamp(a, -f_.alpha, f_.alpha));
      case ActivationKind::hard_shrink:
        return if_above(a, f_.alpha, a, if_above(negate(a), f_.alpha, a, zero<V>()));
      case ActivationKind::squareplus:
        return mul(constant<V>(0.5), add(a, hypotenuse(a, f_.alpha)));
      case ActivationKind::sparse_plus: {
        const V below = clamp(add(a, one<V>()), 0, INFINITY);
        return if_above(a, 1, a, mul(constant<V>(0.25), mul(below, below)));
      }
    }
    __builtin_unreachable();
  }

  template <class V>
  __attribute__((noinline)) V slope(const V& sum) const {
    const V a = clipped_ ? clamp(sum, -f_.clip, f_.clip) : sum;
    const V p = constant<V>(f_.alpha), q = constant<V>(f_.beta), none = zero<V>();
    const V at_a = [&]() FASTRNN_ALWAYS -> V {
      switch (f_.kind) {
        case ActivationKind::tanh:
          return tanh_gradient(tanh(a), one<V>());
        case ActivationKind::sigmoid:
          return sigmoid_gradient(sigmoid(a), one<V>());
        case ActivationKind::affine:
          return p;
        case ActivationKind::hard_tanh:
          return if_between(a, f_.alpha, f_.beta, one<V>(), none);
        case ActivationKind::leaky_relu:
          return if_above(a, 0, one<V>(), p);
        case ActivationKind::hard_sigmoid:
          return if_between(fma(p, a, q), 0, 1, p, none);
        case ActivationKind::softsign: {
          const V root = sub(one<V>(), negative_abs(a));
          return div(one<V>(), mul(root, root));
        }
        case ActivationKind::softplus:
          return sigmoid(a);
        case ActivationKind::log_sigmoid:
          return sigmoid(negate(a));
        case ActivationKind::elu:
          return if_above(a, 0, q, mul(p, exp_negative(clamp(a, -INFINITY, 0))));
        case ActivationKind::celu:
          return if_above(a, 0, one<V>(), exp_negative(clamp(div(a, p), -INFINITY, 0)));
        case ActivationKind::exponential:
          return exp(a);
        case ActivationKind::silu: {
          const V s = sigmoid(a);
          return fma(a, sigmoid_gradient(s, one<V>()), s);
        }
        case ActivationKind::gelu:
          return fma(a, normal_density(a), normal(a));
        case ActivationKind::mish: {
          const V t = tanh(softplus(a));
          return fma(mul(a, sigmoid(a)), tanh_gradient(t, one<V>()), t);
        }
        case ActivationKind::hard_silu: {
          const V inner = fma(p, a, q);
          return add(clamp(inner, 0, 1), if_between(inner, 0, 1, mul(p, a), none));
        }
        case ActivationKind::tanh_shrink: {
          const V t = tanh(a);
          return mul(t, t);
        }
        case ActivationKind::scaled_tanh:
          return mul(mul(p, q), tanh_gradient(tanh(mul(q, a)), one<V>()));
        case ActivationKind::thresholded_relu:
          return if_above(a, f_.alpha, one<V>(), none);
        case ActivationKind::soft_shrink:
        case ActivationKind::hard_shrink:
          return if_above(a, f_.alpha, one<V>(), if_above(negate(a), f_.alpha, one<V>(), none));
        case ActivationKind::squareplus:
          return mul(constant<V>(0.5), add(one<V>(), div(a, hypotenuse(a, f_.alpha))));
        case ActivationKind::sparse_plus:
          return clamp(mul(constant<V>(0.5), add(a, one<V>())), 0, 1);
      }
      __builtin_unreachable();
    }();
    return clipped_ ? if_above(sum, f_.clip, none, if_above(negate(sum), f_.clip, none, at_a)) : at_a;
  }

  template <class V>
  static FASTRNN_INLINE V constant(double value) {
    return broadcast<V>(static_cast<Scalar<V>>(value));
  }

  const Activation f_;
  const bool clipped_, saves_value_;
};

/// `gate` is what Keras calls recurrent_activation; `state` makes a candidate, `output` reads a state (lstm).
template <class Gate, class State, bool standard_>
struct Activations {
  static constexpr bool standard = standard_;
  Gate gate;
  State state, output;
  explicit Activations(const Activation* chosen) : gate(chosen[0]), state(chosen[1]), output(chosen[2]) {}
};
using StandardActivations = Activations<Sigmoid, Tanh, true>;
using ChosenActivations = Activations<ChosenActivation, ChosenActivation, false>;

}  // namespace
}  // namespace FASTRNN_ISA
}  // namespace fastrnn
