// bfloat16 as storage: arithmetic is done in float.
#pragma once

#include <stdint.h>

#include "common/math.h"

namespace fastgan {

struct bf16 {
  uint16_t bits;
};

FASTGAN_HD float widen(bf16 x) { return math::from_bits(static_cast<uint32_t>(x.bits) << 16); }
FASTGAN_HD float widen(float x) { return x; }
FASTGAN_HD double widen(double x) { return x; }

// Rounds to nearest, ties to even; NaN stays NaN.
FASTGAN_HD bf16 narrow_bf16(float x) {
  const uint32_t u = math::bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

// The same rounding, back in float.
FASTGAN_HD float round_to_bf16(float x) {
  const uint32_t u = math::bits(x);
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  return math::from_bits(nan ? 0x7fc00000u : (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}

// The type that values of T are computed in.
template <class T>
struct Arithmetic {
  using type = T;
};
template <>
struct Arithmetic<bf16> {
  using type = float;
};
template <class T>
using arithmetic_t = typename Arithmetic<T>::type;

FASTGAN_HD void store(float* to, float x) { *to = x; }
FASTGAN_HD void store(double* to, double x) { *to = x; }
FASTGAN_HD void store(bf16* to, float x) { *to = narrow_bf16(x); }

}  // namespace fastgan
