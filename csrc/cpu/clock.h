// Seconds on a clock that never goes back.
#pragma once

#include <time.h>

namespace fastgan::cpu {

static inline double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace fastgan::cpu
