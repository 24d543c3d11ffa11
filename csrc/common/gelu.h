// GELU and SiLU, which fall and rise again, so that one value has two slopes: both derivatives come
// along with the value, as those of softplus do. Each is exact in its tail, where the usual 1 + erf
// and 1 + tanh cancel.
#pragma once

#include "common/activation.h"

namespace fastgan {

// `bend` is the second derivative.
template <class T>
struct WithBend : WithSlope<T> {
  T bend;
};

// The logistic function of x and of -x, both exact in their tails.
struct Logistic {
  float of, of_minus;
};
FASTGAN_HD Logistic logistic(float x) {
  const float e = math::exp(-math::abs(x));
  const float large = 1.f / (1.f + e), small = e * large;
  return {x < 0.f ? small : large, x < 0.f ? large : small};
}

// S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units for Neural Network Function
// Approximation in Reinforcement Learning", Neural Networks 107, 2018.
FASTGAN_HD WithBend<float> silu(float x) {
  const Logistic s = logistic(x);
  const float rise = s.of * s.of_minus;
  return {{x * s.of, s.of + x * rise}, rise * (2.f + x * (s.of_minus - s.of))};
}

// C. Dugas, Y. Bengio, F. Belisle, C. Nadeau, R. Garcia, "Incorporating Second-Order Functional
// Knowledge for Better Option Pricing", NeurIPS 2000.
FASTGAN_HD WithBend<float> softplus(float x) {
  const Logistic s = logistic(x);
  const float rest = math::log1p(math::exp(-math::abs(x)));
  return {{(x > 0.f ? x : 0.f) + rest, s.of}, s.of * s.of_minus};
}

// D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415. Beyond 14 both
// are straight; the bound keeps infinity out of what is multiplied with zero.
FASTGAN_HD float gelu_square(float x) {
  const float square = x * x;
  return square > 200.f ? 200.f : square;
}

// x times the normal distribution's share below x. The share in a tail is the density times Mills's
// ratio, here a polynomial in 1 / (1 + 0.35 |x|) within 3.2e-8 of it: so that far below zero digits
// remain, where 1 + erf has none.
FASTGAN_HD WithBend<float> gelu(float x) {
  const float square = gelu_square(x);
  const float density = 0.3989422804f * math::exp(-0.5f * square);
  const float t = 1.f / (1.f + 0.35f * math::abs(x));
  float p = -7.2980781441e-2f;
  p = p * t + 3.6050054170e-1f;
  p = p * t - 6.4017279487e-1f;
  p = p * t + 3.9804665692e-1f;
  p = p * t - 5.7261746867e-2f;
  p = p * t + 2.6417963981e-1f;
  p = p * t + 3.0045204159e-1f;
  p = p * t + 3.5057094034e-1f;
  p = p * t + 3.4997960041e-1f;
  const float tail = density * (p * t);
  const float share = x < 0.f ? tail : 1.f - tail;
  return {{x * share, share + x * density}, density * (2.f - square)};
}

// The share by a tanh: (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3), which is the
// logistic function of 2 u.
FASTGAN_HD WithBend<float> gelu_tanh(float x) {
  constexpr float one = 1.5957691216f, three = 7.1354816272e-2f;
  const float square = gelu_square(x);
  const Logistic s = logistic(x * (one + three * square));
  const float slope = one + 3.f * three * square;  // of 2 u
  const float rise = s.of * s.of_minus * slope;    // of the share
  const float bend = rise * (s.of_minus - s.of) * slope + s.of * s.of_minus * (6.f * three * x);
  return {{x * s.of, s.of + x * rise}, 2.f * rise + x * bend};
}

}  // namespace fastgan
