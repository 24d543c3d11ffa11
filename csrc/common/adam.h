// Adam (D. P. Kingma and J. Ba, ICLR 2015) and AdamW (I. Loshchilov and F. Hutter, ICLR 2019) on
// one element, with torch.optim's arithmetic.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/math.h"

namespace fastgan {

// What does not depend on the element, computed in double and rounded once.
template <class T>
struct Adam {
  T beta1, one_minus_beta1;
  T beta2, one_minus_beta2;
  T step_size;     // lr / (1 - beta1^step)
  T inverse_root;  // 1 / sqrt(1 - beta2^step)
  T eps;
  T l2;      // added to the gradient, times the weight (Adam); 0 for AdamW
  T shrink;  // the weight is multiplied by this first (AdamW); 1 for Adam
};

// power1 and power2: beta1 and beta2 to the number of the update, which counts from 1.
template <class T>
FASTGAN_HD Adam<T> make_adam_of_powers(double power1, double power2, double lr, double beta1,
                                       double beta2, double eps, double weight_decay,
                                       bool decoupled) {
  return {static_cast<T>(beta1),
          static_cast<T>(1.0 - beta1),
          static_cast<T>(beta2),
          static_cast<T>(1.0 - beta2),
          static_cast<T>(lr / (1.0 - power1)),
          static_cast<T>(1.0 / ::sqrt(1.0 - power2)),
          static_cast<T>(eps),
          static_cast<T>(decoupled ? 0.0 : weight_decay),
          static_cast<T>(decoupled ? 1.0 - lr * weight_decay : 1.0)};
}
template <class T>
FASTGAN_HD Adam<T> make_adam(double step, double lr, double beta1, double beta2, double eps,
                             double weight_decay, bool decoupled) {
  return make_adam_of_powers<T>(::pow(beta1, step), ::pow(beta2, step), lr, beta1, beta2, eps,
                                weight_decay, decoupled);
}

// base^n by squaring, for a GPU: a few dozen dependent products, where pow() takes microseconds.
FASTGAN_HD double power(double base, int64_t n) {
  double result = 1;
  for (; n > 0; n /= 2) {
    if (n % 2) result *= base;
    base *= base;
  }
  return result;
}

template <class T>
FASTGAN_HD void adam_update(const Adam<T>& a, T grad, T& weight, T& exp_avg, T& exp_avg_sq) {
  const T w = weight * a.shrink;
  const T g = grad + a.l2 * w;
  const T m = a.beta1 * exp_avg + a.one_minus_beta1 * g;
  const T v = a.beta2 * exp_avg_sq + a.one_minus_beta2 * (g * g);
  exp_avg = m;
  exp_avg_sq = v;
  weight = w - a.step_size * m / (math::sqrt(v) * a.inverse_root + a.eps);
}

}  // namespace fastgan
