// Layers forward.
#pragma once

#include "cuda/step/activation.cuh"

namespace fastgan::cuda::step {

// Shared memory of a tile.
template <class T>
constexpr int kForwardBytes = T::template Bytes<true, true>;

template <class T>
__host__ __device__ __forceinline__ int64_t forward_tiles(const Layer& l, int64_t rows) {
  return tiles_along(rows, T::Rows) * tiles_along(l.out, T::Columns);
}

// One tile of y for `segments` segments of the field below from `from` on. Where the layer has a
// BatchNorm, y is what goes into it.
template <class T, Precision precision>
__device__ void forward_tile(const Step& s, const Layer& l, const Moment& now, int from,
                             int segments, int64_t tile, unsigned char* shared) {
  const int64_t rows = segments * now.batch, down = tiles_along(rows, T::Rows);
  const int64_t row = tile % down * T::Rows, column = tile / down * T::Columns;
  const Operand x = operand(field_x(l, now) + from * now.batch * l.x_stride, l.x_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.out);
  float* const y = field_y(l, now) + (from + l.lift) * now.batch * l.y_stride;
  product<T, precision, true, true>(x, weight, row, column, l.in, shared,
                                    [&](int i, int j, Four four) {
                                      const int64_t r = row + i, c = column + j;
                                      if (r >= rows || c >= l.out) return;
                                      if (l.bias.value) {
#pragma unroll
                                        for (int e = 0; e < 4; ++e)
                                          if (c + e < l.out) four.v[e] += l.bias.value[c + e];
                                      }
                                      if (!l.norm) {
                                        int segment;
                                        int64_t within;
                                        locate(r, now.batch, segment, within);
                                        activate_four(s, l, from + segment, within, c, now, four);
                                      }
                                      *reinterpret_cast<Four*>(y + r * l.y_stride + c) = four;
                                    });
}

}  // namespace fastgan::cuda::step
