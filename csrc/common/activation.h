// Activations and their derivatives. But for ELU's, derivatives are written in terms of the output,
// which is what a backward pass still has at hand.
#pragma once

#include "common/math.h"

namespace fastgan {

template <class T>
FASTGAN_HD T leaky_relu(T x, T negative_slope) {
  return x > T(0) ? x : x * negative_slope;
}
// `sign` has the sign of the input; the output will do where negative_slope >= 0.
template <class T>
FASTGAN_HD T leaky_relu_grad(T grad, T sign, T negative_slope) {
  return sign > T(0) ? grad : grad * negative_slope;
}

// Exact in both tails: nothing is subtracted from 1.
template <class T>
FASTGAN_HD T sigmoid(T x) {
  const T e = math::exp(-math::abs(x));
  return (x >= T(0) ? T(1) : e) / (T(1) + e);
}
template <class T>
FASTGAN_HD T sigmoid_grad(T grad, T y) {
  return grad * (y * (T(1) - y));
}

template <class T>
FASTGAN_HD T tanh_grad(T grad, T y) {
  return grad * (T(1) - y * y);
}

// D.-A. Clevert, T. Unterthiner, S. Hochreiter, "Fast and Accurate Deep Network Learning by
// Exponential Linear Units", ICLR 2016.
// The derivative comes along: close to -alpha the value no longer tells it.
template <class T>
struct WithSlope {
  T value, slope;
};
template <class T>
FASTGAN_HD WithSlope<T> elu(T x, T alpha) {
  const math::Exp<T> e = math::exp_and_expm1(x > T(0) ? T(0) : x);
  return {x > T(0) ? x : alpha * e.less_one, x > T(0) ? T(1) : alpha * e.whole};
}
// G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter, "Self-Normalizing Neural Networks", NeurIPS
// 2017.
template <class T>
FASTGAN_HD WithSlope<T> selu(T x) {
  constexpr T scale = T(1.0507009873554804934);
  const WithSlope<T> y = elu(x, T(1.6732632423543772848));
  return {scale * y.value, scale * y.slope};
}

}  // namespace fastgan
