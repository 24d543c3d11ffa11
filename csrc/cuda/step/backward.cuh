// Gradients backward through the layers.
#pragma once

#include "cuda/step/activation.cuh"

namespace fastgan::cuda::step {

// Shared memory of a tile.
template <class T>
constexpr int kBackwardBytes = T::template Bytes<true, false>;

template <class T>
__host__ __device__ __forceinline__ int64_t backward_tiles(const Layer& l, int64_t rows) {
  return tiles_along(rows, T::Rows) * tiles_along(l.in, T::Columns);
}

// One tile of the gradient of l's input, taken through `lower`, the layer that made it. `from`
// counts the segments of the field between them.
template <class T, Precision precision>
__device__ void backward_tile(const Step& s, const Layer& l, const Layer& lower, const Moment& now,
                              int from, int segments, int64_t tile, unsigned char* shared) {
  const int64_t rows = segments * now.batch, down = tiles_along(rows, T::Rows);
  const int64_t row = tile % down * T::Rows, column = tile / down * T::Columns;
  const Operand grad =
      operand(l.grad_y + (from + l.lift) * now.batch * l.y_stride, l.y_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.in);
  const int64_t at = from * now.batch * l.x_stride;
  product<T, precision, true, false>(
      grad, weight, row, column, l.out, shared, [&](int i, int j, Four four) {
        const int64_t r = row + i, c = column + j;
        if (r >= rows || c >= l.in) return;
        int segment;
        int64_t within;
        locate(r, now.batch, segment, within);
        const int64_t to = at + r * l.x_stride + c;
        const Four y = *reinterpret_cast<const Four*>(field_x(l, now) + to);
        differentiate_four(s, lower, from + segment - lower.lift, within, c, now, y, four);
        *reinterpret_cast<Four*>(l.grad_x + to) = four;
      });
}

}  // namespace fastgan::cuda::step
