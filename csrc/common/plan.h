// What the whole-step programs of both devices are told of the two networks, as
// fastgan/engines/fused.py writes it down. No torch here.
#pragma once

#include <stdint.h>

#include <vector>

namespace fastgan {

enum class Activation : int64_t { none, leaky_relu, tanh, sigmoid, elu };
enum class Game : int64_t { non_saturating, minimax, hinge, least_squares, wasserstein };

// One trained tensor with its optimiser state. `average` is null where no average is kept; all
// are null where the layer has no such parameter.
struct Parameter {
  float* value = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  float* average = nullptr;
};

struct PlannedLayer {
  int64_t in = 0, out = 0;
  Activation activation = Activation::none;
  float slope = 0;  // LeakyReLU's negative slope, >= 0; ELU's alpha, >= 0
  Parameter weight, bias;

  bool norm = false;
  double norm_eps = 0;
  double norm_momentum = 0;  // negative: cumulative average
  Parameter gamma, beta;
  float *running_mean = nullptr, *running_var = nullptr;  // null: not tracked
  int64_t* batches = nullptr;
  float *average_mean = nullptr, *average_var = nullptr;  // the averaged network's copies
  int64_t* average_batches = nullptr;

  bool drop = false;
  uint32_t drop_threshold = 0;  // see common/dropout.h
  uint32_t drop_stream = 0;     // of the layer; the use is added
};

template <class Layer>
struct PlannedNetwork {
  std::vector<Layer> layers;
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  bool decoupled = false;
  int64_t updates = 0;  // done before this run: Adam's step counter
};

}  // namespace fastgan
