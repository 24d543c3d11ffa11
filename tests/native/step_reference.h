// The training step on plain double-precision arithmetic, for step_main.cpp to compare with.
#pragma once

#include <algorithm>

#include "common/dropout.h"
#include "cpu/kernels.h"
#include "step_activations.h"
#include "step_plans.h"

// --- The reference ---

constexpr int64_t kClasses = 5;
int64_t label_of(int64_t source) { return source * 7 % kClasses; }
float number_of(int64_t source, int64_t j) {
  return static_cast<float>((source * 31 + j * 17) % 23) / 11.f - 1.f;
}
// Which condition a fake sample has in an update of a step, of D's before G's.
int64_t drawn_for(const Pair& plan, int64_t step, int64_t update, int64_t row) {
  return (step * 13 + update * 29 + row * 11) % plan.count;
}

struct Trace {
  Matrix in, normed, before, out;  // `before` the activation
  std::vector<double> inv_std;
};

struct Reference {
  const Pair& plan;
  uint64_t seed;

  Matrix forward(const std::vector<LayerPlan>& layers, std::vector<LayerState>& state, Matrix x,
                 int64_t n, int use, uint64_t step, std::vector<Trace>& traces,
                 std::vector<std::vector<uint8_t>>& keeps) {
    traces.clear();
    keeps.clear();
    int dropouts = 0;
    const Shape shape{layers, plan.joins(layers), static_cast<int64_t>(x.size()) / n};
    std::vector<Matrix> nodes(1 + layers.size() + shape.joins.size());
    nodes[0] = x;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t j = 0; j < shape.joins.size(); ++j)
        if (shape.joins[j].before == static_cast<int64_t>(l))
          each_joined(shape, j, n, [&](size_t of, int64_t from, int64_t to) {
            Matrix& join = nodes[layers.size() + 1 + j];
            join.resize(n * shape.width(layers.size() + 1 + j));
            join[to] += nodes[of][from];
          });
      x = nodes[shape.source(l)];
      const int64_t in = static_cast<int64_t>(x.size()) / n, out = layers[l].out;
      LayerState& s = state[l];
      Trace t;
      t.in = x;
      Matrix y(n * out);
      for (int64_t b = 0; b < n; ++b)
        for (int64_t o = 0; o < out; ++o) {
          double sum = s.bias.exact.empty() ? 0 : s.bias.exact[o];
          for (int64_t i = 0; i < in; ++i) sum += s.weight.exact[o * in + i] * x[b * in + i];
          y[b * out + o] = sum;
        }
      if (layers[l].norm) {
        t.normed.resize(n * out);
        t.inv_std.resize(out);
        for (int64_t o = 0; o < out; ++o) {
          double mean = 0, var = 0;
          for (int64_t b = 0; b < n; ++b) mean += y[b * out + o] / n;
          for (int64_t b = 0; b < n; ++b)
            var += (y[b * out + o] - mean) * (y[b * out + o] - mean) / n;
          t.inv_std[o] = 1 / std::sqrt(var + kNormEps);
          s.exact_mean[o] += kMomentum * (mean - s.exact_mean[o]);
          s.exact_var[o] += kMomentum * (var * n / (n - 1) - s.exact_var[o]);
          for (int64_t b = 0; b < n; ++b) {
            t.normed[b * out + o] = (y[b * out + o] - mean) * t.inv_std[o];
            y[b * out + o] = t.normed[b * out + o] * s.gamma.exact[o] + s.beta.exact[o];
          }
        }
      }
      if (layers[l].row_norm) {
        t.normed.resize(n * out);
        t.inv_std.resize(n);
        for (int64_t b = 0; b < n; ++b) {
          double mean = 0, var = 0;
          for (int64_t o = 0; o < out; ++o) mean += y[b * out + o] / out;
          for (int64_t o = 0; o < out; ++o)
            var += (y[b * out + o] - mean) * (y[b * out + o] - mean) / out;
          t.inv_std[b] = 1 / std::sqrt(var + kNormEps);
          for (int64_t o = 0; o < out; ++o) {
            t.normed[b * out + o] = (y[b * out + o] - mean) * t.inv_std[b];
            y[b * out + o] = t.normed[b * out + o] * s.gamma.exact[o] + s.beta.exact[o];
          }
        }
      }
      t.before = y;
      for (double& v : y) v = activate(layers[l].activation, v);
      t.out = y;
      std::vector<uint8_t> keep;
      if (layers[l].drop > 0) {
        const uint32_t threshold =
            static_cast<uint32_t>(std::nearbyint((1 - layers[l].drop) * 65536));
        const Philox generator = make_philox(seed, 64 + 8 * dropouts++ + use, step);
        keep.resize(n * out);
        for (int64_t e = 0; e < n * out; ++e) {
          uint32_t w[4];
          philox_block(generator, static_cast<uint32_t>(e >> 3), w[0], w[1], w[2], w[3]);
          keep[e] = fastgan::keeps(w[e >> 1 & 3], e & 1, threshold);
          y[e] = keep[e] ? y[e] * 65536.0 / threshold : 0;
        }
      }
      keeps.push_back(keep);
      traces.push_back(t);
      nodes[l + 1] = y;
    }
    return nodes[layers.size()];
  }

  // Calls use(node, one of its numbers, that of the join) for all that a join is made of.
  template <class Use>
  static void each_joined(const Shape& shape, size_t j, int64_t n, Use use) {
    const JoinPlan& join = shape.joins[j];
    const int64_t width = shape.width(shape.layers.size() + 1 + j);
    for (int64_t b = 0; b < n; ++b) {
      int64_t at = b * width;
      for (const int64_t of : join.nodes) {
        const int64_t taken = shape.width(of);
        for (int64_t i = 0; i < taken; ++i) use(of, b * taken + i, at + i);
        at += join.of == JoinOf::add ? 0 : taken;
      }
    }
  }

  // grads: per layer weight, bias, gamma, beta; added to. Returns the gradient
  // of the input.
  Matrix backward(const std::vector<LayerPlan>& layers, const std::vector<LayerState>& state,
                  const std::vector<Trace>& traces, const std::vector<std::vector<uint8_t>>& keeps,
                  Matrix g, int64_t n, std::vector<std::vector<Matrix>>* grads) {
    const Shape shape{layers, plan.joins(layers), static_cast<int64_t>(traces[0].in.size()) / n};
    std::vector<Matrix> nodes(1 + layers.size() + shape.joins.size());
    for (size_t node = 0; node < nodes.size(); ++node) nodes[node].resize(n * shape.width(node));
    nodes[layers.size()] = g;
    for (size_t l = layers.size(); l-- > 0;) {
      g = nodes[l + 1];
      const Trace& t = traces[l];
      const LayerState& s = state[l];
      const int64_t out = layers[l].out, in = static_cast<int64_t>(t.in.size()) / n;
      const uint32_t threshold =
          static_cast<uint32_t>(std::nearbyint((1 - layers[l].drop) * 65536));
      for (int64_t e = 0; e < n * out; ++e) {
        if (!keeps[l].empty()) g[e] = keeps[l][e] ? g[e] * 65536.0 / threshold : 0;
        g[e] *= slope_at(layers[l].activation, t.before[e], t.out[e]);
      }
      if (layers[l].norm) {
        for (int64_t o = 0; o < out; ++o) {
          double sum = 0, product = 0;
          for (int64_t b = 0; b < n; ++b) {
            sum += g[b * out + o];
            product += g[b * out + o] * t.normed[b * out + o];
          }
          if (grads) {
            (*grads)[l][2][o] += product;
            (*grads)[l][3][o] += sum;
          }
          for (int64_t b = 0; b < n; ++b)
            g[b * out + o] = s.gamma.exact[o] * t.inv_std[o] *
                             (g[b * out + o] - sum / n - t.normed[b * out + o] * product / n);
        }
      }
      if (layers[l].row_norm) {
        for (int64_t b = 0; b < n; ++b) {
          double sum = 0, product = 0;
          for (int64_t o = 0; o < out; ++o) {
            double& at = g[b * out + o];
            if (grads) {
              (*grads)[l][2][o] += at * t.normed[b * out + o];
              (*grads)[l][3][o] += at;
            }
            at *= s.gamma.exact[o];
            sum += at;
            product += at * t.normed[b * out + o];
          }
          for (int64_t o = 0; o < out; ++o)
            g[b * out + o] =
                t.inv_std[b] * (g[b * out + o] - sum / out - t.normed[b * out + o] * product / out);
        }
      }
      Matrix down(n * in, 0);
      for (int64_t b = 0; b < n; ++b)
        for (int64_t o = 0; o < out; ++o)
          for (int64_t i = 0; i < in; ++i) {
            down[b * in + i] += g[b * out + o] * s.weight.exact[o * in + i];
            if (grads) (*grads)[l][0][o * in + i] += g[b * out + o] * t.in[b * in + i];
          }
      if (grads)
        for (int64_t b = 0; b < n; ++b)
          for (int64_t o = 0; o < out; ++o) (*grads)[l][1][o] += g[b * out + o];
      Matrix& source = nodes[shape.source(l)];
      for (size_t e = 0; e < down.size(); ++e) source[e] += down[e];
      for (size_t j = shape.joins.size(); j-- > 0;)
        if (shape.joins[j].before == static_cast<int64_t>(l))
          each_joined(shape, j, n, [&](size_t of, int64_t from, int64_t to) {
            nodes[of][from] += nodes[layers.size() + 1 + j][to];
          });
    }
    return nodes[0];
  }

  // A network's input: its own columns, and those of what belongs to stored samples.
  Matrix joined(const std::vector<PartPlan>& parts, const std::vector<LayerState>& state,
                size_t layers, const Matrix& own, const std::vector<int64_t>& sources) const {
    const size_t n = sources.size(), width = own.size() / n;
    Matrix all;
    for (size_t i = 0; i < n; ++i)
      for (const bool before : {true, false}) {
        size_t table = layers;
        for (const PartPlan& part : parts) {
          const size_t at = part.of == PartOf::embedding ? table++ : 0;
          if (part.before != before) continue;
          const int64_t label = label_of(sources[i]);
          for (int64_t j = 0; j < part.width; ++j)
            all.push_back(part.of == PartOf::one_hot ? label == j
                          : part.of == PartOf::numbers
                              ? number_of(sources[i], j)
                              : state[at].weight.exact[label * part.width + j]);
        }
        if (before) all.insert(all.end(), own.begin() + i * width, own.begin() + (i + 1) * width);
      }
    return all;
  }
  // Adds the gradients of an input's columns, times `by`, to those of embeddings; of what are the
  // network's own, the rest.
  static Matrix parted(const std::vector<PartPlan>& parts, size_t layers, const Matrix& grads,
                       const std::vector<int64_t>& sources, std::vector<std::vector<Matrix>>* into,
                       double by = 1) {
    const size_t n = sources.size(), width = grads.size() / n;
    Matrix own;
    for (size_t i = 0; i < n; ++i) {
      size_t at = i * width, ends = (i + 1) * width;
      for (const bool before : {true, false}) {
        size_t table = layers;
        size_t behind = 0;
        for (const PartPlan& part : parts) behind += part.before ? 0 : part.width;
        if (!before)
          for (; at < ends - behind; ++at) own.push_back(grads[at]);
        for (const PartPlan& part : parts) {
          const size_t place = part.of == PartOf::embedding ? table++ : 0;
          if (part.before != before) continue;
          for (int64_t j = 0; j < part.width; ++j, ++at)
            if (into && place > 0)
              (*into)[place][0][label_of(sources[i]) * part.width + j] += by * grads[at];
        }
      }
    }
    return own;
  }

  // Adds the gradient of the penalties at n points, which D takes as its pass `use`. That of
  // <u, grad_x D(x)> is the derivative of D's weight gradients at x + r u by r, here a quotient of
  // differences.
  void penalise(Place at, int use, std::vector<LayerState>& state, const Matrix& x, int64_t n,
                int64_t update, const std::vector<int64_t>& sources,
                std::vector<std::vector<Matrix>>& grads) {
    const SlopeWeights weights = slope_weights(plan.penalties, at, update);
    if (!weights.due) return;
    std::vector<Trace> traces;
    std::vector<std::vector<uint8_t>> keeps;
    const auto gradients = [&](const Matrix& points, std::vector<std::vector<Matrix>>& into) {
      forward(plan.d, state, points, n, use, static_cast<uint64_t>(update), traces, keeps);
      return backward(plan.d, state, traces, keeps, Matrix(n, 1.0), n, &into);
    };
    auto ahead = zeros(state), behind = zeros(state);
    Matrix u = gradients(x, ahead);
    // The slope by the sample alone: the other columns of u are zeros.
    const int64_t width = static_cast<int64_t>(u.size()) / n;
    const int64_t unit = width / plan.pack;
    int64_t front = 0, back = unit;
    for (const PartPlan& part : plan.d_parts)
      part.before ? front += part.width : back -= part.width;
    for (int64_t e = 0; e < n * width; ++e)
      if (e % unit < front || e % unit >= back) u[e] = 0;
    for (int64_t i = 0; i < n; ++i) {
      double square = 0;
      for (int64_t j = 0; j < width; ++j) square += u[i * width + j] * u[i * width + j];
      const double norm = std::sqrt(square);
      const double factor =
          (weights.half_square + (norm > 0 ? 2 * weights.distance * (1 - 1 / norm) : 0)) /
          static_cast<double>(n);
      for (int64_t j = 0; j < width; ++j) u[i * width + j] *= factor;
    }
    constexpr double step = 1e-5;
    const auto moved = [&](double by) {
      Matrix points = x;
      for (size_t e = 0; e < u.size(); ++e) points[e] += by * u[e];
      return points;
    };
    ahead = zeros(state);
    const size_t layers = plan.d.size();
    parted(plan.d_parts, layers, gradients(moved(step), ahead), sources, &ahead);
    parted(plan.d_parts, layers, gradients(moved(-step), behind), sources, &behind);
    for (size_t l = 0; l < grads.size(); ++l)
      for (size_t part = 0; part < grads[l].size(); ++part)
        for (size_t e = 0; e < grads[l][part].size(); ++e)
          grads[l][part][e] += (ahead[l][part][e] - behind[l][part][e]) / (2 * step);
  }

  double loss(int segment, const Matrix& logits, Matrix& grads) const {
    double sum = 0;
    const double n = static_cast<double>(logits.size());
    grads.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      const double l = logits[i], p = 1 / (1 + std::exp(-l)), soft = std::log1p(std::exp(l));
      const double sign = segment == 1 ? 1 : -1;
      double value = 0, grad = 0;
      switch (plan.loss) {
        case Loss::non_saturating:
        case Loss::minimax:
          if (segment == 2 && plan.loss == Loss::minimax) {
            value = -soft;
            grad = -p;
          } else {
            const double label = segment == 0 ? 1 - plan.smoothing : segment == 1 ? 0 : 1;
            value = soft - label * l;
            grad = p - label;
          }
          break;
        case Loss::hinge:
          if (segment == 2) {
            value = -l;
            grad = -1;
          } else {
            value = std::fmax(0, 1 + sign * l);
            grad = value > 0 ? sign : 0;
          }
          break;
        case Loss::least_squares: {
          const double d = segment == 1 ? l : l - 1;
          value = d * d / 2;
          grad = d;
          break;
        }
        case Loss::wasserstein:
          value = sign * l;
          grad = sign;
      }
      sum += value / n;
      grads[i] = grad / n;
    }
    return sum;
  }

  void adam(Tensors& t, const Matrix& grad, int64_t step, bool averaged) const {
    for (size_t i = 0; i < t.exact.size(); ++i) {
      double& w = t.exact[i];
      double g = grad[i];
      if (plan.rule == Rule::adamw)
        w *= 1 - kLr * plan.weight_decay;
      else
        g += plan.weight_decay * w;
      if (plan.rule == Rule::sgd) {
        t.m[i] = kBeta1 * t.m[i] + g;
        w -= kLr * t.m[i];
      } else {
        const bool mean = plan.rule != Rule::rmsprop;
        t.m[i] = mean ? kBeta1 * t.m[i] + (1 - kBeta1) * g : g;
        t.v[i] = kBeta2 * t.v[i] + (1 - kBeta2) * g * g;
        const double powers[] = {mean ? std::pow(kBeta1, step) : 0,
                                 mean ? std::pow(kBeta2, step) : 0};
        w -= kLr / (1 - powers[0]) * t.m[i] / (std::sqrt(t.v[i]) / std::sqrt(1 - powers[1]) + kEps);
      }
      if (averaged) t.mean[i] += (1 - kDecay) * (w - t.mean[i]);
    }
  }
  static std::vector<std::vector<Matrix>> zeros(const std::vector<LayerState>& state) {
    std::vector<std::vector<Matrix>> grads;
    for (const LayerState& s : state)
      grads.push_back({Matrix(s.weight.exact.size()), Matrix(s.width), Matrix(s.gamma.exact.size()),
                       Matrix(s.beta.exact.size())});
    return grads;
  }
  // Adds to sums[0 to 2] squares of the gradient, of what changed and of the weights before.
  void adam_all(std::vector<LayerState>& state, std::vector<std::vector<Matrix>> grads,
                int64_t step, double* sums, double largest_weight = INFINITY,
                bool averaged = true) const {
    double squares = 0;
    for (size_t l = 0; l < grads.size(); ++l) {
      if (state[l].bias.exact.empty()) grads[l][1].clear();
      for (Matrix& part : grads[l])
        for (double& g : part) {
          sums[0] += g * g;
          g = std::clamp(g, -plan.largest_grad, plan.largest_grad);
          squares += g * g;
        }
    }
    const double share = std::min(1.0, plan.longest_grad / (std::sqrt(squares) + 1e-6));
    for (auto& layer : grads)
      for (Matrix& part : layer)
        for (double& g : part) g *= share;
    for (size_t l = 0; l < state.size(); ++l) {
      Matrix before;
      const auto each = [&](auto use) {
        for (Tensors* t : {&state[l].weight, &state[l].bias, &state[l].gamma, &state[l].beta})
          for (double& w : t->exact) use(w);
      };
      each([&](double& w) { before.push_back(w); });
      size_t part = 0;
      for (Tensors* t : {&state[l].weight, &state[l].bias, &state[l].gamma, &state[l].beta})
        adam(*t, grads[l][part++], step, averaged);
      size_t i = 0;
      each([&](double& w) {
        w = std::clamp(w, -largest_weight, largest_weight);
        const double old = before[i++];
        sums[1] += (w - old) * (w - old);
        sums[2] += old * old;
      });
    }
  }
  Matrix latents(uint32_t stream, uint64_t step, int64_t n) const {
    std::vector<float> z(n * plan.latent + 4);
    kernels().philox_normal(make_philox(seed, stream, step), 0, n * plan.latent, z.data());
    return Matrix(z.begin(), z.begin() + n * plan.latent);
  }
};
