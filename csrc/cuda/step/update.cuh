// Gradients of the weights, consumed by Adam, and a step's statistics.
#pragma once

#include "common/adam.h"
#include "cuda/step/moment.cuh"
#include "step/passes.h"

namespace fastgan::cuda::step {

// As many layers as their descriptions fit into 4 KiB of parameters.
constexpr int kUpdated = 8;
struct Updated {
  Layer layers[kUpdated];
  int64_t first[kUpdated + 1];  // tile of each layer
  int count;
  bool statistics;  // whether the last block has the means to take
};
static_assert(sizeof(Updated) + sizeof(Step) <= 4000);

// Shared memory of a tile.
template <class T>
constexpr int kUpdateBytes = T::template Bytes<false, false>;

template <class T>
__host__ __device__ __forceinline__ int64_t update_tiles(const Layer& l) {
  return tiles_along(l.out, T::Rows) * tiles_along(l.in, T::Columns);
}
// What a tile keeps on chip from one update to the next: value, exp_avg and exp_avg_sq, each of its
// [rows][columns] elements and then of the [rows] of the bias, which the first column of tiles has.
template <class T>
constexpr int kResidentEach = T::Rows * (T::Columns + 1);
template <class T>
constexpr int kResidentFloats = 3 * kResidentEach<T>;

// Calls use(element on chip, pointers) for this thread's elements of weight and bias.
template <class T, class Use>
__device__ void each_resident(const Layer& l, unsigned tile, const Use& use) {
  constexpr int kWeights = T::Rows * T::Columns;
  const Corner corner = corner_of<T>(tile, l.out);
  const int elements = corner.column == 0 && l.bias.value ? kResidentEach<T> : kWeights;
  for (int n = static_cast<int>(threadIdx.x); n < elements; n += kThreads) {
    const bool of_weight = n < kWeights;
    const int64_t r = corner.row + (of_weight ? n / T::Columns : n - kWeights);
    const int64_t c = corner.column + (of_weight ? n % T::Columns : 0);
    if (r >= l.out || c >= l.in) continue;
    const Parameter& p = of_weight ? l.weight : l.bias;
    const int64_t at = of_weight ? r * l.in + c : r;
    use(n, p.value + at, p.exp_avg + at, p.exp_avg_sq + at);
  }
}

// One element, whose state is in memory or on chip.
template <class T, bool kOnChip>
__device__ __forceinline__ void update_element(const Adam<float>& adam, float average_share,
                                               const Parameter& p, int64_t at, float grad,
                                               float* kept) {
  float* const m = kOnChip ? kept + kResidentEach<T> : p.exp_avg + at;
  float* const v = kOnChip ? kept + 2 * kResidentEach<T> : p.exp_avg_sq + at;
  float value = kOnChip ? *kept : p.value[at];
  adam_update(adam, grad, value, *m, *v);
  p.value[at] = value;
  if (kOnChip) *kept = value;
  if (p.average) p.average[at] += average_share * (value - p.average[at]);
}

// As torch.clamp: NaN stays.
__device__ __forceinline__ float bounded(float x, float largest) {
  return x < -largest ? -largest : x > largest ? largest : x;
}
__device__ __forceinline__ Four bounded(Four x, float largest) {
#pragma unroll
  for (int e = 0; e < 4; ++e) x.v[e] = bounded(x.v[e], largest);
  return x;
}

// What an update does with gradients of its network.
struct Move {
  Adam<float> adam;
  float average_share, largest_grad, largest_weight;
};
__device__ __forceinline__ Move move_of(const Step& s, const Moment& now, bool of_g) {
  const Optimizer& o = of_g ? s.g_optimizer : s.d_optimizer;
  const bool averages = now.more + 1 == s.g_steps;  // a step's last update of G
  return {s.adam[2 * now.copy + (of_g ? 1 : 0)],
          averages ? static_cast<float>(1.0 - s.average_decay) : 0.f,
          static_cast<float>(o.largest_grad), static_cast<float>(o.largest_weight)};
}

// Adam, and the average, on one element in memory.
__device__ __forceinline__ void apply(const Move& move, const Parameter& p, int64_t at,
                                      float grad) {
  float value = p.value[at];
  adam_update(move.adam, grad, value, p.exp_avg[at], p.exp_avg_sq[at]);
  p.value[at] = value = bounded(value, move.largest_weight);
  if (p.average) p.average[at] += move.average_share * (value - p.average[at]);
}
// A gradient's number: to Adam, or to where it waits.
__device__ __forceinline__ void use(const Move& move, const Parameter& p, int64_t at, float grad) {
  grad = bounded(grad, move.largest_grad);
  if (p.grad) {
    p.grad[at] = grad;
  } else {
    apply(move, p, at, grad);
  }
}

// The products that a weight's gradient is the sum of, where some rows may be penalised: grads^T
// rows, and of those deltas^T tangents.
class WeightSum {
 public:
  __device__ WeightSum(const Step& s, const Layer& l, const Moment& now, int from, int segments,
                       bool front)
      : l_(l), now_(now), usual_{from, segments} {
    if (l.deltas == nullptr) return;
    first_ = due_from(s, kBetween);
    second_ = due_from(s, first_.from + first_.segments);
    // With nothing curved above, the points between have no gradients of their own.
    if (front && !l.straight && due(s, kBetween)) usual_ = {from - 1, segments + 1};
  }

