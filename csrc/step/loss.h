// The loss of one score and its gradient, in each of the losses. The losses that take logits of a
// probability are binary cross-entropies (common/losses.h) with the label and the sign of bce_of();
// the others are scored by raw_score(). No torch here.
#pragma once

#include "common/macros.h"
#include "step/passes.h"
#include "step/plan.h"

namespace fastgan {

FASTGAN_HD bool takes_logits(Loss loss) {
  return loss == Loss::non_saturating || loss == Loss::minimax;
}

// The score that D decides by; NaN for scores of no place of their own.
FASTGAN_HD double middle_of(Loss loss) {
  if (loss == Loss::wasserstein) return static_cast<double>(NAN);
  return loss == Loss::least_squares ? 0.5 : 0.0;
}

struct Bce {
  double label;
  bool negative;  // the saturating G minimises the negative of D's loss on its images
};
FASTGAN_HD Bce bce_of(Loss loss, int segment, double real_label) {
  const bool negative = segment == kFakeForG && loss == Loss::minimax;
  return {segment == kReal ? real_label : segment == kFakeForG && !negative ? 1.0 : 0.0, negative};
}

struct Score {
  float loss, grad;
};
// `scale` is that of the gradient: 1 over the batch.
FASTGAN_HD Score raw_score(Loss loss, int segment, float score, float scale) {
  if (loss == Loss::least_squares) {
    const float d = segment == kFake ? score : score - 1.f;
    return {0.5f * (d * d), scale * d};
  }
  const float sign = segment == kFake ? 1.f : -1.f;
  if (loss == Loss::hinge && segment != kFakeForG) {
    const float margin = 1.f + sign * score;
    // NaN is not flat.
    return margin <= 0.f ? Score{0.f, 0.f} : Score{margin, sign * scale};
  }
  return {sign * score, sign * scale};
}

}  // namespace fastgan
