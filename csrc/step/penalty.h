// Penalties on D's slope g = grad_x D(x) of each sample. No torch here.
#pragma once

#include <math.h>

#include "common/macros.h"
#include "step/plan.h"

namespace fastgan {

// Whether an activation has a second derivative.
inline bool curved(Activation a) { return a != Activation::none && a != Activation::leaky_relu; }

// What an update has at one place: the weights of both forms.
struct SlopeWeights {
  bool due = false;
  double half_square = 0, distance = 0;
};
// A penalty's share in them.
FASTGAN_HD void add(SlopeWeights& weights, const PlannedPenalty& p, Place at, int64_t update) {
  if (p.at != at || update % p.every != 0) return;
  weights.due = true;
  (p.form == Penalty::half_square ? weights.half_square : weights.distance) +=
      p.weight * static_cast<double>(p.every);
}
inline SlopeWeights slope_weights(const std::vector<PlannedPenalty>& penalties, Place at,
                                  int64_t update) {
  SlopeWeights weights;
  for (const PlannedPenalty& p : penalties) add(weights, p, at, update);
  return weights;
}

// The derivative of a mean over a batch by the slope of one sample is this factor times the slope.
// That of the norm is 0 at 0, as torch's.
FASTGAN_HD double slope_factor(const SlopeWeights& weights, double norm, int64_t batch) {
  const double of_distance = norm == 0 ? 0 : 2 * weights.distance * (norm - 1) / norm;
  return (weights.half_square + of_distance) / static_cast<double>(batch);
}

}  // namespace fastgan
