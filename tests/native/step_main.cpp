// Runs the training step of csrc/cpu on small plans and compares it with a
// plain one in double precision. It needs no torch, so it can be built with the
// sanitizers in seconds. From the root:
//
//   S="$(ls csrc/cpu/step*.cpp | grep -v step_ops) csrc/cpu/team.cpp
//   csrc/cpu/isa.cpp csrc/cpu/kernels*.cpp" F="-std=c++20 -O1 -g -Icsrc
//   -fno-math-errno -fno-trapping-math -pthread" g++ $F
//   -fsanitize=address,undefined -fno-sanitize-recover=all
//   tests/native/step_main.cpp $S -o /tmp/step_asan g++ $F -fsanitize=thread
//   tests/native/step_main.cpp $S -o /tmp/step_tsan /tmp/step_asan &&
//   /tmp/step_tsan
//
// FASTGAN_ISA=baseline|avx2|avx512 chooses the instruction set. With an
// argument, `time`, it times the reference pair instead: step_main time [batch]
// [threads] [bf16]; `no-fork` leaves the forked child out.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "common/dropout.h"
#include "cpu/clock.h"
#include "cpu/kernels.h"
#include "cpu/step.h"

using namespace fastgan;
using namespace fastgan::cpu;
using namespace fastgan::cpu::step;

namespace {

struct LayerPlan {
  int64_t out;
  Activation activation = Activation::leaky_relu;
  bool norm = false;
  double drop = 0;
};
struct Plan {
  const char* name;
  int64_t latent, image;
  std::vector<LayerPlan> g, d;
  int64_t batch, count;
  Game game = Game::non_saturating;
  int64_t d_steps = 1;
  double weight_decay = 0;
  bool decoupled = false;
  double smoothing = 0;
  bool last_bias = true;
};

double draw(uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}

// The tensors of a network, as the engine sees them (float) and as the
// reference does (double).
struct Tensors {
  std::vector<float> value, exp_avg, exp_avg_sq, average;
  std::vector<double> exact, m, v, mean;

  void fill(int64_t n, double scale, double shift, uint64_t& state) {
    value.resize(n);
    for (float& x : value) x = static_cast<float>(shift + scale * (2 * draw(state) - 1));
    exp_avg.assign(n, 0);
    exp_avg_sq.assign(n, 0);
    average = value;
    exact.assign(value.begin(), value.end());
    m.assign(n, 0);
    v.assign(n, 0);
    mean = exact;
  }
  Parameter parameter() {
    if (value.empty()) return {};
    return {value.data(), exp_avg.data(), exp_avg_sq.data(), average.data()};
  }
};
struct LayerState {
  Tensors weight, bias, gamma, beta;
  std::vector<float> running_mean, running_var;
  std::vector<double> exact_mean, exact_var;
  std::vector<float> average_mean, average_var;
  int64_t batches = 0, average_batches = 0, width = 0;
};

using Matrix = std::vector<double>;  // [batch][width]

constexpr double kSlope = 0.2, kNormEps = 1e-5, kMomentum = 0.1, kDecay = 0.9;
constexpr double kLr = 1e-3, kBeta1 = 0.5, kBeta2 = 0.99, kEps = 1e-8;

// --- The reference ---

struct Trace {
  Matrix in, normed, out;
  std::vector<double> inv_std;
};

double activate(Activation a, double x) {
  switch (a) {
    case Activation::leaky_relu:
      return x > 0 ? x : kSlope * x;
    case Activation::tanh:
      return std::tanh(x);
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::elu:
      return x > 0 ? x : kSlope * std::expm1(x);
    default:
      return x;
  }
}
double slope_at(Activation a, double y) {
  switch (a) {
    case Activation::leaky_relu:
      return y > 0 ? 1 : kSlope;
    case Activation::tanh:
      return 1 - y * y;
    case Activation::sigmoid:
      return y * (1 - y);
    case Activation::elu:
      return y > 0 ? 1 : y + kSlope;
    default:
      return 1;
  }
}

struct Reference {
  const Plan& plan;
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
        g[e] *= slope_at(layers[l].activation, t.out[e]);
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

