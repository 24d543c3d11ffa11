// What the linear layer's operators are on every device: their arguments, checked, and the names
// they are registered under. A device brings
//   Tensor forward(sizes, x, weight, bias, negative_slope, drop)
//   tuple<Tensor, Tensor, Tensor> backward(sizes, grad, x, weight, sign, negative_slope, need,
//   drop)
// where `drop` is a dropout of the layer's result, or one that keeps everything.
#pragma once

#include <cmath>
#include <optional>
#include <tuple>

#include "ops/linear/shape.h"
#include "ops/random/checks.h"
#include "ops/tensors.h"

namespace fastgan {

// Every leading dimension of x is in batch.
struct LinearSizes : LinearShape {
  std::vector<int64_t> result;  // the shape of y
};

// Which gradients are asked for; the others come back empty.
struct LinearNeeds {
  bool x, weight, bias;
};

inline LinearSizes check_linear(const Tensor& x, const Tensor& weight,
                                const std::optional<Tensor>& bias, double negative_slope) {
  constexpr int64_t kMostRows = int64_t{1} << 48;
  STD_TORCH_CHECK(weight.dim() == 2, "weight has shape ", shape_of(weight),
                  "; expected [out_features, in_features]");
  STD_TORCH_CHECK(x.dim() >= 1, "x has no dimensions; expected [..., in_features]");
  LinearSizes s{{1, weight.size(1), weight.size(0)}, sizes_of(x)};
  STD_TORCH_CHECK(s.result.back() == s.in, "x has shape ", shape_of(x), "; expected [..., ", s.in,
                  "], because weight has shape ", shape_of(weight));
  s.result.pop_back();
  for (int64_t size : s.result) {
    const bool overflow = __builtin_mul_overflow(s.batch, size, &s.batch);
    STD_TORCH_CHECK(!overflow && s.batch <= kMostRows, "x has shape ", shape_of(x),
                    "; expected at most 2**48 rows");
  }
  s.result.push_back(s.out);
  check_memory(x, "x");
  check_like(weight, "weight", x, "x");
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == s.out, "bias has shape ", shape_of(*bias),
                    "; expected [", s.out, "]");
    check_like(*bias, "bias", x, "x");
  }
  STD_TORCH_CHECK(std::isfinite(negative_slope), "negative_slope is ", negative_slope,
                  "; expected a finite number");
  return s;
}

inline LinearSizes check_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                         const Tensor& sign, double negative_slope) {
  LinearSizes s = check_linear(x, weight, std::nullopt, negative_slope);
  STD_TORCH_CHECK(sizes_of(grad) == s.result, "grad has shape ", shape_of(grad),
                  "; expected that of the layer's output, which x and weight determine");
  check_like(grad, "grad", x, "x");
  check_same(sign, "sign", grad, "grad");
  return s;
}

template <class Device>
struct LinearOperators {
  using Gradients = std::tuple<Tensor, Tensor, Tensor>;

  static Tensor linear_leaky_relu(const Tensor& x, const Tensor& weight,
                                  const std::optional<Tensor>& bias, double negative_slope) {
    const LinearSizes s = check_linear(x, weight, bias, negative_slope);
    return Device::forward(s, x, weight, bias, negative_slope, Dropout{});
  }

  static Gradients linear_leaky_relu_backward(const Tensor& grad, const Tensor& x,
                                              const Tensor& weight, const Tensor& sign,
                                              double negative_slope, bool need_x, bool need_weight,
                                              bool need_bias) {
    const LinearSizes s = check_linear_backward(grad, x, weight, sign, negative_slope);
    return Device::backward(s, grad, x, weight, sign, negative_slope,
                            LinearNeeds{need_x, need_weight, need_bias}, Dropout{});
  }

  static Tensor linear_leaky_relu_dropout_at(const Tensor& x, const Tensor& weight,
                                             const std::optional<Tensor>& bias,
                                             double negative_slope, int64_t threshold, int64_t seed,
                                             int64_t stream, const Tensor& counter,
                                             int64_t multiplier, int64_t offset, int64_t start) {
    const LinearSizes s = check_linear(x, weight, bias, negative_slope);
    int64_t elements = 0;
    STD_TORCH_CHECK(!__builtin_mul_overflow(s.batch, s.out, &elements), "x and weight have shapes ",
                    shape_of(x), " and ", shape_of(weight),
                    "; their layer's result has more than 2**63 elements");
    const Dropout drop =
        check_dropout(x, elements, threshold, seed, stream, counter, multiplier, offset, start);
    return Device::forward(s, x, weight, bias, negative_slope, drop);
  }

  static Gradients linear_leaky_relu_dropout_backward_at(
      const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& sign,
      double negative_slope, bool need_x, bool need_weight, bool need_bias, int64_t threshold,
      int64_t seed, int64_t stream, const Tensor& counter, int64_t multiplier, int64_t offset,
      int64_t start) {
    const LinearSizes s = check_linear_backward(grad, x, weight, sign, negative_slope);
    const Dropout drop = check_dropout(grad, grad.numel(), threshold, seed, stream, counter,
                                       multiplier, offset, start);
    return Device::backward(s, grad, x, weight, sign, negative_slope,
                            LinearNeeds{need_x, need_weight, need_bias}, drop);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("linear_leaky_relu", TORCH_BOX(&linear_leaky_relu));
    m.impl("linear_leaky_relu_backward", TORCH_BOX(&linear_leaky_relu_backward));
    m.impl("linear_leaky_relu_dropout_at", TORCH_BOX(&linear_leaky_relu_dropout_at));
    m.impl("linear_leaky_relu_dropout_backward_at",
           TORCH_BOX(&linear_leaky_relu_dropout_backward_at));
  }
};

}  // namespace fastgan
