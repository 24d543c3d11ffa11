// What the operators of BatchNorm are on every device: their arguments, checked, and the names they
// are registered under. A device brings
//   (y, mean, deviation) forward(x, weight, bias, running_mean, running_var, momentum, eps, slope,
//                                parts)
//   (dx, dweight, dbias) backward(grad, x, weight, bias, mean, deviation, slope, need_x, parts)
//   (dgrad, dx, dweight) second(v, grad, x, weight, bias, mean, deviation, dweight, dbias, slope)
// deviation: one over the standard deviation, with eps. parts: of the batch, equal in size, each of
// which is normalised by itself, in their order; mean and deviation are [parts * channels].
#pragma once

#include <cmath>
#include <tuple>

#include "ops/tensors.h"

namespace fastgan {

inline void check_channels(const Tensor& t, const char* name, const Tensor& x, int64_t parts = 1) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == parts * x.size(1), name, " has shape ", shape_of(t),
                  "; expected [", parts * x.size(1), "], because x has shape ", shape_of(x),
                  parts == 1 ? "" : " and there are several parts");
  check_like(t, name, x, "x");
  STD_TORCH_CHECK(t.is_contiguous(), name, " has gaps in memory; expected a contiguous tensor");
}

inline void check_parts(const Tensor& x, int64_t parts) {
  constexpr int64_t kMost = 1024;
  STD_TORCH_CHECK(parts >= 1 && parts <= kMost && x.size(0) % parts == 0, "parts is ", parts,
                  "; expected a divisor of the batch of at most ", kMost, ", because x has shape ",
                  shape_of(x));
}

inline void check_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double slope) {
  STD_TORCH_CHECK(x.dim() == 4, "x has shape ", shape_of(x),
                  "; expected [batch, channels, height, width]");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x must be float32");
  check_memory(x, "x");
  check_channels(weight, "weight", x);
  check_channels(bias, "bias", x);
  STD_TORCH_CHECK(slope >= 0 && std::isfinite(slope), "negative_slope is ", slope,
                  "; expected a finite number of at least 0");
}

template <class Device>
struct NormOperators {
  using Three = std::tuple<Tensor, Tensor, Tensor>;

  static Three forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& running_mean, const Tensor& running_var, double momentum,
                       double eps, double slope, int64_t parts) {
    check_norm(x, weight, bias, slope);
    check_parts(x, parts);
    check_channels(running_mean, "running_mean", x);
    check_channels(running_var, "running_var", x);
    STD_TORCH_CHECK(momentum >= 0 && momentum <= 1, "momentum is ", momentum,
                    "; expected 0 <= momentum <= 1");
    STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "eps is ", eps,
                    "; expected a finite number of at least 0");
    const int64_t rows = x.size(1) > 0 ? x.numel() / x.size(1) / parts : 0;
    STD_TORCH_CHECK(x.size(1) == 0 || rows > 1, "x has shape ", shape_of(x),
                    "; expected more than one value per channel when training");
    Touched touched;
    touched.writes(running_mean);
    touched.writes(running_var);
    touched.reads(weight);
    touched.reads(bias);
    touched.check("running_mean and running_var");
    return Device::forward(x, weight, bias, running_mean, running_var, momentum, eps, slope, parts);
  }

  static Three backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                        double slope, bool need_x, int64_t parts) {
    check_norm(x, weight, bias, slope);
    check_parts(x, parts);
    check_same(grad, "grad", x, "x");
    check_channels(mean, "mean", x, parts);
    check_channels(deviation, "deviation", x, parts);
    return Device::backward(grad, x, weight, bias, mean, deviation, slope, need_x, parts);
  }

  static Three second(const Tensor& v, const Tensor& grad, const Tensor& x, const Tensor& weight,
                      const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                      const Tensor& dweight, const Tensor& dbias, double slope) {
    check_norm(x, weight, bias, slope);
    check_same(v, "v", x, "x");
    check_same(grad, "grad", x, "x");
    check_channels(mean, "mean", x);
    check_channels(deviation, "deviation", x);
    check_channels(dweight, "dweight", x);
    check_channels(dbias, "dbias", x);
    return Device::second(v, grad, x, weight, bias, mean, deviation, dweight, dbias, slope);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("batch_norm_leaky_relu", TORCH_BOX(&forward));
    m.impl("batch_norm_leaky_relu_backward", TORCH_BOX(&backward));
    m.impl("batch_norm_leaky_relu_second", TORCH_BOX(&second));
  }
};

}  // namespace fastgan