  template <class T>
  __device__ int pieces() const {
    return pieces_of<T>(usual_) + pieces_of<T>(first_) + pieces_of<T>(second_);
  }
  template <class T, class Use>
  __device__ void at(int piece, const Use& use) const {
    const bool usual = lined<T>(piece);
    if (!usual) piece -= pieces_of<T>(usual_);
    const bool second = !usual && piece >= pieces_of<T>(first_);
    if (second) piece -= pieces_of<T>(first_);
    const Span& span = usual ? usual_ : second ? second_ : first_;
    const int64_t row = span.from * now_.batch, lifted = (span.from + l_.lift) * now_.batch;
    use(operand((usual ? l_.grad_y : l_.deltas) + lifted * l_.y_stride, l_.y_stride, l_.out),
        operand((usual ? field_x(l_, now_) : l_.x_tangents) + row * l_.x_stride, l_.x_stride,
                l_.in),
        piece * T::Depth, length(span));
  }
  // The bias has the gradients alone.
  template <class T>
  __device__ bool lined(int piece) const {
    return piece < pieces_of<T>(usual_);
  }

 private:
  __device__ int length(const Span& span) const {
    return span.segments * static_cast<int>(now_.batch);
  }
  template <class T>
  __device__ int pieces_of(const Span& span) const {
    return (length(span) + T::Depth - 1) / T::Depth;
  }

