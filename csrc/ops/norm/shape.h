// What the kernels of BatchNorm are told of its channels. No torch here.
#pragma once

#include <stdint.h>

namespace fastgan {

struct NormChannels {
  int64_t channels;
  // [channels] each. scale: the weight over the standard deviation.
  const float *mean, *scale, *bias;
  float slope;  // of negative results
};

}  // namespace fastgan
