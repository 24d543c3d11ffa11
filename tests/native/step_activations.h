// The activations and their slopes in double precision, for step_reference.h.
#pragma once

#include <cmath>

#include "step_plans.h"

const double kHalfGelu = std::sqrt(2 / std::acos(-1.0));  // half the slope of 2 u at 0

const double kSeluScale = 1.0507009873554804934, kSeluBelow = 1.6732632423543772848;

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
    case Activation::gelu:
      return x * std::erfc(-x * std::sqrt(0.5)) / 2;
    case Activation::gelu_tanh:
      return x * (1 + std::tanh(kHalfGelu * (x + 0.044715 * x * x * x))) / 2;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::selu:
      return kSeluScale * (x > 0 ? x : kSeluBelow * std::expm1(x));
    case Activation::softplus:
      return std::log1p(std::exp(x));
    default:
      return x;
  }
}
// At x, where the activation is y.
double slope_at(Activation a, double x, double y) {
  switch (a) {
    case Activation::leaky_relu:
      return y > 0 ? 1 : kSlope;
    case Activation::tanh:
      return 1 - y * y;
    case Activation::sigmoid:
      return y * (1 - y);
    case Activation::elu:
      return y > 0 ? 1 : y + kSlope;
    case Activation::gelu:
      return std::erfc(-x * std::sqrt(0.5)) / 2 + x * kHalfGelu / 2 * std::exp(-x * x / 2);
    case Activation::gelu_tanh: {
      const double th = std::tanh(kHalfGelu * (x + 0.044715 * x * x * x));
      return (1 + th) / 2 + x * (1 - th * th) / 2 * kHalfGelu * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::silu: {
      const double s = 1 / (1 + std::exp(-x));
      return s + x * s * (1 - s);
    }
    case Activation::selu:
      return y > 0 ? kSeluScale : y + kSeluScale * kSeluBelow;
    case Activation::softplus:
      return 1 / (1 + std::exp(-x));
    default:
      return 1;
  }
}
