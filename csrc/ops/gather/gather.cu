// A batch gathered from the images and normalised, by the step number on the device.
#include <type_traits>

#include "cuda/grid.cuh"
#include "ops/gather/launch.h"

namespace fastgan::cuda {

namespace {

// Products that no subtraction may be fused with: the plain operations round twice.
__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }

template <class Pixel, class T>
__device__ inline arithmetic_t<T> value_of_pixel(Pixel pixel) {
  using A = arithmetic_t<T>;
  if constexpr (std::is_same_v<Pixel, uint8_t>) {
    return times(static_cast<A>(pixel), static_cast<A>(2.0 / 255.0)) - A(1);
  } else {
    return widen(pixel);
  }
}

// The image of a row of the batch, or -1.
__device__ inline int64_t image_of(const Gather& g, int64_t row) {
  const int64_t at = place_of(g, row);
  if (at >= g.ordered) return -1;
  const int64_t image = g.order[at];
  return image >= 0 && image < g.images ? image : -1;
}

// Blocks of the grid's y direction stride over the rows, threads of x over the elements of one.
template <class Pixel, class T, bool ChannelsLast>
__global__ void gather_kernel(const __grid_constant__ Gather g, const Pixel* pixels, T* out) {
  const int64_t elements = g.channels * g.plane;
  for (int64_t row = blockIdx.y; row < g.rows; row += gridDim.y) {
    const int64_t image = image_of(g, row);
    const Pixel* const from = pixels + (image < 0 ? 0 : image) * elements;
    T* const to = out + row * elements;
    for (int64_t i = first_item(); i < elements; i += item_stride()) {
      int64_t source = i;
      if constexpr (ChannelsLast) source = i % g.channels * g.plane + i / g.channels;
      store(to + i,
            image < 0 ? static_cast<arithmetic_t<T>>(NAN) : value_of_pixel<Pixel, T>(from[source]));
    }
  }
}

}  // namespace

template <class Pixel, class T>
cudaError_t gather_normalize(const Gather& g, const Pixel* pixels, T* out, cudaStream_t stream) {
  const int64_t elements = g.channels * g.plane;
  if (g.rows == 0 || elements == 0) return cudaSuccess;
  const dim3 grid(blocks_for(elements), static_cast<unsigned>(g.rows < 32768 ? g.rows : 32768));
  return g.channels_last
             ? launch(gather_kernel<Pixel, T, true>, grid, kThreads, 0, stream, g, pixels, out)
             : launch(gather_kernel<Pixel, T, false>, grid, kThreads, 0, stream, g, pixels, out);
}

#define FASTGAN_INSTANTIATE(Pixel, T) \
  template cudaError_t gather_normalize<Pixel, T>(const Gather&, const Pixel*, T*, cudaStream_t);
#define FASTGAN_INSTANTIATE_ELEMENT(T) FASTGAN_INSTANTIATE(uint8_t, T) FASTGAN_INSTANTIATE(float, T)
FASTGAN_FOR_ELEMENTS(FASTGAN_INSTANTIATE_ELEMENT)
FASTGAN_INSTANTIATE(double, double)
#undef FASTGAN_INSTANTIATE_ELEMENT
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