  double loss(int segment, const Matrix& logits, Matrix& grads) const {
    double sum = 0;
    const double n = static_cast<double>(logits.size());
    grads.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      const double l = logits[i], p = 1 / (1 + std::exp(-l)), soft = std::log1p(std::exp(l));
      const double sign = segment == 1 ? 1 : -1;
      double value = 0, grad = 0;
      switch (plan.game) {
        case Game::non_saturating:
        case Game::minimax:
          if (segment == 2 && plan.game == Game::minimax) {
            value = -soft;
            grad = -p;
          } else {
            const double label = segment == 0 ? 1 - plan.smoothing : segment == 1 ? 0 : 1;
            value = soft - label * l;
            grad = p - label;
          }
          break;
        case Game::hinge:
          if (segment == 2) {
            value = -l;
            grad = -1;
          } else {
            value = std::fmax(0, 1 + sign * l);
            grad = value > 0 ? sign : 0;
          }
          break;
        case Game::least_squares: {
          const double d = segment == 1 ? l : l - 1;
          value = d * d / 2;
          grad = d;
          break;
        }
        case Game::wasserstein:
          value = sign * l;
          grad = sign;
      }
      sum += value / n;
      grads[i] = grad / n;
    }
    return sum;
  }

  void adam(Tensors& t, const Matrix& grad, int64_t step) const {
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
      t.mean[i] += (1 - kDecay) * (w - t.mean[i]);
    }
  }
  static std::vector<std::vector<Matrix>> zeros(const std::vector<LayerState>& state) {
    std::vector<std::vector<Matrix>> grads;
    for (const LayerState& s : state)
      grads.push_back({Matrix(s.weight.exact.size()), Matrix(s.width), Matrix(s.gamma.exact.size()),
                       Matrix(s.beta.exact.size())});
    return grads;
  }
  void adam_all(std::vector<LayerState>& state, const std::vector<std::vector<Matrix>>& grads,
                int64_t step) const {
    for (size_t l = 0; l < state.size(); ++l) {
      adam(state[l].weight, grads[l][0], step);
      adam(state[l].bias, grads[l][1], step);
      adam(state[l].gamma, grads[l][2], step);
      adam(state[l].beta, grads[l][3], step);
    }
  }
  Matrix latents(uint32_t stream, uint64_t step, int64_t n) const {
    std::vector<float> z(n * plan.latent + 4);
    kernels().philox_normal(make_philox(seed, stream, step), 0, n * plan.latent, z.data());
    return Matrix(z.begin(), z.begin() + n * plan.latent);
  }
};

// --- A plan on the engine and on the reference ---

struct Run {
  std::vector<LayerState> g, d;
  std::vector<float> losses;
};

