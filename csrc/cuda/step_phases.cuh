// The phases of a step, as work on one tile, or on every n-th item, of a block of 256 threads. Both
// programs are made of these.
#pragma once

#include "common/activation.h"
#include "common/dropout.h"
#include "common/losses.h"
#include "common/philox.h"
#include "ops/random/mask.cuh"
#include "cuda/step_product.cuh"

// A large parameter that a kernel reads where the launch has put it.
#if defined(__CUDACC__)
#  define FASTGAN_PARAMETER(type, name) const __grid_constant__ type name
#else
#  define FASTGAN_PARAMETER(type, name) const type name
#endif

namespace fastgan::cuda::step {

// The update at hand.
struct Moment {
  int64_t row;     // of the tables
  int64_t step;    // the engine's
  int64_t update;  // of D, over all steps
  int64_t batch;   // images in it
  int copy;        // of the inputs and of Adam's constants
};

// D's update number k of the i-th step from the clock on.
__device__ __forceinline__ Moment moment(const Step& s, int64_t i, int64_t k) {
  Moment now;
  now.step = s.clock->step + i;
  now.row = now.step - s.clock->first;
  now.update = now.step * s.d_steps + k;
  const int64_t left = s.count - now.update % s.per_epoch * s.batch;
  now.batch = left < s.batch ? left : s.batch;
  now.copy = s.copies > 1 ? static_cast<int>(now.update & 1) : 0;
  return now;
}

__host__ __device__ __forceinline__ int64_t tiles_along(int64_t n, int tile) {
  return (n + tile - 1) / tile;
}

__device__ __forceinline__ float* field_x(const Layer& l, const Moment& now) {
  return l.x + now.copy * l.x_copy;
}
__device__ __forceinline__ float* field_y(const Layer& l, const Moment& now) {
  return l.y + now.copy * l.y_copy;
}

// --- Activations and masks

__device__ __forceinline__ float activate(Activation activation, float x, float slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return leaky_relu(x, slope);
    case Activation::tanh:
      return math::tanh(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::elu:
      return elu(x, slope);
    default:
      return x;
  }
}

// The derivative in terms of the output y.
__device__ __forceinline__ float derivative(Activation activation, float grad, float y,
                                            float slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return leaky_relu_grad(grad, y, slope);
    case Activation::tanh:
      return tanh_grad(grad, y);
    case Activation::sigmoid:
      return sigmoid_grad(grad, y);
    case Activation::elu:
      return elu_grad(grad, y, slope);
    default:
      return grad;
  }
}

// The stream of a layer's mask in one segment: uses 0, 1, 2 of D's, 3 and 4 of G's, the last of
// either network in G's update.
__device__ __forceinline__ Philox mask_of(const Step& s, const Layer& l, int segment,
                                          const Moment& now) {
  const int use = l.in_g ? kSegments + segment : segment;
  const bool for_g = use == 2 || use == 4;
  return make_philox(s.seed, l.drop_stream + static_cast<uint32_t>(use),
                     static_cast<uint64_t>(for_g ? now.step : now.update));
}

// y = dropout(activation(x)) on four neighbours of row `row` of a segment of the field above l.
__device__ __forceinline__ void activate_four(const Step& s, const Layer& l, int segment,
                                              int64_t row, int64_t column, const Moment& now,
                                              Four& x) {
#pragma unroll
  for (int e = 0; e < 4; ++e) x.v[e] = activate(l.activation, x.v[e], l.slope);
  if (!l.drop) return;
  const uint32_t kept =
      kept_bits<4>(mask_of(s, l, segment, now), row * l.out + column, l.drop_threshold);
  const float scale = keep_scale(l.drop_threshold);
#pragma unroll
  for (int e = 0; e < 4; ++e) x.v[e] = kept >> e & 1u ? x.v[e] * scale : 0.f;
}

// From the gradient after l's dropout and activation to the one before them; y is what l made.
__device__ __forceinline__ void differentiate_four(const Step& s, const Layer& l, int segment,
                                                   int64_t row, int64_t column, const Moment& now,
                                                   const Four& y, Four& grad) {
  if (!l.drop) {
#pragma unroll
    for (int e = 0; e < 4; ++e) grad.v[e] = derivative(l.activation, grad.v[e], y.v[e], l.slope);
    return;
  }
  const uint32_t kept =
      kept_bits<4>(mask_of(s, l, segment, now), row * l.out + column, l.drop_threshold);
  const float scale = keep_scale(l.drop_threshold), inverse = scale > 0.f ? 1.f / scale : 0.f;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    grad.v[e] = kept >> e & 1u
                    ? derivative(l.activation, grad.v[e] * scale, y.v[e] * inverse, l.slope)
                    : 0.f;
  }
}

