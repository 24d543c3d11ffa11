// What the CPU and the CUDA operators demand of their arguments. Messages name the argument, what
// was found and what was expected.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "common/philox.h"

namespace fastgan {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(t.size(i));
  }
  return text + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

inline bool same_shape(const Tensor& a, const Tensor& b) { return sizes_of(a) == sizes_of(b); }

inline void check_like(const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  STD_TORCH_CHECK(t.scalar_type() == other.scalar_type(), name, " and ", other_name,
                  " have different dtypes; convert one of them");
  STD_TORCH_CHECK(t.device() == other.device(), name, " and ", other_name,
                  " are on different devices; move one of them");
}

inline void check_same(const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  check_like(t, name, other, other_name);
  STD_TORCH_CHECK(same_shape(t, other), name, " has shape ", shape_of(t), "; expected that of ",
                  other_name, ", ", shape_of(other));
}

inline void check_slope(double negative_slope) {
  STD_TORCH_CHECK(std::isfinite(negative_slope), "negative_slope is ", negative_slope,
                  "; expected a finite number");
}

// batch, in and out of y = x weight^T + bias, with every leading dimension of x in batch.
struct LinearSizes {
  int64_t batch, in, out;
  std::vector<int64_t> result;  // the shape of y
};

inline LinearSizes check_linear(const Tensor& x, const Tensor& weight,
                                const std::optional<Tensor>& bias, double negative_slope) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight has shape ", shape_of(weight),
                  "; expected [out_features, in_features]");
  STD_TORCH_CHECK(x.dim() >= 1, "x has no dimensions; expected [..., in_features]");
  LinearSizes s{1, weight.size(1), weight.size(0), sizes_of(x)};
  STD_TORCH_CHECK(s.result.back() == s.in, "x has shape ", shape_of(x), "; expected [..., ", s.in,
                  "], because weight has shape ", shape_of(weight));
  s.result.pop_back();
  for (int64_t size : s.result) s.batch *= size;
  s.result.push_back(s.out);
  check_like(weight, "weight", x, "x");
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == s.out, "bias has shape ", shape_of(*bias),
                    "; expected [", s.out, "]");
    check_like(*bias, "bias", x, "x");
  }
  check_slope(negative_slope);
  return s;
}

inline void check_linear_backward(const LinearSizes& s, const Tensor& grad, const Tensor& sign,
                                  const Tensor& x) {
  STD_TORCH_CHECK(sizes_of(grad) == s.result, "grad has shape ", shape_of(grad),
                  "; expected that of the layer's output, which x and weight determine");
  check_like(grad, "grad", x, "x");
  check_same(sign, "sign", grad, "grad");
}

inline void check_adam(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                       const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                       int64_t step) {
  STD_TORCH_CHECK(step >= 1, "step is ", step, "; updates are counted from 1");
  STD_TORCH_CHECK(grads.size() == params.size() && exp_avgs.size() == params.size() &&
                      exp_avg_sqs.size() == params.size(),
                  "params, grads, exp_avgs and exp_avg_sqs have ", params.size(), ", ",
                  grads.size(), ", ", exp_avgs.size(), " and ", exp_avg_sqs.size(),
                  " tensors; expected the same number");
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor& p = params[i];
    const ScalarType dtype = p.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "params[", i,
                    "] is neither float32 nor float64");
    check_like(p, "each of params", params[0], "the first of params");
    check_same(grads[i], "each of grads", p, "its parameter");
    check_same(exp_avgs[i], "each of exp_avgs", p, "its parameter");
    check_same(exp_avg_sqs[i], "each of exp_avg_sqs", p, "its parameter");
    STD_TORCH_CHECK(p.is_contiguous() && grads[i].is_contiguous() && exp_avgs[i].is_contiguous() &&
                        exp_avg_sqs[i].is_contiguous(),
                    "params[", i, "], its gradient or a moment is not contiguous");
  }
}

inline Philox check_philox(const Tensor& out, ScalarType dtype, const char* dtype_name,
                           int64_t seed, int64_t stream, int64_t step, int64_t words) {
  STD_TORCH_CHECK(out.scalar_type() == dtype, "out has the wrong dtype; expected ", dtype_name);
  STD_TORCH_CHECK(out.is_contiguous(), "out is not contiguous");
  STD_TORCH_CHECK(stream >= 0 && stream < int64_t{1} << 32, "stream is ", stream,
                  "; expected 0 <= stream < 2**32");
  STD_TORCH_CHECK(words <= int64_t{1} << 34, "out needs ", words,
                  " words of the stream, which has 2**34");
  return make_philox(static_cast<uint64_t>(seed), static_cast<uint32_t>(stream),
                     static_cast<uint64_t>(step));
}

inline Philox check_keep_mask(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                              int64_t threshold) {
  STD_TORCH_CHECK(threshold >= 0 && threshold <= 65536, "threshold is ", threshold,
                  "; expected 0 <= threshold <= 65536");
  return check_philox(out, ScalarType::Bool, "bool", seed, stream, step, (out.numel() + 1) / 2);
}

}  // namespace fastgan
