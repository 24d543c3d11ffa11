// Philox4x32-10, the counter-based generator of J. K. Salmon, M. A. Moraes, R. O. Dror and
// D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
// fastgan/random.py states how seed, stream, step and element become key, counter and word.
#pragma once

#include <stdint.h>

#include "common/math.h"

namespace fastgan {

struct Philox {
  uint32_t key0, key1;    // the seed, low and high half
  uint32_t stream;        // counter word 1
  uint32_t step0, step1;  // counter words 2 and 3: the step, low and high half
};

FASTGAN_HD Philox make_philox(uint64_t seed, uint32_t stream, uint64_t step) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), stream,
          static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)};
}

// The four words of one block.
FASTGAN_HD void philox_block(const Philox& g, uint32_t block, uint32_t& w0, uint32_t& w1,
                             uint32_t& w2, uint32_t& w3) {
  uint32_t c0 = block, c1 = g.stream, c2 = g.step0, c3 = g.step1;
  uint32_t k0 = g.key0, k1 = g.key1;
  FASTGAN_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  w0 = c0;
  w1 = c1;
  w2 = c2;
  w3 = c3;
}

// [0, 1): the top 24 bits, exact.
FASTGAN_HD float uniform_from(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 5.9604644775390625e-8f;  // 2^-24
}

// Two standard normals from two words (G. E. P. Box and M. E. Muller, 1958).
FASTGAN_HD void normals_from(uint32_t word0, uint32_t word1, float& n0, float& n1) {
  // (0, 1]: the logarithm is finite.
  const float u = static_cast<float>(static_cast<int32_t>(word0 >> 8) + 1) * 5.9604644775390625e-8f;
  const float radius = math::sqrt(-2.f * math::log(u));
  float cosine, sine;
  math::cos_sin_turn(word1 >> 8, cosine, sine);
  n0 = radius * cosine;
  n1 = radius * sine;
}

}  // namespace fastgan