std::vector<LayerState> make_state(int64_t in, const std::vector<LayerPlan>& layers, bool last_bias,
                                   uint64_t& state) {
  std::vector<LayerState> all;
  for (const LayerPlan& l : layers) {
    LayerState s;
    s.width = l.out;
    s.weight.fill(l.out * in, std::sqrt(3.0 / static_cast<double>(in)), 0, state);
    if ((!l.norm || l.out % 2) && (last_bias || l.out > 1)) s.bias.fill(l.out, 0.1, 0, state);
    if (l.norm) {
      s.gamma.fill(l.out, 0.3, 1, state);
      s.beta.fill(l.out, 0.1, 0, state);
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

void describe(Network& network, int64_t in, const std::vector<LayerPlan>& layers,
              std::vector<LayerState>& state, const Plan& plan) {
  uint32_t stream = 64;
  for (size_t i = 0; i < layers.size(); ++i) {
    Layer l;
    l.in = in;
    l.out = layers[i].out;
    l.activation = layers[i].activation;
    l.slope = static_cast<float>(kSlope);
    l.weight = state[i].weight.parameter();
    l.bias = state[i].bias.parameter();
    if (layers[i].norm) {
      l.norm = true;
      l.norm_eps = kNormEps;
      l.norm_momentum = kMomentum;
      l.gamma = state[i].gamma.parameter();
      l.beta = state[i].beta.parameter();
      l.running_mean = state[i].running_mean.data();
      l.running_var = state[i].running_var.data();
      l.batches = &state[i].batches;
      l.average_mean = state[i].average_mean.data();
      l.average_var = state[i].average_var.data();
      l.average_batches = &state[i].average_batches;
    }
    if (layers[i].drop > 0) {
      l.drop = true;
      l.drop_threshold = static_cast<uint32_t>(std::nearbyint((1 - layers[i].drop) * 65536));
      l.drop_stream = stream;
      stream += 8;
    }
    network.layers.push_back(l);
    in = l.out;
  }
  network.beta1 = kBeta1;
  network.beta2 = kBeta2;
  network.eps = kEps;
  network.weight_decay = plan.weight_decay;
  network.decoupled = plan.decoupled;
}

// Memory that starts as zeros, aligned for vectors.
struct Memory {
  explicit Memory(size_t bytes)
      : data(std::aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) >> 21 << 21)) {
    std::memset(data, 0, bytes);
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  void* data;
};

struct Images {
  std::vector<uint8_t> bytes;
  std::vector<int64_t> order;
};
Images make_images(const Plan& plan, int64_t epochs) {
  Images images;
  uint64_t state = 7;
  images.bytes.resize(plan.count * plan.image);
  for (uint8_t& b : images.bytes) b = static_cast<uint8_t>(256 * draw(state));
  for (int64_t e = 0; e < epochs; ++e)
    for (int64_t i = 0; i < plan.count; ++i) images.order.push_back((i * 7 + e) % plan.count);
  return images;
}

Run engine(const Plan& plan, const Images& images, int64_t steps, int threads, bool one_by_one,
           Products products = Products::fp32) {
  uint64_t state = 1;
  Run r;
  r.g = make_state(plan.latent, plan.g, true, state);
  r.d = make_state(plan.image, plan.d, plan.last_bias, state);
  r.losses.resize(2 * steps);
  const double rates[2] = {kLr, kLr};
  std::vector<float> fed;
  const int64_t per_epoch = (plan.count + plan.batch - 1) / plan.batch;
  for (int64_t done = 0; done < steps;) {
    const int64_t n = one_by_one ? 1 : steps;
    Job job;
    describe(job.g, plan.latent, plan.g, r.g, plan);
    describe(job.d, plan.image, plan.d, r.d, plan);
    job.g.updates = done;
    job.d.updates = done * plan.d_steps;
    job.batch = plan.batch;
    job.d_steps = plan.d_steps;
    job.game = plan.game;
    job.real_label = 1 - plan.smoothing;
    job.seed = 0x123456789abcdefu;
    job.first_step = done;
    job.steps = n;
    job.threads = threads;
    job.products = products;
    job.rates = rates;
    job.average_decay = kDecay;
    job.count = plan.count;
    if (one_by_one) {  // the caller feeds the batches
      fed.clear();
      for (int64_t u = done * plan.d_steps; u < (done + 1) * plan.d_steps; ++u)
        for (int64_t b = 0; b < plan.batch && u % per_epoch * plan.batch + b < plan.count; ++b) {
          const int64_t row =
              images.order[u / per_epoch * plan.count + u % per_epoch * plan.batch + b];
          for (int64_t j = 0; j < plan.image; ++j)
            fed.push_back(static_cast<float>(images.bytes[row * plan.image + j]) *
                              static_cast<float>(2.0 / 255.0) -
                          1.f);
        }
      job.floats = fed.data();
    } else {
      job.bytes = images.bytes.data();
      job.order = images.order.data();
    }
    job.losses = r.losses.data() + 2 * done;
    Memory memory(plan_memory(job, nullptr));
    plan_memory(job, memory.data);
    step::run(job);
    done += n;
  }
  return r;
}

Run reference(const Plan& plan, const Images& images, int64_t steps) {
  uint64_t state = 1;
  Run r;
  r.g = make_state(plan.latent, plan.g, true, state);
  r.d = make_state(plan.image, plan.d, plan.last_bias, state);
  Reference ref{plan, 0x123456789abcdefu};
  const int64_t per_epoch = (plan.count + plan.batch - 1) / plan.batch;
  for (int64_t t = 0; t < steps; ++t) {
    int64_t n = 0;
    double d_loss = 0;
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
      d_loss = ref.loss(0, on_real, grad);
      ref.backward(plan.d, r.d, real, kr, grad, n, &grads);
      d_loss += ref.loss(1, on_fake, grad);
      ref.backward(plan.d, r.d, fake, kf, grad, n, &grads);
      ref.adam_all(r.d, grads, u + 1);
    }
    auto grads = Reference::zeros(r.g);
    const Matrix image = ref.forward(plan.g, r.g, ref.latents(1, t, n), n, 4, t, made, km);
    const Matrix logits = ref.forward(plan.d, r.d, image, n, 2, t, fake, kf);
    const double g_loss = ref.loss(2, logits, grad);
    const Matrix down = ref.backward(plan.d, r.d, fake, kf, grad, n, nullptr);
    ref.backward(plan.g, r.g, made, km, down, n, &grads);
    ref.adam_all(r.g, grads, t + 1);
    r.losses.push_back(static_cast<float>(d_loss));
    r.losses.push_back(static_cast<float>(g_loss));
  }
  return r;
}

// Norm of the difference over the norm of what is compared with.
double distance(const std::vector<float>& got, const std::vector<double>& exact) {
  double difference = 0, size = 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (got[i] - exact[i]) * (got[i] - exact[i]);
    size += exact[i] * exact[i];
  }
  return std::sqrt(difference / size);
}