// --- Inputs

// base^n, n >= 0, where pow() would take microseconds.
__device__ inline double raised(double base, int64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1, base *= base) result *= n & 1 ? base : 1.0;
  return result;
}
__device__ inline Adam<float> adam_of(const Optimizer& o, int64_t update, double lr) {
  return make_adam_of_powers<float>(raised(o.beta1, update), raised(o.beta2, update), lr, o.beta1,
                                    o.beta2, o.eps, o.weight_decay, o.decoupled);
}

__device__ inline void latents(const Step& s, const Moment& now, int segment, int64_t first,
                               int64_t stride) {
  const Philox g = make_philox(s.seed, static_cast<uint32_t>(segment),
                               static_cast<uint64_t>(segment ? now.step : now.update));
  float* const to = s.latents + now.copy * s.latent_copy + segment * now.batch * s.latent_stride;
  const int64_t n = now.batch * s.latent;
  for (int64_t block = first; 4 * block < n; block += stride) {
    uint32_t w[4];
    Four z;
    philox_block(g, static_cast<uint32_t>(block), w[0], w[1], w[2], w[3]);
    normals_from(w[0], w[1], z.v[0], z.v[1]);
    normals_from(w[2], w[3], z.v[2], z.v[3]);
    int64_t row = 4 * block / s.latent, column = 4 * block % s.latent;
    if (s.latent % 4 == 0) {
      *reinterpret_cast<Four*>(to + row * s.latent_stride + column) = z;
      continue;
    }
    for (int e = 0; e < 4 && 4 * block + e < n; ++e) {
      to[row * s.latent_stride + column] = z.v[e];
      if (++column == s.latent) {
        column = 0;
        ++row;
      }
    }
  }
}

__device__ inline void images(const Step& s, const Moment& now, int64_t k, int64_t first,
                              int64_t stride) {
  const int64_t fours = tiles_along(s.image, 4);
  float* const to = s.images + now.copy * s.image_copy;
  const int64_t* const order = s.order ? s.order +
                                             (now.update / s.per_epoch - s.clock->epoch) * s.count +
                                             now.update % s.per_epoch * s.batch
                                       : nullptr;
  const bool whole = s.image % 4 == 0;
  const bool vector_bytes = whole && reinterpret_cast<uintptr_t>(s.bytes) % 4 == 0;
  for (int64_t item = first; item < now.batch * fours; item += stride) {
    const int64_t row = item / fours, column = item % fours * 4;
    const int64_t from = (order ? order[row] : k * s.batch + row) * s.image + column;
    Four x{};
    if (s.bytes) {
      uchar4 b{};
      if (vector_bytes) {
        b = *reinterpret_cast<const uchar4*>(s.bytes + from);
      } else {
        b.x = s.bytes[from];
        if (column + 1 < s.image) b.y = s.bytes[from + 1];
        if (column + 2 < s.image) b.z = s.bytes[from + 2];
        if (column + 3 < s.image) b.w = s.bytes[from + 3];
      }
      constexpr float kScale = static_cast<float>(2.0 / 255.0);
      x = {static_cast<float>(b.x) * kScale - 1.f, static_cast<float>(b.y) * kScale - 1.f,
           static_cast<float>(b.z) * kScale - 1.f, static_cast<float>(b.w) * kScale - 1.f};
    } else {
      for (int e = 0; e < 4 && column + e < s.image; ++e) x.v[e] = s.floats[from + e];
    }
    *reinterpret_cast<Four*>(to + row * s.image_stride + column) = x;
  }
}

// Everything random or read from outside that D's update number k needs, and with `last` what G's
// update needs: items first, first + stride, ...
__device__ inline void inputs(const Step& s, const Moment& now, int64_t k, bool last, int64_t first,
                              int64_t stride) {
  if (first == 0) {
    s.adam[2 * now.copy] = adam_of(s.d_optimizer, s.clock->d_updates + now.row * s.d_steps + k + 1,
                                   s.rates[2 * now.row]);
  }
  if (last && first == 32) {  // another warp
    s.adam[2 * now.copy + 1] =
        adam_of(s.g_optimizer, s.clock->g_updates + now.row + 1, s.rates[2 * now.row + 1]);
  }
  latents(s, now, 0, first, stride);
  if (last) latents(s, now, 1, first, stride);
  images(s, now, k, first, stride);
}

