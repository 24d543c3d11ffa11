// BatchNorm's statistics (S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015) with torch's
// conventions, of one feature. No torch here.
#pragma once

#include "common/math.h"

namespace fastgan {

FASTGAN_HD float inverse_deviation(double variance, double eps) {
  return static_cast<float>(1.0 / math::sqrt(variance + eps));
}

// The share of a batch in the running statistics. `batches`: tracked before the step; `number`:
// which batch of the step it is, from 0.
FASTGAN_HD double running_share(double momentum, int64_t batches, int number) {
  return momentum < 0 ? 1.0 / (static_cast<double>(batches) + number + 1) : momentum;
}

// `variance` is the biased one, of n values.
FASTGAN_HD void track(float& running_mean, float& running_var, double share, double mean,
                      double variance, double n) {
  running_mean = static_cast<float>((1 - share) * running_mean + share * mean);
  running_var = static_cast<float>((1 - share) * running_var + share * (variance * n / (n - 1)));
}

// Batches tracked after `more` of them; wraps around, as torch's does.
FASTGAN_HD int64_t more_batches(int64_t batches, int more) {
  return static_cast<int64_t>(static_cast<uint64_t>(batches) + static_cast<uint64_t>(more));
}

}  // namespace fastgan