// bfloat16 has 8 bits where float32 has 24. Adam's first step is lr times a
// sign, which rounding may flip for gradients near zero; so weights are
// compared by distance, after one step.
constexpr double kLoose = 300;

int failures = 0;
void expect(bool ok, const Plan& plan, const std::string& what, double value) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s: %s %.3g\n", plan.name, what.c_str(), value);
}

// Tolerances are for float32 products; `loose` widens them.
void compare(const Plan& plan, const Run& got, const Run& exact, double loose = 1) {
  double worst = 0;
  for (size_t i = 0; i < exact.losses.size(); ++i) {
    const double error =
        std::fabs(got.losses[i] - exact.losses[i]) / (0.05 + std::fabs(exact.losses[i]));
    worst = error > worst ? error : worst;
    expect(error < 1e-4 * loose, plan, "loss " + std::to_string(i), error);
  }
  const auto both = {std::pair{&got.g, &exact.g}, std::pair{&got.d, &exact.d}};
  for (const auto& [a, b] : both)
    for (size_t l = 0; l < a->size(); ++l) {
      const LayerState &x = (*a)[l], &y = (*b)[l];
      const std::string at = (a == &got.g ? "G" : "D") + std::to_string(l);
      const auto check = [&](const char* name, const std::vector<float>& p,
                             const std::vector<double>& q, double limit) {
        const double error = distance(p, q);
        if (!q.empty()) expect(error < limit * loose, plan, at + "." + name, error);
      };
      const auto tensors = {std::pair{&x.weight, &y.weight}, std::pair{&x.bias, &y.bias},
                            std::pair{&x.gamma, &y.gamma}, std::pair{&x.beta, &y.beta}};
      int which = 0;
      for (const auto& [p, q] : tensors) {
        // A bias before BatchNorm has no gradient but rounding, which Adam
        // makes as large as any.
        const bool noise = which++ == 1 && !x.gamma.value.empty();
        if (noise) continue;
        check("value", p->value, q->exact, 2e-4);
        check("exp_avg", p->exp_avg, q->m, 1e-3);
        check("exp_avg_sq", p->exp_avg_sq, q->v, 1e-3);
        if (a == &got.g) check("average", p->average, q->mean, 2e-4);
      }
      check("running_var", x.running_var, y.exact_var, 1e-4);
      if (a == &got.g) check("average_var", x.average_var, y.exact_var, 1e-4);
    }
  std::printf("%-28s worst loss error %.1e\n", plan.name, worst);
}

