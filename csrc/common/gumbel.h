// Uniform numbers of normal ones, and Gumbel's noise, by which a class is chosen among logits.
#pragma once

#include "common/math.h"

namespace fastgan {

// The share of the standard normals beyond a >= 0: exp(-a^2 / 2) times a polynomial in
// 1 / (1 + 0.35 a), fitted on [0, 5.5] to 1.4e-8 of its value.
FASTGAN_HD float normal_tail(float a) {
  const float t = 1.f / (1.f + 0.35f * a);
  float p = -0.023555555f;
  p = p * t + 0.164890838f;
  p = p * t - 0.445923146f;
  p = p * t + 0.526399724f;
  p = p * t - 0.22110406f;
  p = p * t + 0.24688826f;
  p = p * t + 0.108662373f;
  p = p * t + 0.144011386f;
  p = p * t - 0.000269816318f;
  return p * math::exp(-0.5f * a * a);
}

// The share of the standard normals below x.
FASTGAN_HD float uniform_of(float x) {
  const float tail = normal_tail(math::abs(x));
  return x < 0.f ? tail : 1.f - tail;
}

// -log(-log u), u the share of the standard normals below x; u in [6e-8, 1 - 6e-8].
FASTGAN_HD float gumbel_of(float x) {
  const float found = normal_tail(math::abs(x));
  const float tail = found < 6e-8f ? 6e-8f : found;
  // -log of the tail, or of what it leaves of 1.
  const float rest = 1.f - tail;
  const float lost = (1.f - rest) - tail;
  const float below = -math::log(tail), above = -(math::log(rest) + lost / rest);
  return -math::log(x < 0.f ? below : above);
}

}  // namespace fastgan
