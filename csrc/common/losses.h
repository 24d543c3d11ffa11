// The binary cross-entropy of sigmoid(logit) against a label, with its derivative, from the logit.
#pragma once

#include "common/math.h"

namespace fastgan {

template <class T>
struct LossGrad {
  T loss, grad;
};

// loss = softplus(l) - label * l and grad = sigmoid(l) - label, each written as the mixture
// (1 - label) * f(l) + label * f(-l), in which nothing large cancels: finite and exact in the
// tails for every finite logit.
template <class T>
FASTGAN_HD LossGrad<T> bce_with_logit(T logit, T label) {
  const T e = math::exp(-math::abs(logit));
  const T positive = logit > T(0) ? logit : T(0);
  const T negative = logit > T(0) ? T(0) : -logit;
  const T inverse = T(1) / (T(1) + e);
  const T near = inverse, far = e * inverse;  // sigmoid(|l|), sigmoid(-|l|)
  const T up = logit > T(0) ? near : far;     // sigmoid(l)
  const T down = logit > T(0) ? far : near;   // sigmoid(-l)
  return {(T(1) - label) * positive + label * negative + math::log1p(e),
          (T(1) - label) * up - label * down};
}

}  // namespace fastgan
