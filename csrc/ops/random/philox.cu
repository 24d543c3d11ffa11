// Philox words, uniforms, normals and dropout masks: a thread takes whole blocks of four words.
#include "common/dropout.h"
#include "cuda/grid.cuh"
#include "ops/random/launch.h"
#include "ops/random/mask.cuh"

namespace fastgan::cuda {

namespace {

__device__ inline void words_of(const Philox& g, int64_t block, uint32_t (&w)[4]) {
  philox_block(g, static_cast<uint32_t>(block), w[0], w[1], w[2], w[3]);
}

__global__ void words_kernel(Philox g, int64_t start, int64_t n, int64_t* out) {
  const int64_t end = start + n, last = (end + 3) >> 2;
  for (int64_t block = (start >> 2) + first_item(); block < last; block += item_stride()) {
    uint32_t w[4];
    words_of(g, block, w);
    for (int i = 0; i < 4; ++i) {
      const int64_t element = 4 * block + i;
      if (element >= start && element < end) out[element - start] = w[i];
    }
  }
}

__global__ void uniform_kernel(Philox g, int64_t n, float* out) {
  for (int64_t block = first_item(); 4 * block < n; block += item_stride()) {
    uint32_t w[4];
    words_of(g, block, w);
    for (int i = 0; i < 4; ++i) {
      if (4 * block + i < n) out[4 * block + i] = uniform_from(w[i]);
    }
  }
}

__global__ void normal_kernel(Philox g, Counter counter, int64_t n, float* out) {
  at_counter(g, counter);
  for (int64_t block = first_item(); 4 * block < n; block += item_stride()) {
    uint32_t w[4];
    float z[4];
    words_of(g, block, w);
    normals_from(w[0], w[1], z[0], z[1]);
    normals_from(w[2], w[3], z[2], z[3]);
    for (int i = 0; i < 4; ++i) {
      if (4 * block + i < n) out[4 * block + i] = z[i];
    }
  }
}

__global__ void keep_mask_kernel(Philox g, Counter counter, int64_t n, uint32_t threshold,
                                 bool* out) {
  at_counter(g, counter);
  for (int64_t block = first_item(); 8 * block < n; block += item_stride()) {
    uint32_t w[4];
    words_of(g, block, w);
    for (int i = 0; i < 8; ++i) {
      if (8 * block + i < n) {
        out[8 * block + i] = keeps(w[i >> 1], static_cast<uint32_t>(i & 1), threshold);
      }
    }
  }
}

// A thread takes the elements of whole blocks of eight halves; `start` may cut the first one.
template <class T>
__global__ void dropout_kernel(const __grid_constant__ Dropout drop, int64_t n, const T* x, T* y) {
  const Mask<arithmetic_t<T>> mask(drop);
  const int64_t start = drop.start, end = start + n, last = (end + 7) >> 3;
  for (int64_t block = (start >> 3) + first_item(); block < last; block += item_stride()) {
    const uint32_t kept = mask.template kept<8>(8 * block - start);
    for (int i = 0; i < 8; ++i) {
      const int64_t at = 8 * block + i - start;
      if (at >= 0 && at < n) store(y + at, mask.apply(kept, i, widen(x[at])));
    }
  }
}

}  // namespace

cudaError_t philox_words(const Philox& g, int64_t start, int64_t n, int64_t* out,
                         cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  // One block of words more than n fills: start may cut one.
  return launch(words_kernel, blocks_for(n / 4 + 2), kThreads, 0, stream, g, start, n, out);
}

cudaError_t philox_uniform(const Philox& g, int64_t n, float* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch(uniform_kernel, blocks_for((n + 3) / 4), kThreads, 0, stream, g, n, out);
}

cudaError_t philox_normal(const Philox& g, const Counter& counter, int64_t n, float* out,
                          cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch(normal_kernel, blocks_for((n + 3) / 4), kThreads, 0, stream, g, counter, n, out);
}

cudaError_t philox_keep_mask(const Philox& g, const Counter& counter, int64_t n, uint32_t threshold,
                             bool* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch(keep_mask_kernel, blocks_for((n + 7) / 8), kThreads, 0, stream, g, counter, n,
                threshold, out);
}

template <class T>
cudaError_t dropout(const Dropout& drop, int64_t n, const T* x, T* y, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch(dropout_kernel<T>, blocks_for(n / 8 + 2), kThreads, 0, stream, drop, n, x, y);
}

#define FASTGAN_INSTANTIATE(T) \
  template cudaError_t dropout<T>(const Dropout&, int64_t, const T*, T*, cudaStream_t);
FASTGAN_FOR_ELEMENTS(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
