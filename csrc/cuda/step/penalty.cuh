// Penalties on D's slope: cpu/step/penalty.h has the mathematics, job.h what is kept where.
#pragma once

#include "cuda/step/backward.cuh"
#include "cuda/step/forward.cuh"
#include "cuda/step/inputs.cuh"

namespace fastgan::cuda::step {

// The penalties of a plan, as a kernel's parameter.
struct Penalties {
  PlannedPenalty of[kMostPenalties];
  int count = 0;
};

// Calls use(tile among those of a run, run) if this block has one of the rows that are penalised.
template <class Tiles, class Use>
__device__ void with_due_tile(const Step& s, const Moment& now, const Tiles& tiles,
                              const Use& use) {
  unsigned tile = blockIdx.x;
  for (Span run = due_from(s, kBetween); run.segments > 0;
       run = due_from(s, run.from + run.segments)) {
    const unsigned count = static_cast<unsigned>(tiles(run.segments * now.batch));
    if (tile < count) {
      use(tile, run);
      return;
    }
    tile -= count;
  }
}
// As many blocks as those may take, of a plan that penalises so many segments: two runs of them
// have the most.
template <class Tiles>
int64_t most_due_tiles(int64_t batch, int64_t segments, const Tiles& tiles) {
  const int64_t together = tiles(segments * batch), apart = 2 * tiles(batch);
  return segments > 1 && apart > together ? apart : together;
}

// --- What an update takes from outside, besides inputs.cuh's

__device__ inline SlopeWeights weights_at(const Penalties& penalties, fastgan::Place at,
                                          int64_t update) {
  SlopeWeights weights;
  for (int n = 0; n < penalties.count; ++n) add(weights, penalties.of[n], at, update);
  return weights;
}

// The weights of D's update, by a thread that constants() leaves alone; and where points between
// are penalised, the share of the real sample in each: uniform in [0, 1], of a normal, as
// torch.special.ndtr.
__device__ inline void penalty_inputs(const Step& s, const Penalties& penalties, const Moment& now,
                                      int64_t first, int64_t stride) {
  if (first + 65 == stride) {
    for (int64_t place = 0; place < kPlaces; ++place)
      s.slopes[place] = weights_at(penalties, static_cast<fastgan::Place>(place), now.update);
  }
  if (4 * first >= now.batch || !weights_at(penalties, fastgan::Place::between, now.update).due)
    return;
  constexpr double kHalfRoot = 0.70710678118654752440;
  const Philox g = between_philox(s.seed, now.update);
  for (int64_t block = first; 4 * block < now.batch; block += stride) {
    uint32_t w[4];
    Four z;
    philox_block(g, static_cast<uint32_t>(block), w[0], w[1], w[2], w[3]);
    normals_from(w[0], w[1], z.v[0], z.v[1]);
    normals_from(w[2], w[3], z.v[2], z.v[3]);
    for (int e = 0; e < 4 && 4 * block + e < now.batch; ++e)
      s.mixes[4 * block + e] =
          static_cast<float>(0.5 * ::erfc(-kHalfRoot * static_cast<double>(z.v[e])));
  }
}

// The points between real and fake samples, as torch.lerp.
__device__ inline void points(const Step& s, const Moment& now, int64_t first, int64_t stride) {
  if (!due(s, kBetween)) return;
  const int64_t fours = s.image_stride / 4, batch = now.batch * s.image_stride;
  for (int64_t item = first; item < now.batch * fours; item += stride) {
    const float share = s.mixes[item / fours], rest = 1.f - share;
    float* const at = s.images + 4 * item;
    const Four real = *reinterpret_cast<const Four*>(at + kReal * batch);
    const Four fake = *reinterpret_cast<const Four*>(at + kFake * batch);
    Four to;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float apart = real.v[e] - fake.v[e];
      to.v[e] = share < 0.5f ? fake.v[e] + share * apart : real.v[e] - rest * apart;
    }
    *reinterpret_cast<Four*>(at + kBetween * batch) = to;
  }
}

// --- From the slope to what it adds to the gradients

// The loss's slope by the score of a row, of which points between have none.
__device__ __forceinline__ float coefficient(const Step& s, int segment, int64_t row) {
  return segment == kBetween ? 0.f : s.coefficients[(segment - kBetween) * s.batch + row];
}

// From the gradients of the whole loss after l's dropout and activation to those before them, which
// take the place of the scores'.
__device__ __forceinline__ void join_bends(const Layer& l, int segment, int64_t row, int64_t column,
                                           const Moment& now, uint32_t kept, const Four& y,
                                           Four grad) {
  const int64_t at = (segment * now.batch + row) * l.y_stride + column;
  differentiate_four(l, segment, row, column, now, kept, y, grad);
  if (l.curves) {
    const Four curves = *reinterpret_cast<const Four*>(l.curves + at);
#pragma unroll
    for (int e = 0; e < 4; ++e) grad.v[e] += curves.v[e];
  }
  Four* const grads = reinterpret_cast<Four*>(l.grad_y + at);
  *reinterpret_cast<Four*>(l.deltas + at) = *grads;
  *grads = grad;
}