// --- Forward

// Segment and row in it of a row counted from the first of `from`'s segments.
__device__ __forceinline__ void locate(int64_t row, int64_t batch, int& segment, int64_t& within) {
  segment = static_cast<int>(row >= batch) + static_cast<int>(row >= 2 * batch);
  within = row - segment * batch;
}

// Shared memory of a tile of each phase.
template <class T>
constexpr int kForwardBytes = T::template Bytes<true, true>;
template <class T>
constexpr int kBackwardBytes = T::template Bytes<true, false>;
template <class T>
constexpr int kUpdateBytes = T::template Bytes<false, false>;

template <class T>
__host__ __device__ __forceinline__ int64_t forward_tiles(const Layer& l, int64_t rows) {
  return tiles_along(rows, T::Rows) * tiles_along(l.out, T::Columns);
}

// One tile of y for `segments` segments of the field below from `from` on. Where the layer has a
// BatchNorm, y is what goes into it.
template <class T, Math math>
__device__ void forward_tile(const Step& s, const Layer& l, const Moment& now, int from,
                             int segments, int64_t tile, unsigned char* shared) {
  const int64_t rows = segments * now.batch, down = tiles_along(rows, T::Rows);
  const int64_t row = tile % down * T::Rows, column = tile / down * T::Columns;
  const Operand x = operand(field_x(l, now) + from * now.batch * l.x_stride, l.x_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.out);
  float* const y = field_y(l, now) + (from + l.lift) * now.batch * l.y_stride;
  product<T, math, true, true>(x, weight, row, column, l.in, shared, [&](int i, int j, Four four) {
    const int64_t r = row + i, c = column + j;
    if (r >= rows || c >= l.out) return;
    if (l.bias.value) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (c + e < l.out) four.v[e] += l.bias.value[c + e];
    }
    if (!l.norm) {
      int segment;
      int64_t within;
      locate(r, now.batch, segment, within);
      activate_four(s, l, from + segment, within, c, now, four);
    }
    *reinterpret_cast<Four*>(y + r * l.y_stride + c) = four;
  });
}

// --- Head: D's last layer

struct Score {
  float loss, grad;
};
__device__ __forceinline__ Score score(const Step& s, int segment, float logit, float scale) {
  if (s.game == Game::non_saturating || s.game == Game::minimax) {
    // The saturating G minimises the negative of D's loss on its images.
    const bool negative = segment == 2 && s.game == Game::minimax;
    const float label = segment == 0                ? static_cast<float>(s.real_label)
                        : segment == 2 && !negative ? 1.f
                                                    : 0.f;
    const LossGrad<float> r = bce_with_logit(logit, label);
    return negative ? Score{-r.loss, -scale * r.grad} : Score{r.loss, scale * r.grad};
  }
  if (s.game == Game::least_squares) {
    const float d = segment == 1 ? logit : logit - 1.f;
    return {0.5f * (d * d), scale * d};
  }
  const float sign = segment == 1 ? 1.f : -1.f;
  if (s.game == Game::hinge && segment != 2) {
    const float margin = 1.f + sign * logit;
    // NaN is not flat.
    return margin <= 0.f ? Score{0.f, 0.f} : Score{margin, sign * scale};
  }
  return {sign * logit, sign * scale};
}

// A warp takes rows first, first + stride, ... of the segments from `from` on. `lower` is the layer
// that made the field below, null where nothing below is trained in this update.
__device__ inline void head_rows(const Step& s, const Layer& l, const Layer* lower,
                                 const Moment& now, int from, int segments, int64_t first,
                                 int64_t stride) {
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
  for (int64_t r = first; r < segments * now.batch; r += stride) {
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
    const float logit =
        activate(l.activation, sum + (l.bias.value ? l.bias.value[0] : 0.f), l.slope);
    const Score result = score(s, segment, logit, scale);
    const float grad = derivative(l.activation, result.grad, logit, l.slope);
    if (lane == 0) {
      s.loss_rows[segment * s.batch + within] = result.loss;
      l.grad_y[row * l.y_stride] = grad;
    }
    if (lower == nullptr) continue;
    for (int64_t c = 4 * lane; c < l.in; c += 4 * 32) {
      const Four y = *reinterpret_cast<const Four*>(x + c);
      Four g = weights(c);
#pragma unroll
      for (int e = 0; e < 4; ++e) g.v[e] *= grad;
      differentiate_four(s, *lower, segment - lower->lift, within, c, now, y, g);
      *reinterpret_cast<Four*>(l.grad_x + row * l.x_stride + c) = g;
    }
  }
}

