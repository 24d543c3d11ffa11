// BatchNorm for the chain: a block has a few features over all rows.
#pragma once

#include "cuda/step/activation.cuh"
#include "cuda/step/update.cuh"
#include "step/norm.h"

namespace fastgan::cuda::step {

constexpr int kFeatures = 8, kLines = kThreads / kFeatures;

// A thread has every kLines-th row, from `line` on, of the block's feature of that number: feature
// f of the layer, if the layer has so many.
struct Spot {
  int line, feature;
  int64_t f;
  bool real;
};
__device__ __forceinline__ Spot spot_in(const Layer& l) {
  const int thread = static_cast<int>(threadIdx.x), feature = thread % kFeatures;
  const int64_t f = static_cast<int64_t>(blockIdx.x) * kFeatures + feature;
  return {thread / kFeatures, feature, f, f < l.out};
}

// The sums over the block's lines, each feature's in all of its threads.
__device__ double sum_lines(double mine, double (*parts)[kFeatures], int line, int feature) {
  __syncthreads();
  parts[line][feature] = mine;
  __syncthreads();
  for (int half = kLines / 2; half > 0; half /= 2) {
    if (line < half) parts[line][feature] += parts[line + half][feature];
    __syncthreads();
  }
  return parts[0][feature];
}

// Statistics of each segment of the field above, normalised values, and what forward_tile leaves
// undone.
__global__ void __launch_bounds__(kThreads)
    norm_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i, int64_t k,
                int from, int segments) {
  FASTGAN_SHARED(double, parts, [kLines][kFeatures]);
  const Moment now = moment(s, *s.clock, i, k);
  const auto [line, feature, f, real] = spot_in(l);
  const double n = static_cast<double>(now.batch);
  for (int part = 0; part < segments; ++part) {
    const int segment = from + part;
    float* const y = field_y(l, now) + (segment + l.lift) * now.batch * l.y_stride + f;
    float* const normed = l.normed + segment * now.batch * l.y_stride + f;
    double sum = 0;
    for (int64_t r = line; real && r < now.batch; r += kLines) sum += y[r * l.y_stride];
    const double mean = sum_lines(sum, parts, line, feature) / n;
    const float centre = static_cast<float>(mean);
    double squares = 0;
    for (int64_t r = line; real && r < now.batch; r += kLines) {
      const float d = y[r * l.y_stride] - centre;
      squares += d * d;
    }
    const double variance = sum_lines(squares, parts, line, feature) / n;
    const float inv_std = inverse_deviation(variance, l.norm_eps);
    if (!real) continue;
    const float scale = l.gamma.value ? l.gamma.value[f] : 1.f;
    const float shift = l.beta.value ? l.beta.value[f] : 0.f;
    const Philox mask = mask_of(s, l, segment, now);
    const float kept_scale = keep_scale(l.drop_threshold);
    for (int64_t r = line; r < now.batch; r += kLines) {
      const float x = (y[r * l.y_stride] - centre) * inv_std;
      normed[r * l.y_stride] = x;
      const WithSlope<float> activated = activate(l.activation, x * scale + shift, l.slope);
      if (float* const slope = slopes_of(l, segment, r, f, now)) *slope = activated.slope;
      float out = activated.value;
      if (l.drop)
        out = kept_bits<1>(mask, r * l.out + f, l.drop_threshold) ? out * kept_scale : 0.f;
      y[r * l.y_stride] = out;
    }
    if (line > 0) continue;
    l.inv_std[segment * l.out + f] = inv_std;
    if (l.running_mean)
      track(l.running_mean[f], l.running_var[f], running_share(l.norm_momentum, *l.batches, part),
            mean, variance, n);
  }
}

// From the gradient of the normalised, scaled values to that of the products; with `trained`
// BatchNorm's own weight and bias are updated.
__global__ void __launch_bounds__(kThreads)
    norm_backward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i,
                         int64_t k, int from, int segments, bool trained) {
  FASTGAN_SHARED(double, parts, [kLines][kFeatures]);
  const Moment now = moment(s, *s.clock, i, k);
  const auto [line, feature, f, real] = spot_in(l);
  const float scale = real && l.gamma.value ? l.gamma.value[f] : 1.f;
  float grad_beta = 0, grad_gamma = 0;
  for (int segment = from; segment < from + segments; ++segment) {
    float* const grads = l.grad_y + (segment + l.lift) * now.batch * l.y_stride + f;
    const float* const normed = l.normed + segment * now.batch * l.y_stride + f;
    double sum = 0, product = 0;
    for (int64_t r = line; real && r < now.batch; r += kLines) {
      const double g = grads[r * l.y_stride];
      sum += g;
      product += g * normed[r * l.y_stride];
    }
    sum = sum_lines(sum, parts, line, feature);
    product = sum_lines(product, parts, line, feature);
    if (!real) continue;
    grad_beta += static_cast<float>(sum);
    grad_gamma += static_cast<float>(product);
    const float mean = static_cast<float>(sum / static_cast<double>(now.batch));
    const float slant = static_cast<float>(product / static_cast<double>(now.batch));
    const float by = l.inv_std[segment * l.out + f] * scale;
    for (int64_t r = line; r < now.batch; r += kLines) {
      float& g = grads[r * l.y_stride];
      g = by * (g - mean - normed[r * l.y_stride] * slant);
    }
  }
  // Every thread of the feature has read `scale` before the first of the barriers above.
  if (!trained || !real || line > 0 || l.gamma.value == nullptr) return;
  const Move move = move_of(s, now, l.in_g);
  use(move, l.gamma, f, grad_gamma);
  use(move, l.beta, f, grad_beta);
}

}  // namespace fastgan::cuda::step
