// How the CPU operators divide their work among torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace fastgan::cpu {

inline int64_t units_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// f(begin, end) over [0, n) in pieces that start at multiples of `unit`; at least `grain` units
// go to a thread.
template <class F>
void parallel_units(int64_t n, int64_t unit, int64_t grain, const F& f) {
  if (n == 0) return;
  torch::stable::parallel_for(0, units_of(n, unit), grain, [&](int64_t first, int64_t last) {
    f(first * unit, last * unit < n ? last * unit : n);
  });
}

}  // namespace fastgan::cpu