  const Layer& l_;
  const Moment& now_;
  Span usual_, first_{0, 0}, second_{0, 0};
};

// One tile of the gradient of a weight, and in the first column that of the bias, consumed by Adam
// and by the average. The state is in memory or, at `resident`, on chip; the weight is always
// written to memory, where products read it. kGeneral: with penalties and bounds, and gradients
// that wait.
template <class T, Precision precision, bool kOnChip, bool kGeneral = false>
__device__ void update_tile(const Step& s, const Layer& l, const Moment& now, int from,
                            int segments, unsigned tile, unsigned char* shared, float* resident,
                            bool front = false) {
  constexpr int kEach = kResidentEach<T>;
  const Corner corner = corner_of<T>(tile, l.out);
  const Operand grad =
      operand(l.grad_y + (from + l.lift) * now.batch * l.y_stride, l.y_stride, l.out);
  const Operand x = operand(field_x(l, now) + from * now.batch * l.x_stride, l.x_stride, l.in);
  const Move move = move_of(s, now, l.in_g);
  const Adam<float>& adam = move.adam;
  const float average_share = move.average_share;
  const Parameter& w = l.weight;
  const bool vector = l.in % 4 == 0 && aligned(w.value) && aligned(w.exp_avg) &&
                      aligned(w.exp_avg_sq) && aligned(w.average);
  const bool biased = corner.column == 0 && l.bias.value;
  const auto inside = [&](int i, int j) {
    return corner.row + i < l.out && corner.column + j < l.in;
  };
  const auto place = [&](int i, int j) { return (corner.row + i) * l.in + corner.column + j; };
  // The chain's large tiles have no registers left for what they would read early.
  using Early = std::conditional_t<kOnChip, Four, Nothing>;
  LineSum<T> bias(biased);
  const auto sum = [&] {
    if constexpr (kGeneral) {
      return WeightSum(s, l, now, from, segments, front);
    } else {
      return OneProduct{grad, x, segments * static_cast<int>(now.batch)};
    }
  }();
  product<T, precision, false, false>(
      sum, corner, shared,
      [&](int i, int j) {
        Early average{};
        if constexpr (kOnChip) {
          if (vector && w.average && inside(i, j))
            average = *reinterpret_cast<const Four*>(w.average + place(i, j));
        }
        return average;
      },
      [&](int i, int j, Four four, Early early) {
        if (!inside(i, j)) return;
        const int64_t at = place(i, j);
        float* const kept = kOnChip ? resident + (i * T::Columns + j) : nullptr;
        if constexpr (kGeneral) {
          if (!vector) {
            for (int e = 0; e < 4 && inside(i, j + e); ++e) use(move, w, at + e, four.v[e]);
            return;
          }
          four = bounded(four, move.largest_grad);
          if (w.grad) {
            *reinterpret_cast<Four*>(w.grad + at) = four;
            return;
          }
        }
        if (!vector) {
          for (int e = 0; e < 4 && inside(i, j + e); ++e)
            update_element<T, kOnChip>(adam, average_share, w, at + e, four.v[e],
                                       kOnChip ? kept + e : nullptr);
          return;
        }
        Four* const at_value = reinterpret_cast<Four*>(kOnChip ? kept : w.value + at);
        Four* const at_m = reinterpret_cast<Four*>(kOnChip ? kept + kEach : w.exp_avg + at);
        Four* const at_v = reinterpret_cast<Four*>(kOnChip ? kept + 2 * kEach : w.exp_avg_sq + at);
        Four value = *at_value, m = *at_m, v = *at_v;
#pragma unroll
        for (int e = 0; e < 4; ++e) adam_update(adam, four.v[e], value.v[e], m.v[e], v.v[e]);
        if constexpr (kGeneral) value = bounded(value, move.largest_weight);
        *at_value = value;
        *at_m = m;
        *at_v = v;
        if (kOnChip) *reinterpret_cast<Four*>(w.value + at) = value;
        if (w.average) {
          Four* const at_average = reinterpret_cast<Four*>(w.average + at);
          Four average;
          if constexpr (kOnChip) {
            average = early;
          } else {
            average = *at_average;
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) average.v[e] += average_share * (value.v[e] - average.v[e]);
          *at_average = average;
        }
      },
      false, bias);
  if (!biased) return;
  const float of_bias = bias.total();
  const int line = LineSum<T>::line();
  if (LineSum<T>::part() > 0 || corner.row + line >= l.out) return;
  if constexpr (kGeneral) {
    use(move, l.bias, corner.row + line, of_bias);
    return;
  }
  update_element<T, kOnChip>(adam, average_share, l.bias, corner.row + line, of_bias,
                             kOnChip ? resident + T::Rows * T::Columns + line : nullptr);
}

// The sum of all threads' numbers, in all threads of a block.
__device__ inline double sum_of_block(double mine, unsigned char* shared) {
  double* const parts = reinterpret_cast<double*>(shared);
  __syncthreads();
  parts[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  return parts[0];
}

// The mean of a segment's losses or scores, by one block, in all of its threads.
__device__ inline double mean_of(const float* rows, const Moment& now, unsigned char* shared) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < now.batch; r += kThreads) sum += static_cast<double>(rows[r]);
  return sum_of_block(sum, shared) / static_cast<double>(now.batch);
}

// What D's update, or G's, has to say of the step, into the table, by one block.
__device__ inline void write_statistics(const Step& s, const Moment& now, bool of_g,
                                        unsigned char* shared) {
  const auto write = [&](Statistic statistic, float value) {
    if (threadIdx.x == 0 && now.known)
      s.statistics[kStatistics * now.row + static_cast<int64_t>(statistic)] = value;
  };
  const auto mean = [&](const float* rows, int segment) {
    return static_cast<float>(mean_of(rows + segment * s.batch, now, shared));
  };
  if (of_g) {
    write(Statistic::g_loss, mean(s.loss_rows, kFakeForG));
    return;
  }
  const float on_real = mean(s.loss_rows, kReal);
  write(Statistic::d_loss, on_real + mean(s.loss_rows, kFake));
  write(Statistic::d_real, mean(s.score_rows, kReal));
  write(Statistic::d_fake, mean(s.score_rows, kFake));
}

}  // namespace fastgan::cuda::step
