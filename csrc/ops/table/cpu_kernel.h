// What a generator of a table's rows is made of beside products.
// Included by cpu/kernels_impl.h for each instruction set.
#include "common/gumbel.h"
#include "common/math.h"
#include "ops/table/shape.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

// Rows whose choices are made together, so that vectors run along rows: groups are narrow.
constexpr int kTogether = 16;

// to[c][r] = from[r][c] for c < columns and r < rows, 0 for the other r < kTogether.
inline void turned_in(const float* __restrict from, int64_t row, int rows, int64_t columns,
                      float* __restrict to) {
  for (int r = 0; r < kTogether; ++r) {
    const float* const own = from + (r < rows ? r : 0) * row;
    const float keep = r < rows ? 1.f : 0.f;
    for (int64_t c = 0; c < columns; ++c) to[c * kTogether + r] = keep * own[c];
  }
}

inline void turned_out(const float* __restrict from, int64_t row, int rows, int64_t columns,
                       float* __restrict to) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[r * row + c] = from[c * kTogether + r];
  }
}

// x[c][r] becomes the softmax over c.
inline void softmax_together(int64_t size, float* __restrict x) {
  float most[kTogether], sum[kTogether];
  for (int r = 0; r < kTogether; ++r) most[r] = x[r], sum[r] = 0.f;
  for (int64_t c = 1; c < size; ++c) {
    for (int r = 0; r < kTogether; ++r) {
      const float v = x[c * kTogether + r];
      most[r] = v > most[r] ? v : most[r];
    }
  }
  for (int64_t c = 0; c < size; ++c) {
    for (int r = 0; r < kTogether; ++r) {
      const float e = math::exp(x[c * kTogether + r] - most[r]);
      x[c * kTogether + r] = e;
      sum[r] += e;
    }
  }
  for (int r = 0; r < kTogether; ++r) sum[r] = 1.f / sum[r];
  for (int64_t c = 0; c < size; ++c) {
    for (int r = 0; r < kTogether; ++r) x[c * kTogether + r] *= sum[r];
  }
}

// Rows [begin, end) of what the heads make of logits and normals. scratch: 2 kTogether numbers for
// each of the longest block or head.
void heads(const HeadsShape& s, const float* logits, const float* normals, int64_t begin,
           int64_t end, float* scratch, float* out) {
  for (int64_t first = begin; first < end; first += kTogether) {
    const int rows = static_cast<int>(end - first < kTogether ? end - first : kTogether);
    int64_t at = first * s.row, choice = first * s.choices;
    for (int64_t b = 0; b < s.count; ++b) {
      const HeadBlock& block = s.blocks[b];
      const int64_t size = block.softmax ? block.size : block.size * block.many;
      float* const x = scratch;
      float* const noise = scratch + size * kTogether;
      for (int64_t k = 0; k < (block.softmax ? block.many : 1); ++k) {
        turned_in(logits + at, s.row, rows, size, x);
        if (block.softmax) {
          turned_in(normals + choice, s.choices, rows, size, noise);
          for (int64_t i = 0; i < size * kTogether; ++i) {
            x[i] = (x[i] + gumbel_of(noise[i])) / s.temperature;
          }
          softmax_together(size, x);
          choice += size;
        } else {
          for (int64_t i = 0; i < size * kTogether; ++i) x[i] = math::tanh(x[i]);
        }
        turned_out(x, s.row, rows, size, out + at);
        at += size;
      }
    }
  }
}

