// The launchers of the kernels that draw; see cuda/launchers.h.
#pragma once

#include "cuda/launchers.h"
#include "ops/random/draw.h"

namespace fastgan::cuda {

// Elements [start, start + n) of a stream; see fastgan/random.py.
cudaError_t philox_words(const Philox& g, int64_t start, int64_t n, int64_t* out,
                         cudaStream_t stream);

// Elements [0, n) of a stream.
cudaError_t philox_uniform(const Philox& g, int64_t n, float* out, cudaStream_t stream);
cudaError_t philox_normal(const Philox& g, const Counter& counter, int64_t n, float* out,
                          cudaStream_t stream);
cudaError_t philox_keep_mask(const Philox& g, const Counter& counter, int64_t n, uint32_t threshold,
                             bool* out, cudaStream_t stream);

// y = x / (the probability of keeping) where the mask keeps, else 0. T: float, double, bf16 or
// fp16.
template <class T>
cudaError_t dropout(const Dropout& drop, int64_t n, const T* x, T* y, cudaStream_t stream);

}  // namespace fastgan::cuda