// One tile of what a phase makes of gradients of the field above l, a layer of D: those of the
// field below through `lower`, the layer that made it, which leave what its curves need; the slope
// of the images, through nothing; or gradients of the whole loss, which take the place of the
// scores'.
template <class T, Precision precision>
__device__ void penalised_backward_tile(const Step& s, const Layer& l, const Layer& lower,
                                        Phase::Work work, const Moment& now, int from, int segments,
                                        unsigned tile, unsigned char* shared) {
  backward_tile_to<T, precision>(
      s, l, lower, now, from, segments, tile, shared, false,
      [&](int64_t at, int64_t c, int segment, int64_t within, const Made& made, Four four) {
        if (work == Phase::bend) {
          join_bends(lower, segment, within, c, now, made.kept, made.y, four);
          return;
        }
        if (work == Phase::backward) {
          if (due(s, segment)) keep_curves(lower, segment, within, c, now, made.kept, four);
          differentiate_four(lower, segment, within, c, now, made.kept, made.y, four);
        }
        *reinterpret_cast<Four*>(l.grad_x + at) = four;
      });
}

// From the slope, in the images' gradients, to the penalty's derivative by it, in the same place. A
// warp takes rows first, first + stride, ... of all that may be penalised.
__device__ inline void direction_rows(const Step& s, const Layer& l, const Moment& now, int first,
                                      int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = first; r < kPlaces * static_cast<int>(now.batch); r += stride) {
    int place;
    int64_t within;
    locate(r, now.batch, place, within);
    const int segment = place + kBetween;
    if (!due(s, segment)) continue;
    float* const g = l.grad_x + (segment * now.batch + within) * l.x_stride;
    float sum = 0;
    for (int64_t c = lane; c < l.in; c += 32) sum += g[c] * g[c];
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    const double norm = math::sqrt(static_cast<double>(sum));
    const float factor = static_cast<float>(slope_factor(s.slopes[place], norm, now.batch));
    for (int64_t c = lane; c < l.in; c += 32) g[c] *= factor;
  }
}

// From the derivative of l's products in a penalty's direction to that of its results; with that,
// what a curved activation makes of it, and where no other is above, the gradients of the whole
// loss.
__device__ __forceinline__ void tangent_four(const Step& s, const Layer& l, int segment,
                                             int64_t row, int64_t column, const Moment& now,
                                             uint32_t kept, const Four& y, Four v) {
  const int64_t at = (segment * now.batch + row) * l.y_stride + column;
  const float* const slopes = slopes_of(l, segment, row, column, now);
  const Four of_elu = slopes ? *reinterpret_cast<const Four*>(slopes) : Four{};
  const float scale = l.drop ? keep_scale(l.drop_threshold) : 1.f;
  const float inverse = scale > 0.f ? 1.f / scale : 0.f;
  Four first, bend{};
#pragma unroll
  for (int e = 0; e < 4; ++e)
    first.v[e] = derivative(l.activation, 1.f, y.v[e] * inverse, of_elu.v[e], l.slope);
  if (l.curves) {
    Four* const curves = reinterpret_cast<Four*>(l.curves + at);
    bend = *curves;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      bend.v[e] *= second_derivative(l.activation, y.v[e] * inverse, first.v[e]) * v.v[e];
    *curves = bend;
  }
  if (l.straight || l.topmost) {
    Four* const grads = reinterpret_cast<Four*>(l.grad_y + at);
    const Four delta = *grads;
    const float by = coefficient(s, segment, row);
#pragma unroll
    for (int e = 0; e < 4; ++e) bend.v[e] += by * delta.v[e];
    *reinterpret_cast<Four*>(l.deltas + at) = delta;
    *grads = bend;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e)
    v.v[e] = l.drop && !(kept >> e & 1u) ? 0.f : first.v[e] * (v.v[e] * scale);
  *reinterpret_cast<Four*>(l.tangents + at) = v;
}

