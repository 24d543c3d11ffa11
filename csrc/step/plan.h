// What the whole-step programs of both devices are told of the two networks, as
// fastgan/engines/fused writes it down and decode.cpp reads it. No torch here.
//
// A network is layers
//     Linear -> [BatchNorm or LayerNorm] -> activation -> [dropout]
// between fields: the latents, what lies between two layers, the images, the logits. A field holds
// up to three batches, its segments; passes.h numbers them. Each layer takes what the one before it
// makes, or another of the network's nodes; graph.h numbers these.
#pragma once

#include <math.h>
#include <stdint.h>

#include <vector>

#include "step/enums.h"

namespace fastgan {

// One trained tensor with its optimiser state. `average` is null where no average is kept; all
// are null where the layer has no such parameter.
struct Parameter {
  float* value = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  float* average = nullptr;
  float* grad = nullptr;  // set by a device's memory: where gradients wait for their norm
};

// Whether an activation's output does not tell its derivative, which is then kept; and whether it
// does not tell the second one either.
constexpr bool keeps_bend(Activation a) {
  return a == Activation::gelu || a == Activation::gelu_tanh || a == Activation::silu ||
         a == Activation::softplus;
}
constexpr bool keeps_slope(Activation a) {
  return a == Activation::elu || a == Activation::selu || keeps_bend(a);
}

struct PlannedLayer {
  int64_t in = 0, out = 0;
  int64_t source = -1;  // the node that it takes; negative: what the layer before it makes
  Activation activation = Activation::none;
  float slope = 0;  // LeakyReLU's negative slope, >= 0; ELU's alpha, >= 0
  Parameter weight, bias;

  bool norm = false;      // BatchNorm
  bool row_norm = false;  // LayerNorm, which has of the following eps, gamma and perhaps beta
  double norm_eps = 0;
  double norm_momentum = 0;  // negative: cumulative average
  Parameter gamma, beta;
  float *running_mean = nullptr, *running_var = nullptr;  // null: not tracked
  int64_t* batches = nullptr;
  float *average_mean = nullptr, *average_var = nullptr;  // the averaged network's copies
  int64_t* average_batches = nullptr;