bool same(const Run& a, const Run& b) {
  if (std::memcmp(a.losses.data(), b.losses.data(), a.losses.size() * 4) != 0) return false;
  for (const auto& [p, q] : {std::pair{&a.g, &b.g}, std::pair{&a.d, &b.d}})
    for (size_t l = 0; l < p->size(); ++l)
      if ((*p)[l].weight.value != (*q)[l].weight.value ||
          (*p)[l].bias.value != (*q)[l].bias.value ||
          (*p)[l].weight.exp_avg_sq != (*q)[l].weight.exp_avg_sq)
        return false;
  return true;
}

constexpr Activation kNone = Activation::none, kLeaky = Activation::leaky_relu,
                     kTanh = Activation::tanh, kSigmoid = Activation::sigmoid,
                     kElu = Activation::elu;

const Plan plans[] = {
    {"small", 8, 20, {{16}, {20, kTanh}}, {{24}, {1, kNone}}, 32, 96},
    {"ragged",
     5,
     23,
     {{17}, {23, kTanh}},
     {{33, kLeaky, false, 0.3}, {1, kNone}},
     7,
     24,
     Game::minimax},
    {"one layer each", 3, 6, {{6, kSigmoid}}, {{1, kNone}}, 40, 100, Game::least_squares},
    {"deep, normed",
     6,
     50,
     {{40, kLeaky, true}, {35, kElu, true, 0.2}, {50, kTanh}},
     {{70, kElu}, {44, kTanh, true, 0.5}, {19, kLeaky}, {1, kNone}},
     48,
     130,
     Game::non_saturating,
     2,
     0,
     false,
     0.1},
    {"wide",
     6,
     30,
     {{512}, {512, kLeaky, true}, {30, kTanh}},
     {{512, kLeaky, false, 0.3}, {20}, {1, kNone}},
     90,
     90},
    {"decay",
     10,
     130,
     {{64}, {130, kTanh}},
     {{128, kLeaky, false, 0.3}, {64}, {1, kNone}},
     64,
     200,
     Game::hinge,
     1,
     0.1},
    {"decoupled",
     10,
     31,
     {{64}, {31, kTanh, true}},
     {{12, kSigmoid}, {1, kNone}},
     33,
     90,
     Game::wasserstein,
     3,
     0.1,
     true,
     0,
     false},  // whose last bias has no gradient but rounding
};

