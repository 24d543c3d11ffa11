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
                             int segments, unsigned tile, unsigned char* shared,
                             bool loaded = false) {
  struct Early {
    Four bias;
    uint32_t kept;
  };
  const int64_t rows = segments * now.batch;
  const Corner corner = corner_of<T>(tile, rows);
  const Operand x = operand(field_x(l, now) + from * now.batch * l.x_stride, l.x_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.out);
  float* const y = field_y(l, now) + (from + l.lift) * now.batch * l.y_stride;
  const auto place = [&](int i, int j, auto use) {
    const int64_t r = corner.row + i, c = corner.column + j;
    if (r >= rows || c >= l.out) return;
    int segment;
    int64_t within;
    locate(r, now.batch, segment, within);
    use(r, c, from + segment, within);
  };
  product<T, precision, true, true>(
      OneProduct{x, weight, static_cast<int>(l.in)}, corner, shared,
      [&](int i, int j) {
        Early early{};
        place(i, j, [&](int64_t, int64_t c, int segment, int64_t within) {
          if (l.bias.value) {
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (c + e < l.out) early.bias.v[e] = l.bias.value[c + e];
          }
          if (!l.norm) early.kept = kept_four(s, l, segment, within, c, now);
        });
        return early;
      },
      [&](int i, int j, Four four, const Early& early) {
        place(i, j, [&](int64_t r, int64_t c, int segment, int64_t within) {
#pragma unroll
          for (int e = 0; e < 4; ++e) four.v[e] += early.bias.v[e];
          if (!l.norm) activate_four(l, segment, within, c, now, early.kept, four);
          *reinterpret_cast<Four*>(y + r * l.y_stride + c) = four;
        });
      },
      loaded);
}

// Begins to load the weights of a tile.
template <class T>
__device__ void forward_ahead(const Layer& l, int64_t rows, unsigned tile, unsigned char* shared) {
  load_ahead<T, true, true>(operand(l.weight.value, l.in, l.out), corner_of<T>(tile, rows).column,
                            static_cast<int>(l.in), shared);
}

}  // namespace fastgan::cuda::step
