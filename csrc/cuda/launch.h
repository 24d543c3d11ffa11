// The CUDA kernels' launchers: pointers, sizes and a stream, no torch. Each returns the error of
// its launch. Sizes of 0 launch nothing. Nothing here allocates or synchronises, so every launch
// may be captured in a graph.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/adam.h"
#include "common/bf16.h"
#include "common/philox.h"

namespace fastgan::cuda {

// Elements [start, start + n) of a stream; see fastgan/random.py.
cudaError_t philox_words(const Philox& g, int64_t start, int64_t n, int64_t* out,
                         cudaStream_t stream);
// Elements [0, n) of a stream.
cudaError_t philox_uniform(const Philox& g, int64_t n, float* out, cudaStream_t stream);
cudaError_t philox_normal(const Philox& g, int64_t n, float* out, cudaStream_t stream);
cudaError_t philox_keep_mask(const Philox& g, int64_t n, uint32_t threshold, bool* out,
                             cudaStream_t stream);

// y = leaky_relu(y + bias) in place; y [rows, columns], bias [columns] or null.
// T: float, double or bf16.
template <class T>
cudaError_t bias_leaky_relu(T* y, const T* bias, int64_t rows, int64_t columns,
                            double negative_slope, cudaStream_t stream);

// grad_pre = leaky_relu'(sign) * grad, n elements each.
template <class T>
cudaError_t leaky_relu_backward(const T* grad, const T* sign, int64_t n, double negative_slope,
                                T* grad_pre, cudaStream_t stream);

// One set of logits and what becomes of them: grad[i] = weight * d bce(logits[i], label), and
// weight * sum of bce goes into the loss.
template <class T>
struct BceTerm {
  const T* logits;
  T* grad;
  int64_t n;
  double label, weight;
};

// *loss = the sum over both terms, added up in an order fixed by the sizes. Loss: float, or
// double where T is double.
template <class T, class Loss>
cudaError_t bce(const BceTerm<T>& first, const BceTerm<T>& second, Loss* loss, cudaStream_t stream);

// One update of n elements in place. T: float or double.
template <class T>
cudaError_t adam(const Adam<T>& a, int64_t n, const T* grad, T* weight, T* exp_avg, T* exp_avg_sq,
                 cudaStream_t stream);

}  // namespace fastgan::cuda
