// Images in channels-last memory, in and out of the operators that work on it.
#pragma once

#include "cpu/workspace.h"
#include "ops/tensors.h"

namespace fastgan::cpu {

// The same images with memory [batch, height, width, channels].
inline Tensor channels_last(const Tensor& t) {
  return torch::stable::contiguous(torch::stable::permute(t, {0, 2, 3, 1}));
}

// New images of sizes [batch, channels, height, width]. Not a view, which torch does not let
// anybody change in place.
inline Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& sizes) {
  // Numbers of a tensor that make it worth keeping its memory.
  constexpr int64_t kLent = 1 << 19;
  const int64_t row = sizes[3] * sizes[1], image = sizes[2] * row, floats = sizes[0] * image;
  if (floats < kLent) {
    return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, like.device(), std::nullopt,
                                torch::headeronly::MemoryFormat::ChannelsLast);
  }
  return torch::stable::from_blob(lend(floats), sizes, {image, 1, row, sizes[1]}, like.device(),
                                  ScalarType::Float, &give_back);
}

}  // namespace fastgan::cpu