// Rows [begin, end) of a gradient at what the heads made become those at their logits.
void heads_backward(const HeadsShape& s, const float* made, int64_t begin, int64_t end,
                    float* scratch, float* grad) {
  for (int64_t first = begin; first < end; first += kTogether) {
    const int rows = static_cast<int>(end - first < kTogether ? end - first : kTogether);
    int64_t at = first * s.row;
    for (int64_t b = 0; b < s.count; ++b) {
      const HeadBlock& block = s.blocks[b];
      const int64_t size = block.softmax ? block.size : block.size * block.many;
      float* __restrict const x = scratch;
      float* __restrict const g = scratch + size * kTogether;
      for (int64_t k = 0; k < (block.softmax ? block.many : 1); ++k) {
        turned_in(made + at, s.row, rows, size, x);
        turned_in(grad + at, s.row, rows, size, g);
        if (block.softmax) {
          float dot[kTogether] = {};
          for (int64_t c = 0; c < size; ++c) {
            for (int r = 0; r < kTogether; ++r)
              dot[r] += x[c * kTogether + r] * g[c * kTogether + r];
          }
          for (int64_t c = 0; c < size; ++c) {
            for (int r = 0; r < kTogether; ++r) {
              const int64_t i = c * kTogether + r;
              g[i] = x[i] * (g[i] - dot[r]) / s.temperature;
            }
          }
        } else {
          for (int64_t i = 0; i < size * kTogether; ++i) g[i] *= 1.f - x[i] * x[i];
        }
        turned_out(g, s.row, rows, size, grad + at);
        at += size;
      }
    }
  }
}

// The cross-entropy of one class of a group of logits, which is returned; onto grad is added scale
// times its gradient. classes: numbers of the group; asked: the class.
float surprise(const float* __restrict logits, int64_t classes, int64_t asked, float scale,
               float* __restrict grad) {
  float most = logits[0], sum = 0.f;
  for (int64_t c = 1; c < classes; ++c) most = logits[c] > most ? logits[c] : most;
  for (int64_t c = 0; c < classes; ++c) sum += math::exp(logits[c] - most);
  const float share = scale / sum;
  for (int64_t c = 0; c < classes; ++c) grad[c] += share * math::exp(logits[c] - most);
  grad[asked] -= scale;
  return math::log(sum) + most - logits[asked];
}

// Columns whose sums are taken together: they stay in registers and the nearest cache.
constexpr int kStrip = 64;

// max(0, a BatchNorm of the batch) of the units [begin, end); their means and inverse deviations.
// Running values may be null; they move by `momentum`.
void normed_relu(const NormShape& s, const float* x, const float* weight, const float* bias,
                 double momentum, double eps, int64_t begin, int64_t end, float* running_mean,
                 float* running_var, float* mean, float* inverse, float* out) {
  const double n = static_cast<double>(s.batch);
  for (int64_t at = begin; at < end; at += kStrip) {
    const int count = static_cast<int>(end - at < kStrip ? end - at : kStrip);
    double sums[kStrip] = {}, squares[kStrip] = {};
    float factor[kStrip], shift[kStrip];
    for (int64_t row = 0; row < s.batch; ++row) {
      const float* __restrict const from = x + row * s.x_row + at;
      for (int j = 0; j < count; ++j) sums[j] += from[j];
    }
    for (int j = 0; j < count; ++j) sums[j] /= n;
    for (int64_t row = 0; row < s.batch; ++row) {
      const float* __restrict const from = x + row * s.x_row + at;
      for (int j = 0; j < count; ++j) {
        const double far = from[j] - sums[j];
        squares[j] += far * far;
      }
    }
    for (int j = 0; j < count; ++j) {
      const double deviation = 1.0 / math::sqrt(squares[j] / n + eps);
      mean[at + j] = static_cast<float>(sums[j]);
      inverse[at + j] = static_cast<float>(deviation);
      factor[j] = static_cast<float>(deviation * weight[at + j]);
      shift[j] = static_cast<float>(bias[at + j] - sums[j] * deviation * weight[at + j]);
      if (running_mean != nullptr) {
        const double var = squares[j] / (n - 1.0);
        running_mean[at + j] =
            static_cast<float>((1.0 - momentum) * running_mean[at + j] + momentum * sums[j]);
        running_var[at + j] =
            static_cast<float>((1.0 - momentum) * running_var[at + j] + momentum * var);
      }
    }
    for (int64_t row = 0; row < s.batch; ++row) {
      const float* __restrict const from = x + row * s.x_row + at;
      float* __restrict const to = out + row * s.out_row + at;
      for (int j = 0; j < count; ++j) {
        const float y = from[j] * factor[j] + shift[j];
        to[j] = y < 0.f ? 0.f : y;  // not a number stays none
      }
    }
  }
}

