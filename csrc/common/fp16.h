// IEEE half precision as storage: arithmetic is done in float.
#pragma once

#include "common/bf16.h"

namespace fastgan {

struct fp16 {
  uint16_t bits;
};

FASTGAN_HD float widen(fp16 x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t magnitude = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
  const uint32_t shifted = magnitude << 13;
  uint32_t bits = shifted + (112u << 23);                  // the exponent's bias, from 15 to 127
  if (magnitude >= 0x7c00u) bits = shifted | 0x7f800000u;  // infinite or NaN
  if (magnitude < 0x0400u) {                               // subnormal
    bits = math::bits(math::from_bits(shifted | 0x38800000u) - math::from_bits(0x38800000u));
  }
  return math::from_bits(bits | sign);
#endif
}

// Rounds to nearest, ties to even; from 65520 on infinite; NaN stays NaN.
FASTGAN_HD fp16 narrow_fp16(float x) {
#if defined(__CUDA_ARCH__)
  fp16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t u = math::bits(x), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
  uint32_t bits = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  if (magnitude >= 0x477ff000u) bits = 0x7c00u;
  if (magnitude > 0x7f800000u) bits = 0x7e00u;
  // One unit in the last place of 0.5 is the smallest subnormal: the sum rounds as it should.
  if (magnitude < 0x38800000u) bits = math::bits(math::from_bits(magnitude) + 0.5f) - 0x3f000000u;
  return {static_cast<uint16_t>(bits | sign)};
#endif
}

template <>
struct Arithmetic<fp16> {
  using type = float;
};

FASTGAN_HD void store(fp16* to, float x) { *to = narrow_fp16(x); }

}  // namespace fastgan
