// Philox words, uniforms, normals and dropout masks: a thread takes whole blocks of four words.
#include "common/dropout.h"
#include "cuda/grid.cuh"
#include "cuda/launch.h"

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

__global__ void normal_kernel(Philox g, int64_t n, float* out) {
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

__global__ void keep_mask_kernel(Philox g, int64_t n, uint32_t threshold, bool* out) {
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

}  // namespace

cudaError_t philox_words(const Philox& g, int64_t start, int64_t n, int64_t* out,
                         cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  // One block of words more than n fills: start may cut one.
  words_kernel<<<blocks_for(n / 4 + 2), kThreads, 0, stream>>>(g, start, n, out);
  return cudaGetLastError();
}

cudaError_t philox_uniform(const Philox& g, int64_t n, float* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  uniform_kernel<<<blocks_for((n + 3) / 4), kThreads, 0, stream>>>(g, n, out);
  return cudaGetLastError();
}

cudaError_t philox_normal(const Philox& g, int64_t n, float* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  normal_kernel<<<blocks_for((n + 3) / 4), kThreads, 0, stream>>>(g, n, out);
  return cudaGetLastError();
}

cudaError_t philox_keep_mask(const Philox& g, int64_t n, uint32_t threshold, bool* out,
                             cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  keep_mask_kernel<<<blocks_for((n + 7) / 8), kThreads, 0, stream>>>(g, n, threshold, out);
  return cudaGetLastError();
}

}  // namespace fastgan::cuda
