// Which kind of tile a product is done with.
#pragma once

#include "cuda/step/moment.cuh"

namespace fastgan::cuda::step {

// Cycles that tiles of a kind take on all multiprocessors, by what binds them: reading the operands
// (64 bytes a cycle), and in float32 reading them again from shared memory for every few products.
template <class T>
__host__ __device__ inline double tile_cycles(int64_t rows, int64_t columns, int64_t depth,
                                              int multiprocessors, Precision precision) {
  constexpr int64_t kStart = 1200;
  constexpr int64_t kRead = (T::Rows + T::Columns) * 4 / 64;
  constexpr int64_t kMultiply = T::Rows * T::Columns / (T::Rows == 16 ? 45 : 80);
  const int64_t tiles = tiles_along(rows, T::Rows) * tiles_along(columns, T::Columns);
  const int64_t each = precision == Precision::fp32 && kMultiply > kRead ? kMultiply : kRead;
  return static_cast<double>(tiles_along(tiles, multiprocessors)) *
         (static_cast<double>(kStart) + static_cast<double>(depth) * static_cast<double>(each));
}

}  // namespace fastgan::cuda::step
