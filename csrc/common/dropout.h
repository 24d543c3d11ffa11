// Dropout masks from 16-bit halves of Philox words.
#pragma once

#include <stdint.h>

#include "common/macros.h"

namespace fastgan {

// Element e of a mask reads half e & 1 of word e >> 1. threshold = round((1 - p) * 65536).
FASTGAN_HD bool keeps(uint32_t word, uint32_t half, uint32_t threshold) {
  return ((word >> (16u * half)) & 0xffffu) < threshold;
}

// The inverse of the exact probability of keeping, so that the mean does not move.
template <class T = float>
FASTGAN_HD T keep_scale(uint32_t threshold) {
  return threshold ? T(65536) / static_cast<T>(threshold) : T(0);
}

}  // namespace fastgan
