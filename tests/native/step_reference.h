// The training step on plain double-precision arithmetic, for step_main.cpp to compare with.
#pragma once

#include <algorithm>

#include "common/dropout.h"
#include "cpu/kernels.h"
#include "step_activations.h"
#include "step_plans.h"

// --- The reference ---

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
    for (size_t l = 0; l < layers.size(); ++l) {
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
      x = y;
    }
    return x;
  }

  // grads: per layer weight, bias, gamma, beta; added to. Returns the gradient
  // of the input.
  Matrix backward(const std::vector<LayerPlan>& layers, const std::vector<LayerState>& state,
                  const std::vector<Trace>& traces, const std::vector<std::vector<uint8_t>>& keeps,
                  Matrix g, int64_t n, std::vector<std::vector<Matrix>>* grads) {
    for (size_t l = layers.size(); l-- > 0;) {
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
      g = down;
    }
    return g;
  }

  // Adds the gradient of the penalties at n points, which D takes as its pass `use`. That of
  // <u, grad_x D(x)> is the derivative of D's weight gradients at x + r u by r, here a quotient of
  // differences.
  void penalise(Place at, int use, std::vector<LayerState>& state, const Matrix& x, int64_t n,
                int64_t update, std::vector<std::vector<Matrix>>& grads) {
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
    const int64_t width = static_cast<int64_t>(u.size()) / n;
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
    gradients(moved(step), ahead);
    gradients(moved(-step), behind);
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
      if (plan.decoupled)
        w *= 1 - kLr * plan.weight_decay;
      else
        g += plan.weight_decay * w;
      t.m[i] = kBeta1 * t.m[i] + (1 - kBeta1) * g;
      t.v[i] = kBeta2 * t.v[i] + (1 - kBeta2) * g * g;
      w -= kLr / (1 - std::pow(kBeta1, step)) * t.m[i] /
           (std::sqrt(t.v[i]) / std::sqrt(1 - std::pow(kBeta2, step)) + kEps);
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

// --- Runs

struct Run {
  std::vector<LayerState> g, d;
  std::vector<float> statistics;  // [steps][kStatistics]
  std::vector<double> sums;       // [kSums], of the last step
};

std::vector<LayerState> make_state(int64_t in, const std::vector<LayerPlan>& layers, bool last_bias,
                                   uint64_t& state) {
  std::vector<LayerState> all;
  for (const LayerPlan& l : layers) {
    LayerState s;
    s.width = l.out;
    s.weight.fill(l.out * in, std::sqrt(3.0 / static_cast<double>(in)), 0, state);
    if ((!l.norm || l.out % 2) && (last_bias || l.out > 1)) s.bias.fill(l.out, 0.1, 0, state);
    if (l.norm || l.row_norm) {
      s.gamma.fill(l.out, 0.3, 1, state);
      s.beta.fill(l.out, 0.1, 0, state);
    }
    if (l.norm) {
      s.running_mean.assign(l.out, 0);
      s.running_var.assign(l.out, 1);
      s.exact_mean.assign(l.out, 0);
      s.exact_var.assign(l.out, 1);
      s.average_mean.assign(l.out, 0);
      s.average_var.assign(l.out, 1);
    }
    all.push_back(s);
    in = l.out;
  }
  return all;
}

struct Images {
  std::vector<uint8_t> bytes;
  std::vector<int64_t> order;
};
Images make_images(const Pair& plan, int64_t epochs) {
  Images images;
  uint64_t state = 7;
  images.bytes.resize(plan.count * plan.image);
  for (uint8_t& b : images.bytes) b = static_cast<uint8_t>(256 * draw(state));
  for (int64_t e = 0; e < epochs; ++e)
    for (int64_t i = 0; i < plan.count; ++i) images.order.push_back((i * 7 + e) % plan.count);
  return images;
}

double mean(const Matrix& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

Run reference(const Pair& plan, const Images& images, int64_t steps) {
  uint64_t state = 1;
  Run r;
  r.g = make_state(plan.latent, plan.g, true, state);
  r.d = make_state(plan.image, plan.d, plan.last_bias, state);
  Reference ref{plan, 0x123456789abcdefu};
  const int64_t per_epoch = (plan.count + plan.batch - 1) / plan.batch;
  for (int64_t t = 0; t < steps; ++t) {
    int64_t n = 0;
    double d_loss = 0, d_real = 0, d_fake = 0;
    std::vector<Trace> real, fake, made;
    std::vector<std::vector<uint8_t>> kr, kf, km;
    Matrix grad;
    for (int64_t k = 0; k < plan.d_steps; ++k) {
      const int64_t u = t * plan.d_steps + k;
      Matrix x;
      n = 0;
      for (int64_t b = 0; b < plan.batch && u % per_epoch * plan.batch + b < plan.count; ++b, ++n) {
        const int64_t row =
            images.order[u / per_epoch * plan.count + u % per_epoch * plan.batch + b];
        for (int64_t j = 0; j < plan.image; ++j)
          x.push_back(images.bytes[row * plan.image + j] * (2.0 / 255.0) - 1);
      }
      const Matrix image = ref.forward(plan.g, r.g, ref.latents(0, u, n), n, 3, u, made, km);
      auto grads = Reference::zeros(r.d);
      const Matrix on_real = ref.forward(plan.d, r.d, x, n, 0, u, real, kr);
      const Matrix on_fake = ref.forward(plan.d, r.d, image, n, 1, u, fake, kf);
      d_real = mean(on_real);
      d_fake = mean(on_fake);
      d_loss = ref.loss(0, on_real, grad);
      ref.backward(plan.d, r.d, real, kr, grad, n, &grads);
      d_loss += ref.loss(1, on_fake, grad);
      ref.backward(plan.d, r.d, fake, kf, grad, n, &grads);
      if (!plan.penalties.empty()) {
        std::vector<float> normals(n + 4);
        kernels().philox_normal(make_philox(ref.seed, 6, u), 0, n, normals.data());
        Matrix points(x.size());
        for (size_t e = 0; e < x.size(); ++e) {
          const double share = std::erfc(-normals[e / plan.image] * std::sqrt(0.5)) / 2;
          points[e] = share * x[e] + (1 - share) * image[e];
        }
        ref.penalise(Place::between, 5, r.d, points, n, u, grads);
        ref.penalise(Place::real, 0, r.d, x, n, u, grads);
        ref.penalise(Place::fake, 1, r.d, image, n, u, grads);
      }
      r.sums.assign(kSums, 0);
      int at = 0;
      for (const Matrix* scores : {&on_real, &on_fake}) {
        const double middle = plan.loss == Loss::least_squares ? 0.5 : 0.0, sign = at ? -1 : 1;
        for (const double x : *scores) {
          r.sums[at] += (sign * (x - middle) > 0 ? 1.0 : 0.0) / static_cast<double>(n);
          r.sums[at + 1] += x / static_cast<double>(n);
          r.sums[at + 2] += x * x / static_cast<double>(n);
        }
        if (plan.loss == Loss::wasserstein) r.sums[at] = NAN;
        at = 3;
      }
      ref.adam_all(r.d, grads, u + 1, &r.sums[kScoreSums], plan.largest_weight);
    }
    double g_loss = 0;
    for (int64_t u = t * plan.g_steps; u < (t + 1) * plan.g_steps; ++u) {
      auto grads = Reference::zeros(r.g);
      const Matrix image = ref.forward(plan.g, r.g, ref.latents(1, u, n), n, 4, u, made, km);
      const Matrix logits = ref.forward(plan.d, r.d, image, n, 2, u, fake, kf);
      g_loss = ref.loss(2, logits, grad);
      const Matrix down = ref.backward(plan.d, r.d, fake, kf, grad, n, nullptr);
      ref.backward(plan.g, r.g, made, km, down, n, &grads);
      double* const sums = &r.sums[kScoreSums + kNetworkSums];
      std::fill(sums, sums + kNetworkSums, 0.0);
      ref.adam_all(r.g, grads, u + 1, sums, INFINITY, u + 1 == (t + 1) * plan.g_steps);
    }
    for (const double value : {d_loss, g_loss, d_real, d_fake})
      r.statistics.push_back(static_cast<float>(value));
  }
  return r;
}
