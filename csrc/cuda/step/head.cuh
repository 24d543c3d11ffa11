// D's last layer, of width 1: scores, losses, and the gradient of the field below.
#pragma once

#include "common/losses.h"
#include "cuda/step/activation.cuh"
#include "step/loss.h"

namespace fastgan::cuda::step {

// The loss of one score and its gradient; see step/loss.h.
__device__ __forceinline__ Score score(const Step& s, int segment, float of, float scale) {
  if (!takes_logits(s.loss)) return raw_score(s.loss, segment, of, scale);
  const Bce bce = bce_of(s.loss, segment, s.real_label);
  const LossGrad<float> r = bce_with_logit(of, static_cast<float>(bce.label));
  return bce.negative ? Score{-r.loss, -scale * r.grad} : Score{r.loss, scale * r.grad};
}

// A warp takes rows first, first + stride, ... of the segments from `from` on. `lower` is the layer
// that made the field below; without `differentiated` nothing below is trained in this update. (A
// reference, since a pointer that may be null takes the layer out of the kernel's parameters.) Of
// rows that are penalised, the gradients below are those of the scores themselves.
template <bool kPenalised = false>
__device__ inline void head_rows(const Step& s, const Layer& l, const Layer& lower,
                                 bool differentiated, const Moment& now, int from, int segments,
                                 int first, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const w = l.weight.value;
  const bool vector = l.in % 4 == 0 && aligned(w);
  const float scale = static_cast<float>(1.0 / static_cast<double>(now.batch));
  const auto weights = [&](int64_t c) {
    Four four{};
    if (vector) {
      four = *reinterpret_cast<const Four*>(w + c);
    } else {
      for (int e = 0; e < 4 && c + e < l.in; ++e) four.v[e] = w[c + e];
    }
    return four;
  };
  const float bias = l.bias.value ? l.bias.value[0] : 0.f;
  const int rows = segments * static_cast<int>(now.batch);
  for (int r = first; r < rows; r += stride) {
    int segment;
    int64_t within;
    locate(r, now.batch, segment, within);
    segment += from;
    const int64_t row = from * now.batch + r;
    const float* const x = field_x(l, now) + row * l.x_stride;
    float sum = 0;
    for (int64_t c = 4 * lane; c < l.in; c += 4 * 32) {
      const Four a = *reinterpret_cast<const Four*>(x + c), b = weights(c);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (c + e < l.in) sum += a.v[e] * b.v[e];
    }
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    const WithSlope<float> y = activate(l.activation, sum + bias, l.slope);
    const bool between = kPenalised && segment == kBetween;
    const Score result = between ? Score{0.f, 0.f} : score(s, segment, y.value, scale);
    const bool penalised = kPenalised && due(s, segment);
    const float grad =
        derivative(l.activation, penalised ? 1.f : result.grad, y.value, y.slope, l.slope);
    if (lane == 0) {
      if (!between) {
        s.loss_rows[segment * s.batch + within] = result.loss;
        s.score_rows[segment * s.batch + within] = y.value;
      }
      l.grad_y[row * l.y_stride] = penalised ? result.grad * grad : grad;
      if (penalised) {
        s.coefficients[(segment - kBetween) * s.batch + within] = result.grad;
        l.y[row * l.y_stride] = y.value;
        l.deltas[row * l.y_stride] = grad;
      }
    }
    if (!differentiated && !penalised) continue;
    for (int64_t c = 4 * lane; c < l.in; c += 4 * 32) {
      const Four below = *reinterpret_cast<const Four*>(x + c);
      Four g = weights(c);
#pragma unroll
      for (int e = 0; e < 4; ++e) g.v[e] *= grad;
      if (differentiated) {
        const int of = segment - lower.lift;
        const uint32_t kept = kept_four(s, lower, of, within, c, now);
        if (penalised) keep_curves(lower, of, within, c, now, kept, g);
        differentiate_four(lower, of, within, c, now, kept, below, g);
      }
      *reinterpret_cast<Four*>(l.grad_x + row * l.x_stride + c) = g;
    }
  }
}

}  // namespace fastgan::cuda::step
