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
                              int from, int segments, unsigned tile, unsigned char* shared,
                              bool loaded = false) {
  struct Early {
    Four y;
    uint32_t kept;
  };
  const int64_t rows = segments * now.batch;
  const Corner corner = corner_of<T>(tile, rows);
  const Operand grad =
      operand(l.grad_y + (from + l.lift) * now.batch * l.y_stride, l.y_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.in);
  const int64_t start = from * now.batch * l.x_stride;
  const auto place = [&](int i, int j, auto use) {
    const int64_t r = corner.row + i, c = corner.column + j;
    if (r >= rows || c >= l.in) return;
    int segment;
    int64_t within;
    locate(r, now.batch, segment, within);
    use(start + r * l.x_stride + c, c, from + segment - lower.lift, within);
  };
  product<T, precision, true, false>(
      grad, weight, corner, static_cast<int>(l.out), shared,
      [&](int i, int j) {
        Early early{};
        place(i, j, [&](int64_t at, int64_t c, int segment, int64_t within) {
          early = {*reinterpret_cast<const Four*>(field_x(l, now) + at),
                   kept_four(s, lower, segment, within, c, now)};
        });
        return early;
      },
      [&](int i, int j, Four four, const Early& early) {
        place(i, j, [&](int64_t at, int64_t c, int segment, int64_t within) {
          differentiate_four(lower, segment, within, c, now, early.kept, early.y, four);
          *reinterpret_cast<Four*>(l.grad_x + at) = four;
        });
      },
      loaded);
}

// Begins to load the weights of a tile.
template <class T>
__device__ void backward_ahead(const Layer& l, int64_t rows, unsigned tile, unsigned char* shared) {
  load_ahead<T, true, false>(operand(l.weight.value, l.in, l.in), corner_of<T>(tile, rows).column,
                             static_cast<int>(l.out), shared);
}

}  // namespace fastgan::cuda::step