// One tile of a tangent phase, for segments that are penalised.
template <class T, Precision precision>
__device__ void tangent_tile(const Step& s, const Layer& l, const Moment& now, int from,
                             int segments, unsigned tile, unsigned char* shared) {
  const int64_t rows = segments * now.batch;
  const Corner corner = corner_of<T>(tile, rows);
  const Operand x = operand(l.x_tangents + from * now.batch * l.x_stride, l.x_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.out);
  const auto place = [&](int i, int j, auto use) {
    const int64_t r = corner.row + i, c = corner.column + j;
    if (r >= rows || c >= l.out) return;
    int segment;
    int64_t within;
    locate(r, now.batch, segment, within);
    use(c, from + segment, within);
  };
  product<T, precision, true, true>(
      OneProduct{x, weight, static_cast<int>(l.in)}, corner, shared,
      [&](int i, int j) {
        Made early{};
        place(i, j, [&](int64_t c, int segment, int64_t within) {
          const float* const y = l.y + (segment * now.batch + within) * l.y_stride;
          early = {*reinterpret_cast<const Four*>(y + c), kept_four(s, l, segment, within, c, now)};
        });
        return early;
      },
      [&](int i, int j, const Four& four, const Made& early) {
        place(i, j, [&](int64_t c, int segment, int64_t within) {
          tangent_four(s, l, segment, within, c, now, early.kept, early.y, four);
        });
      });
}

// The tangent phase of D's last layer where its activation is curved, and the gradients below
// through `lower`; without `differentiated` there is none. Rows as in direction_rows.
__device__ inline void head_tangent_rows(const Step& s, const Layer& l, const Layer& lower,
                                         bool differentiated, const Moment& now, int first,
                                         int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const w = l.weight.value;
  for (int r = first; r < kPlaces * static_cast<int>(now.batch); r += stride) {
    int place;
    int64_t within;
    locate(r, now.batch, place, within);
    const int segment = place + kBetween;
    if (!due(s, segment)) continue;
    const int64_t row = segment * now.batch + within;
    const float* const t = l.x_tangents + row * l.x_stride;
    float v = 0;
    for (int64_t c = lane; c < l.in; c += 32) v += t[c] * w[c];
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) v += __shfl_xor_sync(0xffffffffu, v, bits);
    const float delta = l.deltas[row * l.y_stride];
    const float bend = coefficient(s, segment, within) * delta +
                       second_derivative(l.activation, l.y[row * l.y_stride], delta) * v;
    if (lane == 0) l.grad_y[row * l.y_stride] = bend;
    if (!differentiated) continue;
    for (int64_t c = 4 * lane; c < l.in; c += 4 * 32) {
      Four g{};
      for (int e = 0; e < 4 && c + e < l.in; ++e) g.v[e] = bend * w[c + e];
      join_bends(lower, segment, within, c, now, kept_four(s, lower, segment, within, c, now),
                 *reinterpret_cast<const Four*>(l.x + row * l.x_stride + c), g);
    }
  }
}

// --- The chain's kernels of D's updates with penalties

__global__ void __launch_bounds__(kThreads)
    penalised_inputs_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Penalties, penalties),
                            int64_t i, int64_t k) {
  const Moment now = moment(s, *s.clock, i, k);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  inputs(s, *s.clock, now, k, k + 1 == s.d_steps, first, stride);
  penalty_inputs(s, penalties, now, first, stride);
}

__global__ void __launch_bounds__(kThreads)
    points_kernel(FASTGAN_PARAMETER(Step, s), int64_t i, int64_t k) {
  const Moment now = moment(s, *s.clock, i, k);
  points(s, now, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
         static_cast<int64_t>(gridDim.x) * kThreads);
}

// A backward phase, slope or bend.
template <class T, Precision precision>
__global__ void __launch_bounds__(kThreads)
    penalised_backward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                              FASTGAN_PARAMETER(Layer, lower), Phase::Work work, int64_t i,
                              int64_t k, Span planned) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const Moment now = moment(s, *s.clock, i, k);
  const auto carry_out = [&](unsigned tile, const Span& span) {
    penalised_backward_tile<T, precision>(s, l, lower, work, now, span.from, span.segments, tile,
                                          shared);
  };
  const auto tiles = [&](int64_t rows) { return backward_tiles<T>(l, rows); };
  if (work == Phase::backward) {
    const Span span = at_hand(s, planned);
    if (blockIdx.x < tiles(span.segments * now.batch)) carry_out(blockIdx.x, span);
  } else {
    with_due_tile(s, now, tiles, carry_out);
  }
}

__global__ void __launch_bounds__(kThreads)
    direction_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i,
                     int64_t k) {
  direction_rows(s, l, moment(s, *s.clock, i, k), own_warp(), all_warps());
}

template <class T, Precision precision>
__global__ void __launch_bounds__(kThreads)
    tangent_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i, int64_t k) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const Moment now = moment(s, *s.clock, i, k);
  with_due_tile(
      s, now, [&](int64_t rows) { return forward_tiles<T>(l, rows); },
      [&](unsigned tile, const Span& span) {
        tangent_tile<T, precision>(s, l, now, span.from, span.segments, tile, shared);
      });
}

__global__ void __launch_bounds__(kThreads)
    head_tangent_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                        FASTGAN_PARAMETER(Layer, lower), bool differentiated, int64_t i,
                        int64_t k) {
  head_tangent_rows(s, l, lower, differentiated, moment(s, *s.clock, i, k), own_warp(),
                    all_warps());
}

}  // namespace fastgan::cuda::step
