// The CUDA kernels' launchers: pointers, sizes and a stream, no torch. Each returns the error of
// its launch. Sizes of 0 launch nothing. Nothing here allocates or synchronises, so every launch
// may be captured in a graph.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/adam.h"
#include "common/fp16.h"
#include "common/philox.h"

namespace fastgan::cuda {

// Elements [start, start + n) of a stream; see fastgan/random.py.
cudaError_t philox_words(const Philox& g, int64_t start, int64_t n, int64_t* out,
                         cudaStream_t stream);

// Where a draw finds its step: in the generator, or at counter[0] * multiplier + offset, which the
// kernel reads on the device, so that a captured launch draws anew at each replay.
struct Counter {
  const int64_t* value = nullptr;
  int64_t multiplier = 1, offset = 0;
};

// Elements [0, n) of a stream.
cudaError_t philox_uniform(const Philox& g, int64_t n, float* out, cudaStream_t stream);
cudaError_t philox_normal(const Philox& g, const Counter& counter, int64_t n, float* out,
                          cudaStream_t stream);
cudaError_t philox_keep_mask(const Philox& g, const Counter& counter, int64_t n, uint32_t threshold,
                             bool* out, cudaStream_t stream);

// A mask for a result, whose element i takes element start + i. By default all are kept.
struct Dropout {
  Philox philox{};
  Counter counter;
  int64_t start = 0;
  uint32_t threshold = 65536;
};

// y = x / (the probability of keeping) where the mask keeps, else 0. T: float, double, bf16 or
// fp16.
template <class T>
cudaError_t dropout(const Dropout& drop, int64_t n, const T* x, T* y, cudaStream_t stream);

// A batch of images: out[i] = pixels[order[(u % batches_per_epoch) * batch + i]] with u the
// counter's value, uint8 pixels as value * (2 / 255) - 1. A row outside order or pixels becomes
// NaN.
struct Gather {
  int64_t rows;             // of out
  int64_t channels, plane;  // elements of an image: channels * plane
  bool channels_last;       // out [rows, plane, channels] rather than [rows, channels, plane]
  int64_t images, ordered;  // in pixels and in order
  int64_t batch, batches_per_epoch;
  const int64_t* order;
  Counter counter;
};
// Pixel: uint8_t or float (or double, where T is). T: float, double, bf16 or fp16.
template <class Pixel, class T>
cudaError_t gather_normalize(const Gather& gather, const Pixel* pixels, T* out,
                             cudaStream_t stream);

// y = dropout(leaky_relu(y + bias)) in place; y [rows, columns], bias [columns] or null.
// T: float, double, bf16 or fp16.
template <class T>
cudaError_t bias_leaky_relu(T* y, const T* bias, int64_t rows, int64_t columns,
                            double negative_slope, const Dropout& drop, cudaStream_t stream);

// grad_pre = leaky_relu'(sign) * dropout(grad), [rows, columns] each.
template <class T>
cudaError_t leaky_relu_backward(const T* grad, const T* sign, int64_t rows, int64_t columns,
                                double negative_slope, const Dropout& drop, T* grad_pre,
                                cudaStream_t stream);

// The same, and column sums of grad_pre: those of strips of rows_of_strip(rows) rows, which added
// up are the bias's gradient. sums [strips_of(rows), columns], of the type that T is computed in.
inline int64_t rows_of_strip(int64_t rows) {
  constexpr int64_t kRows = 512, kMost = 65535;  // strips, which a launch can have
  return rows <= kRows * kMost ? kRows : (rows + kMost - 1) / kMost;
}
inline int64_t strips_of(int64_t rows) {
  return (rows + rows_of_strip(rows) - 1) / rows_of_strip(rows);
}
template <class T>
cudaError_t leaky_relu_bias_backward(const T* grad, const T* sign, int64_t rows, int64_t columns,
                                     double negative_slope, const Dropout& drop, T* grad_pre,
                                     arithmetic_t<T>* sums, cudaStream_t stream);

// One layer: y [batch, out] from x [batch, in]; all matrices row-major without gaps.
struct LinearShape {
  int64_t batch, in, out;
};

// y = dropout(leaky_relu(x weight^T + bias)) in one launch, for layers too small to fill the
// device. weight [out, in]; bias [out] or null. T: bf16, fp16, or float, whose products keep about
// its precision and turn an infinite factor into NaN.
template <class T>
cudaError_t linear_tiles(const LinearShape& shape, const T* x, const T* weight, const T* bias,
                         double negative_slope, const Dropout& drop, T* y, cudaStream_t stream);

// grad_x = grad_pre weight and grad_weight = grad_pre^T x in one launch; one of them may be null.
template <class T>
cudaError_t linear_backward_tiles(const LinearShape& shape, const T* grad_pre, const T* x,
                                  const T* weight, T* grad_x, T* grad_weight, cudaStream_t stream);

// One set of logits and what becomes of them: grad[i] = weight * d bce(logits[i], label), and
// weight * sum of bce goes into the loss.
template <class T>
struct BceTerm {
  const T* logits;
  T* grad;
  int64_t n;
  double label, weight;
};

// *loss = the sum over both terms, added up in an order fixed by the sizes. T: float, double, bf16
// or fp16. Loss: float, or double where T is double.
template <class T, class Loss>
cudaError_t bce(const BceTerm<T>& first, const BceTerm<T>& second, Loss* loss, cudaStream_t stream);

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

// What the device knows when the update runs. Of lr and wide_lr one is null. Gradients are divided
// by *grad_scale and nothing happens if *found_inf is not 0; either may be null.
struct AdamOnDevice {
  const float* step;  // counts from 1
  const float* lr;
  const double* wide_lr;
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
