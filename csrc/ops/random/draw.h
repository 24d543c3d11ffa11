// Where a draw stands in its stream, for both devices. No torch here.
#pragma once

#include <stdint.h>

#include "common/philox.h"

namespace fastgan {

// Where a draw finds its step: in the generator, or at counter[0] * multiplier + offset, which the
// kernel reads on the device, so that a captured launch draws anew at each replay.
struct Counter {
  const int64_t* value = nullptr;
  int64_t multiplier = 1, offset = 0;
};

// Unsigned: the step of a stream is a number in [0, 2^64).
FASTGAN_HD uint64_t value_of(const Counter& c) {
  return static_cast<uint64_t>(*c.value) * static_cast<uint64_t>(c.multiplier) +
         static_cast<uint64_t>(c.offset);
}

// Moves a generator to the counter's step, if there is a counter.
FASTGAN_HD void at_counter(Philox& g, const Counter& c) {
  if (c.value == nullptr) return;
  const uint64_t step = value_of(c);
  g.step0 = static_cast<uint32_t>(step);
  g.step1 = static_cast<uint32_t>(step >> 32);
}

// A mask for a result, whose element i takes element start + i. By default all are kept.
struct Dropout {
  Philox philox{};
  Counter counter;
  int64_t start = 0;
  uint32_t threshold = 65536;
};

}  // namespace fastgan
