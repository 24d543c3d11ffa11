// The step of a replayed launch, read where it runs.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastgan::cuda {

__device__ inline uint64_t value_of(const Counter& c) {
  return static_cast<uint64_t>(*c.value) * static_cast<uint64_t>(c.multiplier) +
         static_cast<uint64_t>(c.offset);
}

// Moves a generator to the counter's step, if there is a counter.
__device__ inline void at_counter(Philox& g, const Counter& c) {
  if (c.value == nullptr) return;
  const uint64_t step = value_of(c);
  g.step0 = static_cast<uint32_t>(step);
  g.step1 = static_cast<uint32_t>(step >> 32);
}

}  // namespace fastgan::cuda
