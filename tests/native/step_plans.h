// Plans for step_main.cpp, and their tensors as the engine and as the reference see them.
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
  bool decoupled = false;
  double smoothing = 0;
  bool last_bias = true;
  std::vector<PlannedPenalty> penalties = {};
  double largest_grad = INFINITY, longest_grad = INFINITY, largest_weight = INFINITY;
  int64_t g_steps = 1;
  std::vector<PartPlan> g_parts = {}, d_parts = {};
  bool drawn = true;  // fake samples have conditions of their own
  std::vector<JoinPlan> g_joins = {}, d_joins = {};

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
                     kGeluTanh = Activation::gelu_tanh, kSilu = Activation::silu;

const Pair plans[] = {
    {"small", 8, 20, {{16}, {20, kTanh}}, {{24}, {1, kNone}}, 32, 96},
    {"ragged",
     5,
     23,
     {{17}, {23, kTanh}},
     {{33, kLeaky, false, 0.3}, {1, kNone}},
     7,
     24,
     Loss::minimax},
    {"one layer each", 3, 6, {{6, kSigmoid}}, {{1, kNone}}, 40, 100, Loss::least_squares},
    {"deep, normed",
     6,
     50,
     {{40, kLeaky, true}, {35, kElu, true, 0.2}, {50, kTanh}},
     {{70, kElu}, {44, kTanh, true, 0.5}, {19, kLeaky}, {1, kNone}},
     48,
     130,
     Loss::non_saturating,
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
     Loss::hinge,
     1,
     0.1},
    {"decoupled",
     10,
     31,
     {{64}, {31, kTanh, true}},
     {{12, kSigmoid}, {1, kNone}},
     33,
     90,
     Loss::wasserstein,
     3,
     0.1,
     true,
     0,
     false},  // whose last bias has no gradient but rounding
    {"between",
     10,
     70,
     {{64}, {70, kTanh}},
     {{96, kLeaky, false, 0.3}, {40}, {1, kNone}},
     32,
     96,
     Loss::least_squares,
     3,
     0,
     false,
     0,
     true,
     {{Penalty::distance_from_one, Place::between, 1, 10}}},
    {"real and fake",
     5,
     37,
     {{17}, {37, kTanh}},
     {{33, kLeaky, false, 0.3}, {70}, {1, kNone}},
     7,
     24,
     Loss::non_saturating,
     1,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::real, 2, 5}, {Penalty::half_square, Place::fake, 1, 2}}},
    {"curved",
     6,
     23,
     {{20, kElu}, {23, kTanh}},
     {{40, kTanh}, {70, kElu, false, 0.3}, {33, kSigmoid, false, 0.2}, {20}, {1, kNone}},
     40,
     100,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::fake, 1, 30},
      {Penalty::distance_from_one, Place::between, 3, 3},
      {Penalty::distance_from_one, Place::real, 2, 1}}},
    {"curved to the end",
     4,
     50,
     {{50, kTanh}},
     {{70, kSigmoid}, {30, kLeaky, false, 0.3}, {1, kTanh}},
     33,
     70,
     Loss::least_squares,
     1,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::real, 1, 50},
      {Penalty::distance_from_one, Place::between, 1, 3}}},
    {"bounded",
     6,
     50,
     {{40, kLeaky, true}, {50, kTanh}},
     {{70, kElu}, {44, kTanh, true, 0.5}, {19, kLeaky}, {1, kNone}},
     48,
     130,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {},
     0.02,
     0.1,
     0.1},
    {"several of G",
     6,
     50,
     {{40, kLeaky, true}, {50, kTanh}},
     {{70, kElu}, {44, kTanh, true, 0.5}, {19, kLeaky}, {1, kNone}},
     48,
     130,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {},
     INFINITY,
     0.1,
     INFINITY,
     3},
    {"conditions",
     6,
     37,
     {{40, kLeaky, true}, {37, kTanh}},
     {{70, kElu}, {33, kLeaky, false, 0.3}, {1, kNone}},
     20,
     70,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {},
     INFINITY,
     0.1,
     INFINITY,
     2,
     {{PartOf::embedding, 9, true}, {PartOf::one_hot, 5, false}},
     {{PartOf::one_hot, 5, true}, {PartOf::embedding, 40, false}, {PartOf::embedding, 3, true}}},
    {"conditions, penalised",
     6,
     37,
     {{37, kTanh, true}},
     {{40, kLeaky, false, 0.3}, {70}, {1, kNone}},
     20,
     70,
     Loss::least_squares,
     2,
     0,
     false,
     0,
     true,
     {{Penalty::distance_from_one, Place::between, 1, 10},
      {Penalty::half_square, Place::fake, 2, 5}},
     INFINITY,
     INFINITY,
     INFINITY,
     1,
     {},
     {{PartOf::embedding, 7, true}}},
    {"conditions, curved",
     6,
     23,
     {{40}, {23, kTanh}},
     {{40, kTanh}, {33, kElu, false, 0.2}, {20}, {1, kNone}},
     20,
     70,
     Loss::non_saturating,
     1,
     0,
     false,
     0,
     true,
     {{Penalty::distance_from_one, Place::between, 2, 5},
      {Penalty::half_square, Place::real, 1, 9}},
     INFINITY,
     INFINITY,
     INFINITY,
     1,
     {{PartOf::numbers, 4, true}},
     {{PartOf::numbers, 4, false}},
     false},
    {"conditions, one layer",
     6,
     23,
     {{23, kTanh}},
     {{1, kNone}},
     20,
     70,
     Loss::least_squares,
     1,
     0,
     false,
     0,
     true,
     {},
     INFINITY,
     INFINITY,
     INFINITY,
     1,
     {{PartOf::embedding, 4, true}},
     {{PartOf::embedding, 4, true}}},
    {"falling and rising",
     6,
     50,
     {{40, kGelu, true}, {35, kSilu, false, 0.2}, {50, kGeluTanh}},
     {{70, kGeluTanh}, {44, kSilu, true, 0.5}, {19, kGelu}, {1, kSilu}},
     48,
     130,
     Loss::least_squares,
     2},
    {"falling and rising, penalised",
     6,
     23,
     {{20, kSilu}, {23, kTanh}},
     {{40, kGelu}, {70, kSilu, false, 0.3}, {33, kGeluTanh, false, 0.2}, {20}, {1, kNone}},
     40,
     100,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::fake, 1, 30},
      {Penalty::distance_from_one, Place::between, 3, 3},
      {Penalty::distance_from_one, Place::real, 2, 1}}},
    {"falling and rising to the end",
     4,
     50,
     {{50, kTanh}},
     {{70, kSilu}, {30, kLeaky, false, 0.3}, {1, kGelu}},
     33,
     70,
     Loss::least_squares,
     1,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::real, 1, 50},
      {Penalty::distance_from_one, Place::between, 1, 3}}},
    {"rows normed",
     6,
     50,
     {{40, kLeaky, false, 0, true}, {35, kSilu, false, 0.2, true}, {50, kTanh, false, 0, true}},
     {{70, kElu, false, 0, true}, {44, kTanh, true, 0.5}, {19, kLeaky, false, 0, true}, {1, kNone}},
     48,
     130,
     Loss::non_saturating,
     2},
    {"rows normed, penalised",
     6,
     23,
     {{20, kElu}, {23, kTanh}},
     {{40, kLeaky, false, 0.3, true}, {70, kSilu, false, 0, true}, {33}, {20}, {1, kNone}},
     40,
     100,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::fake, 1, 30},
      {Penalty::distance_from_one, Place::between, 3, 3},
      {Penalty::distance_from_one, Place::real, 2, 1}}},
    {"rows normed to the end",
     4,
     50,
     {{50, kTanh}},
     {{33, kLeaky, false, 0.3, true}, {70, kNone, false, 0, true}, {1, kTanh}},
     33,
     70,
     Loss::least_squares,
     1,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::real, 1, 50},
      {Penalty::distance_from_one, Place::between, 1, 3}}},
    {"the last layer but one normed",
     4,
     50,
     {{50, kTanh}},
     {{70}, {33, kTanh, false, 0.3, true}, {1, kNone}},
     33,
     70,
     Loss::wasserstein,
     1,
     0,
     false,
     0,
     false,
     {{Penalty::distance_from_one, Place::between, 1, 10}}},
    {"added",
     9,
     23,
     {{9, kTanh}, {33, kLeaky, true, 0, false, 4}, {23, kTanh, false, 0, false, 5}},
     {{70, kElu, false, 0.3},
      {33, kLeaky, true},
      {33, kTanh, false, 0.2},
      {1, kNone, false, 0, false, 6}},
     24,
     70,
     Loss::non_saturating,
     2,
     0,
     false,
     0,
     true,
     {},
     INFINITY,
     0.1,
     INFINITY,
     2,
     {},
     {},
     true,
     {{JoinOf::add, 1, {1, 0}}, {JoinOf::concat, 2, {2, 4, 0}}},
     {{JoinOf::add, 3, {3, 2}}, {JoinOf::concat, 3, {5, 0}}}},
    {"concatenated",
     6,
     37,
     {{40, kLeaky, true}, {40, kElu, true, 0, false, 4}, {37, kTanh, true, 0, false, 5}},
     {{33, kLeaky, false, 0, true}, {1, kNone, false, 0, false, 3}},
     20,
     70,
     Loss::least_squares,
     1,
     0,
     false,
     0,
     true,
     {},
     INFINITY,
     INFINITY,
     INFINITY,
     1,
     {{PartOf::one_hot, 5, false}},
     {{PartOf::one_hot, 5, false}},
     true,
     {{JoinOf::concat, 1, {1, 0}}, {JoinOf::concat, 2, {2, 4}}},
     {{JoinOf::concat, 1, {1, 0}}}},
    {"two ways, penalised",
     6,
     23,
     {{20, kElu}, {23, kTanh}},
     {{40, kLeaky, false, 0.3, true},
      {40, kTanh, false, 0, false, 0},
      {40, kSilu, false, 0, true, 6},
      {20, kLeaky, false, 0.2, false, 1},
      {1, kNone, false, 0, false, 8}},
     40,
     100,
     Loss::least_squares,
     2,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::fake, 1, 30},
      {Penalty::distance_from_one, Place::between, 3, 3},
      {Penalty::distance_from_one, Place::real, 2, 1}},
     INFINITY,
     INFINITY,
     INFINITY,
     1,
     {},
     {},
     true,
     {},
     {{JoinOf::add, 2, {1, 2}}, {JoinOf::add, 4, {3, 6, 1}}, {JoinOf::concat, 4, {7, 4, 0}}}},
    {"one curved layer",
     4,
     12,
     {{12, kTanh}},
     {{1, kElu}},
     10,
     40,
     Loss::least_squares,
     1,
     0,
     false,
     0,
     true,
     {{Penalty::half_square, Place::fake, 1, 20},
      {Penalty::distance_from_one, Place::between, 1, 5}}},
};
