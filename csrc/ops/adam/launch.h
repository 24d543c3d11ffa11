// The launchers of the kernels that move weights; see cuda/launchers.h.
#pragma once

#include "common/adam.h"
#include "cuda/launchers.h"

namespace fastgan::cuda {

// The tensors of one update, `count` of each kind; tensor i has sizes[i] elements of each.
template <class T>
struct AdamTensors {
  T *const *weights, *const *exp_avgs, *const *exp_avg_sqs, *const *grads;
  const int64_t* sizes;
  int64_t count;
};

// One update in place, of all tensors in one launch (one for each 640). T: float or double.
template <class T>
cudaError_t adam(const Adam<T>& a, const AdamTensors<T>& tensors, cudaStream_t stream);

// A number on the device, in float or in double: the other pointer is null.
struct RealOnDevice {
  const float* value;
  const double* wide;
};

// What the device knows when the update runs. Gradients are divided by *grad_scale and nothing
// happens if *found_inf is not 0; either may be null.
struct AdamOnDevice {
  RealOnDevice step, lr;  // step counts from 1
  const float *grad_scale, *found_inf;
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
};
template <class T>
cudaError_t adam_device(const AdamOnDevice& d, const AdamTensors<T>& tensors, cudaStream_t stream);

// averages = decay * averages + (1 - decay) * values in place, in as many launches as adam.
// T: float, double, bf16 or fp16.
template <class T>
cudaError_t ema(T* const* averages, T* const* values, const int64_t* sizes, int64_t count,
                double decay, cudaStream_t stream);

}  // namespace fastgan::cuda