// --- Backward

template <class T>
__host__ __device__ __forceinline__ int64_t backward_tiles(const Layer& l, int64_t rows) {
  return tiles_along(rows, T::Rows) * tiles_along(l.in, T::Columns);
}

// One tile of the gradient of l's input, taken through `lower`, the layer that made it. `from`
// counts the segments of the field between them.
template <class T, Math math>
__device__ void backward_tile(const Step& s, const Layer& l, const Layer& lower, const Moment& now,
                              int from, int segments, int64_t tile, unsigned char* shared) {
  const int64_t rows = segments * now.batch, down = tiles_along(rows, T::Rows);
  const int64_t row = tile % down * T::Rows, column = tile / down * T::Columns;
  const Operand grad =
      operand(l.grad_y + (from + l.lift) * now.batch * l.y_stride, l.y_stride, rows);
  const Operand weight = operand(l.weight.value, l.in, l.in);
  const int64_t at = from * now.batch * l.x_stride;
  product<T, math, true, false>(
      grad, weight, row, column, l.out, shared, [&](int i, int j, Four four) {
        const int64_t r = row + i, c = column + j;
        if (r >= rows || c >= l.in) return;
        int segment;
        int64_t within;
        locate(r, now.batch, segment, within);
        const int64_t to = at + r * l.x_stride + c;
        const Four y = *reinterpret_cast<const Four*>(field_x(l, now) + to);
        differentiate_four(s, lower, from + segment - lower.lift, within, c, now, y, four);
        *reinterpret_cast<Four*>(l.grad_x + to) = four;
      });
}

// --- Update

// With the bias as one more column.
__host__ __device__ __forceinline__ int64_t update_columns(const Layer& l) {
  return l.in + (l.bias.value != nullptr);
}
template <class T>
__host__ __device__ __forceinline__ int64_t update_tiles(const Layer& l) {
  return tiles_along(l.out, T::Rows) * tiles_along(update_columns(l), T::Columns);
}
template <class T>
__host__ __device__ __forceinline__ void update_place(const Layer& l, int64_t tile, int64_t& row,
                                                      int64_t& column) {
  const int64_t down = tiles_along(l.out, T::Rows);
  row = tile % down * T::Rows;
  column = tile / down * T::Columns;
}

// What a tile keeps on chip from one update to the next: value, exp_avg and exp_avg_sq of its
// elements, [3][rows][columns].
template <class T>
constexpr int kResidentFloats = 3 * T::Rows * T::Columns;

// Calls use(element of the tile, pointers) for this thread's elements of weight and bias.
template <class T, class Use>
__device__ void each_resident(const Layer& l, int64_t tile, const Use& use) {
  int64_t row, column;
  update_place<T>(l, tile, row, column);
  for (int n = static_cast<int>(threadIdx.x); n < T::Rows * T::Columns; n += kThreads) {
    const int64_t r = row + n / T::Columns, c = column + n % T::Columns;
    if (r >= l.out || c >= update_columns(l)) continue;
    const Parameter& p = c < l.in ? l.weight : l.bias;
    const int64_t at = c < l.in ? r * l.in + c : r;
    use(n, p.value + at, p.exp_avg + at, p.exp_avg_sq + at);
  }
}