  bool drop = false;
  uint32_t drop_threshold = 0;  // see common/dropout.h
  uint32_t drop_index = 0;      // of the network's dropouts: decides the stream, see passes.h
};

// Columns of a network's input that come of what belongs to a sample.
struct PlannedPart {
  PartOf of = PartOf::numbers;
  int64_t at = 0, width = 0;
  int64_t classes = 0;  // of labels
  bool embeds = false;
  Parameter table;         // of an embedding, [classes][width]
  float* grads = nullptr;  // set by a device's memory: of an embedding's columns, rows of `stride`
  float* sums = nullptr;   // and of its table
  int64_t stride = 0;
};

// Columns of the latents that are uniform and not normal.
struct PlannedUniform {
  int64_t at = 0, width = 0;
  float low = 0, spread = 1;
};

// Columns of G's output, side by side with those of other heads.
struct PlannedHead {
  HeadOf of = HeadOf::columns;
  Activation activation = Activation::none;  // of columns; one whose output tells its derivative
  int64_t at = 0, width = 0;
  float by = 0;        // LeakyReLU's negative slope; of a softmax the temperature, > 0
  bool hard = false;   // the largest share becomes 1 and the others 0, with the gradient of shares
  bool asked = false;  // a label is one of its classes; labels count on through such heads
};

// A weighted term of G's loss beside the adversarial one.
struct PlannedTerm {
  TermOf of = TermOf::moments;
  double weight = 0;
};

// A node that is made of others, each of its own width.
struct PlannedJoin {
  JoinOf of = JoinOf::add;
  int64_t before = 0;  // layers that stand before it
  int64_t width = 0;
  std::vector<int64_t> nodes;
};

struct Optimizer {
  // Of RMSprop beta2 is its alpha, of SGD beta1 its momentum.
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  Rule rule = Rule::adam;
  // Bounds, infinite for none: of each number of a gradient, then of the gradient's norm, and of
  // each weight after an update.
  double largest_grad = INFINITY, longest_grad = INFINITY, largest_weight = INFINITY;
  bool bounded() const {
    return largest_grad < INFINITY || longest_grad < INFINITY || largest_weight < INFINITY;
  }
};

template <class Layer>
struct PlannedNetwork {
  std::vector<Layer> layers;
  Optimizer optimizer;
  int64_t updates = 0;               // done before this run: Adam's step counter
  double average_warmup = INFINITY;  // of its average, see average_share(); infinite for none
  std::vector<PlannedJoin> joins;
  // Of the input: its width, how many rows of the batch lie side by side in it, and of one of these
  // where its own columns, of latents or samples, begin, and what the others are.
  int64_t in = 0;
  int64_t pack = 1;
  int64_t own_at = 0;
  std::vector<PlannedPart> parts;
  std::vector<PlannedUniform> uniforms;
  // Of the output, if it is not the last layer's activation alone.
  std::vector<PlannedHead> heads;
  uint32_t heads_index = 0;  // of the network's modules of heads: decides the stream, see passes.h
  std::vector<PlannedTerm> terms;  // of its loss, each of its kind
  const PlannedTerm* term(TermOf of) const {
    for (const PlannedTerm& t : terms)
      if (t.of == of) return &t;
    return nullptr;
  }
  int64_t unit() const { return in / pack; }  // of one row of the batch
  int64_t own() const {
    int64_t width = unit();
    for (const PlannedPart& part : parts) width -= part.width;
    return width;
  }
  // Classes of all heads that are chosen by noise.
  int64_t choices() const {
    int64_t classes = 0;
    for (const PlannedHead& head : heads) classes += head.of == HeadOf::gumbel ? head.width : 0;
    return classes;
  }
  // Classes of all heads that labels name, and of the widest of them.
  int64_t asked() const {
    int64_t classes = 0;
    for (const PlannedHead& head : heads) classes += head.asked ? head.width : 0;
    return classes;
  }
  int64_t most_asked() const {
    int64_t widest = 0;
    for (const PlannedHead& head : heads)
      if (head.asked && head.width > widest) widest = head.width;
    return widest;
  }
  bool hardens() const {
    for (const PlannedHead& head : heads)
      if (head.hard) return true;
    return false;
  }
  bool embeds() const {
    for (const PlannedPart& part : parts)
      if (part.embeds) return true;
    return false;
  }
};

// The numbers of a step.
struct PlannedStep {
  int64_t batch = 0;                 // the largest
  int64_t d_steps = 1, g_steps = 1;  // updates of D and of G
  bool shared_fakes = false;         // the first of G's has the samples of D's last one
  int64_t count = 0;                 // images in an epoch
  Loss loss = Loss::non_saturating;
  double real_label = 1;
  double average_decay = 0;
  uint64_t seed = 0;
};

// Where a step takes its images from. [stored][width], bytes (mapped to [-1, 1]) or floats. With
// `order`, the plan's `count` of them for each epoch, one epoch after another (fewer than are
// stored where an epoch's last ones are left out); without, `floats` has the batches themselves.
struct ImageSource {
  int64_t stored = 0;
  const uint8_t* bytes = nullptr;
  const float* floats = nullptr;
  const int64_t* order = nullptr;
};

constexpr int64_t kMostPenalties = 64;

// What belongs to the stored samples: a label each, or some numbers. `drawn`: which of them each
// fake sample has, [steps][d_steps + g_steps][batch]; without, those of the real batch.
struct ConditionSource {
  const int64_t* labels = nullptr;
  const float* numbers = nullptr;
  int64_t width = 0;  // of numbers
  const int64_t* drawn = nullptr;
};

// A penalty on the slope of D's scores by their input, added to D's loss; losses.py says more.
struct PlannedPenalty {
  Penalty form = Penalty::half_square;
  Place at = Place::real;
  int64_t every = 1;  // updates of D from one to the next, which is that much heavier
  double weight = 0;
};

struct Plan : PlannedStep {
  PlannedNetwork<PlannedLayer> g, d;
  std::vector<PlannedPenalty> penalties;
  Precision precision = Precision::fp32;
};

// A device's layers have more than the plan says of them.
template <class Layer>
void adopt(const PlannedNetwork<PlannedLayer>& from, PlannedNetwork<Layer>& to) {
  to.optimizer = from.optimizer;
  to.updates = from.updates;
  to.joins = from.joins;
  to.in = from.in;
  to.pack = from.pack;
  to.own_at = from.own_at;
  to.parts = from.parts;
  to.average_warmup = from.average_warmup;
  to.uniforms = from.uniforms;
  to.heads = from.heads;
  to.heads_index = from.heads_index;
  to.terms = from.terms;
  to.layers.resize(from.layers.size());
  for (size_t i = 0; i < from.layers.size(); ++i)
    static_cast<PlannedLayer&>(to.layers[i]) = from.layers[i];
}
template <class Job>
void adopt(const Plan& plan, Job& job) {
  static_cast<PlannedStep&>(job) = plan;
  adopt(plan.g, job.g);
  adopt(plan.d, job.d);
}

}  // namespace fastgan