double time_reference_pair(int64_t batch, int threads, Products products) {
  const Plan plan{"reference pair",
                  100,
                  784,
                  {{256}, {784, kTanh}},
                  {{256, kLeaky, false, 0.3}, {1, kNone}},
                  batch,
                  60000};
  uint64_t state = 1;
  std::vector<LayerState> g = make_state(plan.latent, plan.g, true, state),
                          d = make_state(plan.image, plan.d, plan.last_bias, state);
  const Images images = make_images(plan, 2);
  const double rates[2] = {2e-4, 2e-4};
  const int64_t steps = std::max<int64_t>(4, 640 / batch);
  std::vector<float> losses(2 * steps);
  Job job;
  describe(job.g, plan.latent, plan.g, g, plan);
  describe(job.d, plan.image, plan.d, d, plan);
  for (Network* network : {&job.g, &job.d})
    for (Layer& l : network->layers) l.weight.average = l.bias.average = nullptr;
  job.batch = batch;
  job.steps = steps;
  job.threads = threads;
  job.rates = rates;
  job.products = products;
  job.count = plan.count;
  job.bytes = images.bytes.data();
  job.order = images.order.data();
  job.losses = losses.data();
  Memory memory(plan_memory(job, nullptr));
  plan_memory(job, memory.data);
  double best = 1e9;
  const std::vector<Phase> names = phases(job);
  const size_t numbers = 2 * names.size();
  std::vector<double> profile(numbers), least(numbers, 1e9);
  for (int i = 0; i < 300; ++i) {
    std::fill(profile.begin(), profile.end(), 0.0);
    job.profile = i % 3 == 2 ? profile.data() : nullptr;
    const double start = seconds();
    step::run(job);
    const double took = (seconds() - start) / static_cast<double>(steps);
    if (!job.profile) best = took < best ? took : best;
    for (size_t p = 0; job.profile && p < numbers; ++p) least[p] = std::fmin(least[p], profile[p]);
  }
  std::printf("%s, batch %ld, %d threads: %.3f ms a step\n", products_name(products),
              static_cast<long>(batch), threads, best * 1e3);
  const double per_step = 1e6 / static_cast<double>(steps);
  for (size_t p = 0; p < names.size(); ++p)
    std::printf("%7.1f us, waiting %5.1f, %6.0f GFLOP/s a core: %s\n", least[2 * p] * per_step,
                least[2 * p + 1] * per_step,
                names[p].work / threads / (least[2 * p] * per_step) * 1e-3, names[p].name.c_str());
  return best;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "time") {
    time_reference_pair(count > 2 ? std::atoi(arguments[2]) : 64,
                        count > 3 ? std::atoi(arguments[3]) : 2,
                        count > 4 ? best_bf16().value_or(Products::fp32) : best_fp32());
    return 0;
  }
  std::printf("instruction set %s\n", isa_name(isa()));
  constexpr int64_t steps = 6;
  for (const Plan& plan : plans) {
    const Images images = make_images(plan, 20);
    const Run exact = reference(plan, images, steps);
    for (Products products : {Products::fp32, Products::fp32_amx}) {
      if (!has_products(products)) continue;
      const Run one = engine(plan, images, steps, 1, false, products);
      compare(plan, one, exact);
      for (int threads : {2, 3, 5})
        expect(same(one, engine(plan, images, steps, threads, false, products)), plan,
               std::string(products_name(products)) + ": bits differ with threads:", threads);
      compare(plan, engine(plan, images, steps, 2, true, products), exact);
    }
    for (Products products : {Products::bf16_avx512, Products::bf16_amx}) {
      if (!has_products(products)) continue;
      const Run narrow = engine(plan, images, 1, 1, false, products);
      Run first = reference(plan, images, 1);
      compare(plan, narrow, first, kLoose);
      const Run all = engine(plan, images, steps, 1, false, products);
      for (int threads : {2, 5})
        expect(same(all, engine(plan, images, steps, threads, false, products)), plan,
               std::string(products_name(products)) + ": bits differ with threads:", threads);
    }
  }
  const Images images = make_images(plans[1], 20);
  const Run alone = engine(plans[1], images, steps, 2, false);
  std::vector<std::thread> users;
  for (int i = 0; i < 3; ++i)
    users.emplace_back([&] {
      expect(same(alone, engine(plans[1], images, steps, 3, false)), plans[1],
             "bits differ from another thread", 0);
    });
  for (std::thread& user : users) user.join();
#if !defined(__SANITIZE_THREAD__)  // which does not follow threads started after a fork
  if (count > 1 && std::string(arguments[1]) == "no-fork") {  // for emulators, which do not either
    std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
    return failures != 0;
  }
  const pid_t child = fork();
  if (child == 0) _exit(same(alone, engine(plans[1], images, steps, 2, false)) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, plans[1], "forked child, status", status);
#endif
  std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
  return failures != 0;
}
