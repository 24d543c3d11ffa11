// What a plan of step_main.cpp is, and its tensors as the engine and as the reference see them.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/step/job.h"

using namespace fastgan;
using namespace fastgan::cpu;
using namespace fastgan::cpu::step;

struct LayerPlan {
  int64_t out;
  Activation activation = Activation::leaky_relu;
  bool norm = false;
  double drop = 0;
  bool row_norm = false;
  int64_t source = -1;  // the node that it takes; negative: the one before it
};
struct JoinPlan {
  JoinOf of;
  int64_t before;
  std::vector<int64_t> nodes;
};
struct PartPlan {
  PartOf of;
  int64_t width;
  bool before;  // its columns stand before the network's own
};
struct Pair {
  const char* name;
  int64_t latent, image;
  std::vector<LayerPlan> g, d;
  int64_t batch, count;
  Loss loss = Loss::non_saturating;
  int64_t d_steps = 1;
  double weight_decay = 0;
  Rule rule = Rule::adam;
  double smoothing = 0;
  bool last_bias = true;
  std::vector<PlannedPenalty> penalties = {};
  double largest_grad = INFINITY, longest_grad = INFINITY, largest_weight = INFINITY;
  int64_t g_steps = 1;
  bool shared_fakes = false;
  std::vector<PartPlan> g_parts = {}, d_parts = {};
  bool drawn = true;  // fake samples have conditions of their own
  std::vector<JoinPlan> g_joins = {}, d_joins = {};
  int64_t pack = 1;  // samples side by side in a row of D's input

  const std::vector<JoinPlan>& joins(const std::vector<LayerPlan>& layers) const {
    return &layers == &g ? g_joins : d_joins;
  }
};

// What the layers and joins of a network take, and how wide nodes are. graph.h numbers them.
struct Shape {
  const std::vector<LayerPlan>& layers;
  const std::vector<JoinPlan>& joins;
  int64_t in;

  size_t source(size_t layer) const {
    const int64_t node = layers[layer].source;
    return node < 0 ? layer : static_cast<size_t>(node);
  }
  int64_t width(size_t node) const {
    if (node == 0) return in;
    if (node <= layers.size()) return layers[node - 1].out;
    int64_t sum = 0;
    const JoinPlan& join = joins[node - layers.size() - 1];
    for (const int64_t of : join.nodes) sum = join.of == JoinOf::add ? width(of) : sum + width(of);
    return sum;
  }
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

constexpr Activation kNone = Activation::none, kLeaky = Activation::leaky_relu,
                     kTanh = Activation::tanh, kSigmoid = Activation::sigmoid,
                     kElu = Activation::elu, kGelu = Activation::gelu,
                     kGeluTanh = Activation::gelu_tanh, kSilu = Activation::silu,
                     kSelu = Activation::selu, kSoftplus = Activation::softplus;
