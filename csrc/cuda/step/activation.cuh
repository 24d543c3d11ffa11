// Activations and dropout masks on four neighbours of a row.
#pragma once

#include "common/activation.h"
#include "common/dropout.h"
#include "common/gelu.h"
#include "cuda/step/moment.cuh"
#include "ops/random/mask.cuh"
#include "step/passes.h"

namespace fastgan::cuda::step {

__device__ __forceinline__ WithSlope<float> activate(Activation activation, float x, float slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return {leaky_relu(x, slope), 0.f};
    case Activation::tanh:
      return {math::tanh(x), 0.f};
    case Activation::sigmoid:
      return {sigmoid(x), 0.f};
    case Activation::elu:
      return elu(x, slope);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::silu:
      return silu(x);
    case Activation::selu:
      return selu(x);
    case Activation::softplus:
      return softplus(x);
    default:
      return {x, 0.f};
  }
}

// grad times the derivative, in terms of what activate() gave: y, or the slope that is kept.
__device__ __forceinline__ float derivative(Activation activation, float grad, float y,
                                            float kept_slope, float slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return leaky_relu_grad(grad, y, slope);
    case Activation::tanh:
      return tanh_grad(grad, y);
    case Activation::sigmoid:
      return sigmoid_grad(grad, y);
    case Activation::elu:
    case Activation::gelu:
    case Activation::gelu_tanh:
    case Activation::silu:
    case Activation::selu:
    case Activation::softplus:
      return grad * kept_slope;
    default:
      return grad;
  }
}

// The second derivative, in terms of what activate() gave and of the first.
__device__ __forceinline__ float second_derivative(Activation activation, float y, float first) {
  switch (activation) {
    case Activation::tanh:
      return -2.f * y * first;
    case Activation::sigmoid:
      return (1.f - 2.f * y) * first;
    case Activation::elu:
    case Activation::selu:
      return y > 0.f ? 0.f : first;
    default:
      return 0.f;
  }
}

// The mask of a layer in one segment.
__device__ __forceinline__ Philox mask_of(const Step& s, const Layer& l, int segment,
                                          const Moment& now) {
  return mask_philox(s.seed, l.drop_index, l.in_g, segment, now.update, now.of_g);
}

// Where the slopes of a row of a segment stand, null for activations that keep none.
__device__ __forceinline__ float* slopes_of(const Layer& l, int segment, int64_t row,
                                            int64_t column, const Moment& now) {
  return l.slopes ? l.slopes + ((segment + l.lift) * now.batch + row) * l.y_stride + column
                  : nullptr;
}

// Which of four neighbours of row `row` of a segment of the field above l its dropout keeps, as
// bits.
__device__ __forceinline__ uint32_t kept_four(const Step& s, const Layer& l, int segment,
                                              int64_t row, int64_t column, const Moment& now) {
  return l.drop ? kept_bits<4>(mask_of(s, l, segment, now), row * l.out + column, l.drop_threshold)
                : 0u;
}

// y = dropout(activation(x)) on these four.
__device__ __forceinline__ void activate_four(const Layer& l, int segment, int64_t row,
                                              int64_t column, const Moment& now, uint32_t kept,
                                              Four& x) {
  Four slope;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const WithSlope<float> y = activate(l.activation, x.v[e], l.slope);
    x.v[e] = y.value;
    slope.v[e] = y.slope;
  }
  if (float* const slopes = slopes_of(l, segment, row, column, now))
    *reinterpret_cast<Four*>(slopes) = slope;
  if (!l.drop) return;
  const float scale = keep_scale(l.drop_threshold);
#pragma unroll
  for (int e = 0; e < 4; ++e) x.v[e] = kept >> e & 1u ? x.v[e] * scale : 0.f;
}

// Where a curved activation is penalised, the gradients before its derivative.
__device__ __forceinline__ void keep_curves(const Layer& l, int segment, int64_t row,
                                            int64_t column, const Moment& now, uint32_t kept,
                                            Four grad) {
  if (l.curves == nullptr) return;
  const float scale = keep_scale(l.drop_threshold);
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (l.drop) grad.v[e] = kept >> e & 1u ? grad.v[e] * scale : 0.f;
  *reinterpret_cast<Four*>(l.curves + (segment * now.batch + row) * l.y_stride + column) = grad;
}

// From the gradient after l's dropout and activation to the one before them; y is what l made.
__device__ __forceinline__ void differentiate_four(const Layer& l, int segment, int64_t row,
                                                   int64_t column, const Moment& now, uint32_t kept,
                                                   const Four& y, Four& grad) {
  const float* const slopes = slopes_of(l, segment, row, column, now);
  const Four slope = slopes ? *reinterpret_cast<const Four*>(slopes) : Four{};
  if (!l.drop) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      grad.v[e] = derivative(l.activation, grad.v[e], y.v[e], slope.v[e], l.slope);
    return;
  }
  const float scale = keep_scale(l.drop_threshold), inverse = scale > 0.f ? 1.f / scale : 0.f;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    grad.v[e] = kept >> e & 1u ? derivative(l.activation, grad.v[e] * scale, y.v[e] * inverse,
                                            slope.v[e], l.slope)
                               : 0.f;
  }
}

}  // namespace fastgan::cuda::step
