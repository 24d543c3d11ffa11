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

// What a list of parameters and the lists that go with it must be.
inline void check_adam_lists(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                             const std::vector<Tensor>& exp_avgs,
                             const std::vector<Tensor>& exp_avg_sqs) {
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

inline void check_adam(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                       const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                       int64_t step) {
  STD_TORCH_CHECK(step >= 1, "step is ", step, "; updates are counted from 1");
  check_adam_lists(params, grads, exp_avgs, exp_avg_sqs);
}

// One number on the device of `other`.
inline void check_number(const Tensor& t, const char* name, ScalarType dtype,
                         const char* dtype_name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype; expected ", dtype_name);
  STD_TORCH_CHECK(t.numel() == 1, name, " has shape ", shape_of(t), "; expected one element");
  STD_TORCH_CHECK(t.device() == other.device(), name, " and ", other_name,
                  " are on different devices; move one of them");
}

inline void check_adam_device(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                              const std::vector<Tensor>& exp_avgs,
                              const std::vector<Tensor>& exp_avg_sqs, const Tensor& step,
                              const Tensor& lr, const std::optional<Tensor>& grad_scale,
                              const std::optional<Tensor>& found_inf) {
  check_adam_lists(params, grads, exp_avgs, exp_avg_sqs);
  if (params.empty()) return;
  const Tensor& p = params[0];
  check_number(step, "step", ScalarType::Float, "float32", p, "params");
  const bool wide = lr.scalar_type() == ScalarType::Double;
  check_number(lr, "lr", wide ? ScalarType::Double : ScalarType::Float, "float32 or float64", p,
               "params");
  if (grad_scale) {
    check_number(*grad_scale, "grad_scale", ScalarType::Float, "float32", p, "params");
  }
  if (found_inf) {
    check_number(*found_inf, "found_inf", ScalarType::Float, "float32", p, "params");
  }
}

inline void check_ema(const std::vector<Tensor>& averages, const std::vector<Tensor>& values,
                      double decay) {
  STD_TORCH_CHECK(averages.size() == values.size(), "averages and values have ", averages.size(),
                  " and ", values.size(), " tensors; expected the same number");
  STD_TORCH_CHECK(decay >= 0 && decay <= 1, "decay is ", decay, "; expected 0 <= decay <= 1");
  for (size_t i = 0; i < averages.size(); ++i) {
    check_like(averages[i], "each of averages", averages[0], "the first of averages");
    check_same(values[i], "each of values", averages[i], "its average");
    STD_TORCH_CHECK(averages[i].is_contiguous() && values[i].is_contiguous(), "averages[", i,
                    "] or values[", i, "] is not contiguous");
  }
}

inline void check_counter(const Tensor& counter, const Tensor& other, const char* other_name) {
  check_number(counter, "counter", ScalarType::Long, "int64", other, other_name);
}

// Of a batch of images: its rows, an image's channels and the elements of one of them, and whether
// the channels lie innermost in `out`.
struct GatherSizes {
  int64_t rows, channels, plane;
  bool channels_last;
};

inline GatherSizes check_gather(const Tensor& out, const Tensor& pixels, const Tensor& order,
                                const Tensor& counter, int64_t batch, int64_t batches_per_epoch) {
  STD_TORCH_CHECK(pixels.dim() >= 1 && pixels.is_contiguous(), "pixels has shape ",
                  shape_of(pixels), "; expected a contiguous tensor [images, ...]");
  const ScalarType from = pixels.scalar_type(), to = out.scalar_type();
  STD_TORCH_CHECK(from == ScalarType::Byte || from == ScalarType::Float ||
                      (from == ScalarType::Double && to == ScalarType::Double),
                  "pixels must be uint8 or float32 (or float64, where out is)");
  std::vector<int64_t> image = sizes_of(pixels), row = sizes_of(out);
  STD_TORCH_CHECK(!row.empty(), "out has no dimensions; expected [rows, ...]");
  const int64_t rows = row[0];
  image[0] = rows;
  STD_TORCH_CHECK(row == image, "out has shape ", shape_of(out),
                  "; expected images of the shape in pixels, which has shape ", shape_of(pixels));
  STD_TORCH_CHECK(
      order.dim() == 1 && order.scalar_type() == ScalarType::Long && order.is_contiguous(),
      "order must be a contiguous int64 vector; it has shape ", shape_of(order));
  STD_TORCH_CHECK(pixels.device() == out.device() && order.device() == out.device(),
                  "pixels, order and out are on different devices; move them to one");
  check_counter(counter, out, "out");
  STD_TORCH_CHECK(batch >= 1 && rows <= batch, "batch is ", batch, " and out has ", rows,
                  " rows; expected 1 <= batch and no more rows than batch");
  STD_TORCH_CHECK(batches_per_epoch >= 1, "batches_per_epoch is ", batches_per_epoch,
                  "; expected 1 or more");
  int64_t elements = 1;
  for (size_t i = 1; i < row.size(); ++i) elements *= row[i];
  if (out.is_contiguous()) return {rows, 1, elements, false};
  const bool channels_last = row.size() == 4 && out.stride(1) == 1 && out.stride(3) == row[1] &&
                             out.stride(2) == row[1] * row[3] && out.stride(0) == elements;
  STD_TORCH_CHECK(channels_last, "out is neither contiguous nor channels_last");
  return {rows, row[1], elements / row[1], true};
}

// `words` of a stream, for the tensor of that name.
inline Philox check_draw(const char* name, int64_t seed, int64_t stream, int64_t step,
                         int64_t words) {
  STD_TORCH_CHECK(stream >= 0 && stream < int64_t{1} << 32, "stream is ", stream,
                  "; expected 0 <= stream < 2**32");
  STD_TORCH_CHECK(words <= int64_t{1} << 34, name, " needs ", words,
                  " words of the stream, which has 2**34");
  return make_philox(static_cast<uint64_t>(seed), static_cast<uint32_t>(stream),
                     static_cast<uint64_t>(step));
}

inline Philox check_philox(const Tensor& out, ScalarType dtype, const char* dtype_name,
                           int64_t seed, int64_t stream, int64_t step, int64_t words) {
  STD_TORCH_CHECK(out.scalar_type() == dtype, "out has the wrong dtype; expected ", dtype_name);
  STD_TORCH_CHECK(out.is_contiguous(), "out is not contiguous");
  return check_draw("out", seed, stream, step, words);
}

inline void check_threshold(int64_t threshold) {
  STD_TORCH_CHECK(threshold >= 0 && threshold <= 65536, "threshold is ", threshold,
                  "; expected 0 <= threshold <= 65536");
}

inline Philox check_keep_mask(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                              int64_t threshold) {
  check_threshold(threshold);
  return check_philox(out, ScalarType::Bool, "bool", seed, stream, step, (out.numel() + 1) / 2);
}

// A mask for `elements` on the device of x.
inline Philox check_dropout(const Tensor& x, int64_t elements, const Tensor& counter, int64_t seed,
                            int64_t stream, int64_t start, int64_t threshold) {
  check_threshold(threshold);
  STD_TORCH_CHECK(start >= 0, "start is ", start, "; expected 0 or more");
  check_counter(counter, x, "x");
  return check_draw("x", seed, stream, 0, (start + elements + 1) / 2);
}

}  // namespace fastgan