// One tile of the gradient of a weight, consumed by Adam and by the average. The state is in memory
// or, with `resident`, on chip; the weight is always written to memory, where products read it.
template <class T, Math math>
__device__ void update_tile(const Step& s, const Layer& l, const Moment& now, int from,
                            int segments, int64_t tile, unsigned char* shared, float* resident) {
  int64_t row, column;
  update_place<T>(l, tile, row, column);
  const Operand grad =
      operand(l.grad_y + (from + l.lift) * now.batch * l.y_stride, l.y_stride, l.out);
  const Operand x = operand(field_x(l, now) + from * now.batch * l.x_stride, l.x_stride, l.in,
                            l.bias.value != nullptr);
  const Adam<float> adam = s.adam[2 * now.copy + (l.in_g ? 1 : 0)];
  const float average_share = static_cast<float>(1.0 - s.average_decay);
  const Parameter& w = l.weight;
  const bool vector = l.in % 4 == 0 && aligned(w.value) && aligned(w.exp_avg) &&
                      aligned(w.exp_avg_sq) && aligned(w.average);
  product<T, math, false, false>(
      grad, x, row, column, segments * now.batch, shared, [&](int i, int j, const Four& four) {
        const int64_t r = row + i, c = column + j;
        if (r >= l.out) return;
        float* const kept = resident ? resident + (i * T::Columns + j) : nullptr;
        if (vector && c < l.in) {
          const int64_t at = r * l.in + c;
          Four value, m, v;
          if (resident) {
            value = *reinterpret_cast<const Four*>(kept);
            m = *reinterpret_cast<const Four*>(kept + T::Rows * T::Columns);
            v = *reinterpret_cast<const Four*>(kept + 2 * T::Rows * T::Columns);
          } else {
            value = *reinterpret_cast<const Four*>(w.value + at);
            m = *reinterpret_cast<const Four*>(w.exp_avg + at);
            v = *reinterpret_cast<const Four*>(w.exp_avg_sq + at);
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) adam_update(adam, four.v[e], value.v[e], m.v[e], v.v[e]);
          *reinterpret_cast<Four*>(w.value + at) = value;
          *reinterpret_cast<Four*>(resident ? kept + T::Rows * T::Columns : w.exp_avg + at) = m;
          *reinterpret_cast<Four*>(resident ? kept + 2 * T::Rows * T::Columns : w.exp_avg_sq + at) =
              v;
          if (resident) *reinterpret_cast<Four*>(kept) = value;
          if (w.average) {
            Four average = *reinterpret_cast<const Four*>(w.average + at);
#pragma unroll
            for (int e = 0; e < 4; ++e) average.v[e] += average_share * (value.v[e] - average.v[e]);
            *reinterpret_cast<Four*>(w.average + at) = average;
          }
          return;
        }
        for (int e = 0; e < 4; ++e) {
          const int64_t of = c + e;
          if (of >= update_columns(l)) break;
          const Parameter& p = of < l.in ? w : l.bias;
          const int64_t at = of < l.in ? r * l.in + of : r;
          float* const m = resident ? kept + e + T::Rows * T::Columns : p.exp_avg + at;
          float* const v = resident ? kept + e + 2 * T::Rows * T::Columns : p.exp_avg_sq + at;
          float value = resident ? kept[e] : p.value[at];
          adam_update(adam, four.v[e], value, *m, *v);
          p.value[at] = value;
          if (resident) kept[e] = value;
          if (p.average) p.average[at] += average_share * (value - p.average[at]);
        }
      });
}

// The loss of D's update, or of G's, into the table, by one block.
__device__ inline void mean_losses(const Step& s, const Moment& now, bool of_g,
                                   unsigned char* shared) {
  double* const parts = reinterpret_cast<double*>(shared);
  float total = 0;
  for (int segment = of_g ? 2 : 0; segment < (of_g ? 3 : 2); ++segment) {
    double sum = 0;
    for (int64_t r = threadIdx.x; r < now.batch; r += kThreads)
      sum += static_cast<double>(s.loss_rows[segment * s.batch + r]);
    __syncthreads();
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
      __syncthreads();
    }
    total += static_cast<float>(parts[0] / static_cast<double>(now.batch));
  }
  if (threadIdx.x == 0) s.losses[2 * now.row + (of_g ? 1 : 0)] = total;
}

// --- Which tile

// Cycles that tiles of a kind take on all multiprocessors, by what binds them: reading the operands
// (64 bytes a cycle), and in float32 reading them again from shared memory for every few products.
template <class T>
__host__ __device__ inline int64_t tile_cycles(int64_t rows, int64_t columns, int64_t depth,
                                               int multiprocessors, Math math) {
  constexpr int64_t kStart = 1200;
  constexpr int64_t kRead = (T::Rows + T::Columns) * 4 / 64;
  constexpr int64_t kMultiply = T::Rows * T::Columns / (T::Rows == 16 ? 45 : 80);
  const int64_t tiles = tiles_along(rows, T::Rows) * tiles_along(columns, T::Columns);
  const int64_t each = math == Math::fp32 && kMultiply > kRead ? kMultiply : kRead;
  return tiles_along(tiles, multiprocessors) * (kStart + depth * each);
}

}  // namespace fastgan::cuda::step
