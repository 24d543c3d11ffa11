// A batch of images, as the kernels of both devices are told of it. No torch here.
#pragma once

#include "ops/random/draw.h"

namespace fastgan {

// out[i] = pixels[order[(u % batches_per_epoch) * batch + i]] with u the counter's value, uint8
// pixels as value * (2 / 255) - 1.
struct Gather {
  int64_t rows;             // of out
  int64_t channels, plane;  // elements of an image: channels * plane
  bool channels_last;       // out [rows, plane, channels] rather than [rows, channels, plane]
  int64_t images, ordered;  // in pixels and in order
  int64_t batch, batches_per_epoch;
  const int64_t* order;
  Counter counter;
};

// Where a row of the batch stands in the order, which may not reach so far.
FASTGAN_HD int64_t place_of(const Gather& g, int64_t row) {
  const uint64_t position = value_of(g.counter) % static_cast<uint64_t>(g.batches_per_epoch);
  return static_cast<int64_t>(position) * g.batch + row;
}

}  // namespace fastgan
