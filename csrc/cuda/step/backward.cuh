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

// What is known of four neighbours of a field below: their values, and which of them the dropout of
// the layer that made them keeps.
struct Made {
  Four y;
  uint32_t kept;
};

// One tile of the gradient of l's input. `from` counts the segments of the field between l and
// `lower`, the layer that made it. after(place in the field, column, segment as lower counts it,
// row in it, what is known of them, gradient of what lower made) gets four at a time.
template <class T, Precision precision, class After>
__device__ void backward_tile_to(const Step& s, const Layer& l, const Layer& lower,
                                 const Moment& now, int from, int segments, unsigned tile,
                                 unsigned char* shared, bool loaded, const After& after) {
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
      OneProduct{grad, weight, static_cast<int>(l.out)}, corner, shared,
      [&](int i, int j) {
        Made early{};
        place(i, j, [&](int64_t at, int64_t c, int segment, int64_t within) {
          early = {*reinterpret_cast<const Four*>(field_x(l, now) + at),
                   kept_four(s, lower, segment, within, c, now)};
        });
        return early;
      },
      [&](int i, int j, const Four& four, const Made& early) {
        place(i, j, [&](int64_t at, int64_t c, int segment, int64_t within) {
          after(at, c, segment, within, early, four);
        });
      },
      loaded);
}

// The same, taken through `lower`.
template <class T, Precision precision>
__device__ void backward_tile(const Step& s, const Layer& l, const Layer& lower, const Moment& now,
                              int from, int segments, unsigned tile, unsigned char* shared,
                              bool loaded = false) {
  backward_tile_to<T, precision>(
      s, l, lower, now, from, segments, tile, shared, loaded,
      [&](int64_t at, int64_t c, int segment, int64_t within, const Made& made, Four four) {
        differentiate_four(lower, segment, within, c, now, made.kept, made.y, four);
        *reinterpret_cast<Four*>(l.grad_x + at) = four;
      });
}

// Begins to load the weights of a tile.
template <class T>
__device__ void backward_ahead(const Layer& l, int64_t rows, unsigned tile, unsigned char* shared) {
  load_ahead<T, true, false>(operand(l.weight.value, l.in, l.in), corner_of<T>(tile, rows).column,
                             static_cast<int>(l.out), shared);
}

}  // namespace fastgan::cuda::step
