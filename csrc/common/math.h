// exp, log, log1p, tanh and the rest for float, as straight-line arithmetic: loops over them
// vectorise on every instruction set, and a GPU computes the same values. double goes to the
// C library: it is for checking, not for speed.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/macros.h"

namespace fastgan::math {

FASTGAN_HD uint32_t bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  return u;
}
FASTGAN_HD float from_bits(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, sizeof x);
  return x;
}

FASTGAN_HD float abs(float x) { return from_bits(bits(x) & 0x7fffffffu); }
FASTGAN_HD double abs(double x) { return ::fabs(x); }
FASTGAN_HD float sqrt(float x) { return ::sqrtf(x); }
FASTGAN_HD double sqrt(double x) { return ::sqrt(x); }

template <class T>
struct Exp {
  T whole, less_one;
};
// e^x, 0 below the smallest normal result, finite above 88.37; and e^x - 1 for any x up to 88.37.
// Both within 2 units in the last place.
FASTGAN_HD Exp<float> exp_and_expm1(float x) {
  const float clamped = x > 88.37f ? 88.37f : (x < -87.33f ? -87.33f : x);
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const float shifted = clamped * 1.44269504f + 12582912.f;
  const float n = shifted - 12582912.f;
  // ln 2 in two parts, the first short enough that n * 0.693359375 is exact.
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  // e^r - 1, kept apart from the 1.
  const float rest = p * (r * r) + r;
  const float power = from_bits((bits(shifted) - 0x4b400000u + 127u) << 23);
  // NaN goes through: it fails the comparisons with x and poisons rest.
  return {x < -87.33f ? 0.f : (rest + 1.f) * power, rest * power + (power - 1.f)};
}
FASTGAN_HD Exp<double> exp_and_expm1(double x) { return {::exp(x), ::expm1(x)}; }

FASTGAN_HD float exp(float x) { return exp_and_expm1(x).whole; }
FASTGAN_HD double exp(double x) { return ::exp(x); }

// ln x for normal x > 0, within 2 units in the last place.
FASTGAN_HD float log(float x) {
  // Split x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
  const uint32_t offset = bits(x) - 0x3f3504f3u;
  const float e = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = from_bits((offset & 0x7fffffu) + 0x3f3504f3u) - 1.f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  // ln 2 in two parts again: e * 0.693359375 is exact.
  const float small = p * (f * z) + e * -2.12194440e-4f - 0.5f * z;
  return (f + small) + e * 0.693359375f;
}

// ln(1 + x) for x >= 0; the rounding error of 1 + x is put back to first order.
FASTGAN_HD float log1p(float x) {
  const float u = 1.f + x;
  return log(u) + (x - (u - 1.f)) / u;
}
FASTGAN_HD double log1p(double x) { return ::log1p(x); }

FASTGAN_HD float tanh(float x) {
  const float a = abs(x);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = x + x * z * p;
  const float far = 1.f - 2.f / (exp(2.f * a) + 1.f);
  return a < 0.625f ? near : (x < 0.f ? -far : far);
}
FASTGAN_HD double tanh(double x) { return ::tanh(x); }

// cosine and sine of a fraction of a turn given as a 24-bit integer: angle = turn * 2 pi / 2^24.
// The quadrant is taken from the integer, so no precision is lost to reducing the angle.
FASTGAN_HD void cos_sin_turn(uint32_t turn, float& cosine, float& sine) {
  const uint32_t centred = turn + (1u << 21);
  const uint32_t quadrant = (centred >> 22) & 3u;
  const int32_t rest = static_cast<int32_t>(centred & 0x3fffffu) - (1 << 21);
  const float t = static_cast<float>(rest) * 3.745070282923929e-07f;  // pi / 2 / 2^22
  const float z = t * t;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * t + t;
  const float c =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.f;
  const bool swapped = quadrant & 1u;
  // Signs by flipping the sign bit: quadrants 1 and 2 for the cosine, 2 and 3 for the sine.
  cosine = from_bits(bits(swapped ? s : c) ^ (((quadrant + 1u) & 2u) << 30));
  sine = from_bits(bits(swapped ? c : s) ^ ((quadrant & 2u) << 30));
}

}  // namespace fastgan::math