// The gradient at `out` of the units [begin, end) becomes that at x; those of weight and bias.
void normed_relu_backward(const NormShape& s, const float* out, const float* x, const float* weight,
                          const float* mean, const float* inverse, int64_t begin, int64_t end,
                          float* grad, float* grad_weight, float* grad_bias) {
  const double n = static_cast<double>(s.batch);
  for (int64_t at = begin; at < end; at += kStrip) {
    const int count = static_cast<int>(end - at < kStrip ? end - at : kStrip);
    double sums[kStrip] = {}, dots[kStrip] = {};
    float factor[kStrip], slope[kStrip], shift[kStrip];
    for (int64_t row = 0; row < s.batch; ++row) {
      const float* __restrict const from = x + row * s.x_row + at;
      const float* __restrict const made = out + row * s.out_row + at;
      float* __restrict const g = grad + row * s.grad_row + at;
      for (int j = 0; j < count; ++j) {
        const float passed = made[j] > 0.f ? g[j] : 0.f;
        g[j] = passed;
        sums[j] += passed;
        dots[j] += static_cast<double>(passed) * (from[j] - mean[at + j]);
      }
    }
    for (int j = 0; j < count; ++j) {
      const double deviation = inverse[at + j];
      grad_weight[at + j] = static_cast<float>(dots[j] * deviation);
      grad_bias[at + j] = static_cast<float>(sums[j]);
      const double scale = deviation * weight[at + j];
      const double along = -scale * deviation * deviation * dots[j] / n;
      factor[j] = static_cast<float>(scale);
      slope[j] = static_cast<float>(along);
      shift[j] = static_cast<float>(-scale * sums[j] / n - along * mean[at + j]);
    }
    for (int64_t row = 0; row < s.batch; ++row) {
      const float* __restrict const from = x + row * s.x_row + at;
      float* __restrict const g = grad + row * s.grad_row + at;
      for (int j = 0; j < count; ++j) g[j] = g[j] * factor[j] + (from[j] * slope[j] + shift[j]);
    }
  }
}

// Units [begin, end): out[b][u] += columns[u][category[b]].
void add_columns(const float* columns, int64_t column_row, const int64_t* category, int64_t batch,
                 int64_t begin, int64_t end, float* out, int64_t out_row) {
  constexpr int kUnits = 16;
  for (int64_t u = begin; u < end; u += kUnits) {
    const int count = static_cast<int>(end - u < kUnits ? end - u : kUnits);
    for (int64_t b = 0; b < batch; ++b) {
      const float* const from = columns + u * column_row + category[b];
      float* const to = out + b * out_row + u;
      for (int j = 0; j < count; ++j) to[j] += from[j * column_row];
    }
  }
}

// Units [begin, end): out[u][c] = the sum of grad[b][u] over the rows b of category c.
void sum_columns(const float* grad, int64_t grad_row, const int64_t* category, int64_t batch,
                 int64_t categories, int64_t begin, int64_t end, float* out, int64_t out_row) {
  constexpr int kUnits = 16;
  for (int64_t u = begin; u < end; u += kUnits) {
    const int count = static_cast<int>(end - u < kUnits ? end - u : kUnits);
    for (int j = 0; j < count; ++j) {
      for (int64_t c = 0; c < categories; ++c) out[(u + j) * out_row + c] = 0.f;
    }
    for (int64_t b = 0; b < batch; ++b) {
      const float* const from = grad + b * grad_row + u;
      float* const to = out + u * out_row + category[b];
      for (int j = 0; j < count; ++j) to[j * out_row] += from[j];
    }
  }
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
