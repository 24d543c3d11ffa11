// What the operators that move weights are on every device: their arguments, checked, and the names
// they are registered under. A device brings
//   void adam(tensors, numbers, step, lr)
//   void adam_device(tensors, numbers, step, lr, grad_scale, found_inf)
//   void ema(averages, values, decay)
// Every tensor is dense and lies in memory as those that go with it do: kernels walk the memory.
#pragma once

#include <optional>

#include "ops/tensors.h"

namespace fastgan {

struct AdamLists {
  const std::vector<Tensor>&params, &grads, &exp_avgs, &exp_avg_sqs;
};

struct AdamNumbers {
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
};

inline void check_adam_lists(const AdamLists& t, const std::vector<Tensor>& numbers = {}) {
  const size_t count = t.params.size();
  STD_TORCH_CHECK(
      t.grads.size() == count && t.exp_avgs.size() == count && t.exp_avg_sqs.size() == count,
      "params, grads, exp_avgs and exp_avg_sqs have ", count, ", ", t.grads.size(), ", ",
      t.exp_avgs.size(), " and ", t.exp_avg_sqs.size(), " tensors; expected the same number");
  for (size_t i = 0; i < count; ++i) {
    const Tensor& p = t.params[i];
    const ScalarType dtype = p.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "params[", i,
                    "] is neither float32 nor float64");
    check_like(p, "each of params", t.params[0], "the first of params");
    check_same(t.grads[i], "each of grads", p, "its parameter");
    check_same(t.exp_avgs[i], "each of exp_avgs", p, "its parameter");
    check_same(t.exp_avg_sqs[i], "each of exp_avg_sqs", p, "its parameter");
    STD_TORCH_CHECK(is_dense(p), "params[", i,
                    "] has gaps or overlaps in memory; expected a dense tensor");
    STD_TORCH_CHECK(same_order(t.grads[i], p) && same_order(t.exp_avgs[i], p) &&
                        same_order(t.exp_avg_sqs[i], p),
                    "params[", i,
                    "], its gradient and its moments have different strides; expected the same");
  }
  Touched touched;
  touched.writes(t.params);
  touched.writes(t.exp_avgs);
  touched.writes(t.exp_avg_sqs);
  touched.reads(t.grads);
  touched.reads(numbers);
  touched.check("params, exp_avgs and exp_avg_sqs");
}

inline void check_ema(const std::vector<Tensor>& averages, const std::vector<Tensor>& values,
                      double decay) {
  STD_TORCH_CHECK(averages.size() == values.size(), "averages and values have ", averages.size(),
                  " and ", values.size(), " tensors; expected the same number");
  STD_TORCH_CHECK(decay >= 0 && decay <= 1, "decay is ", decay, "; expected 0 <= decay <= 1");
  for (size_t i = 0; i < averages.size(); ++i) {
    check_like(averages[i], "each of averages", averages[0], "the first of averages");
    check_same(values[i], "each of values", averages[i], "its average");
    STD_TORCH_CHECK(is_dense(averages[i]), "averages[", i,
                    "] has gaps or overlaps in memory; expected a dense tensor");
    STD_TORCH_CHECK(same_order(values[i], averages[i]), "averages[", i, "] and values[", i,
                    "] have different strides; expected the same");
  }
  Touched touched;
  touched.writes(averages);
  touched.reads(values);
  touched.check("averages");
}

template <class Device>
struct AdamOperators {
  static void adam_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                    const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                    int64_t step, double lr, double beta1, double beta2, double eps,
                    double weight_decay, bool decoupled) {
    const AdamLists tensors{params, grads, exp_avgs, exp_avg_sqs};
    STD_TORCH_CHECK(step >= 1, "step is ", step, "; updates are counted from 1");
    check_adam_lists(tensors);
    if (params.empty()) return;
    Device::adam(tensors, AdamNumbers{beta1, beta2, eps, weight_decay, decoupled},
                 static_cast<double>(step), lr);
  }

  static void adam_device_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                           const std::vector<Tensor>& exp_avgs,
                           const std::vector<Tensor>& exp_avg_sqs, const Tensor& step,
                           const Tensor& lr, double beta1, double beta2, double eps,
                           double weight_decay, bool decoupled,
                           const std::optional<Tensor>& grad_scale,
                           const std::optional<Tensor>& found_inf) {
    const AdamLists tensors{params, grads, exp_avgs, exp_avg_sqs};
    std::vector<Tensor> numbers{step, lr};
    const Tensor& device = params.empty() ? step : params[0];
    check_real(step, "step", device, "params");
    check_real(lr, "lr", device, "params");
    for (const auto& [number, name] :
         {std::pair(&grad_scale, "grad_scale"), std::pair(&found_inf, "found_inf")}) {
      if (!number->has_value()) continue;
      check_number(**number, name, ScalarType::Float, "float32", device, "params");
      numbers.push_back(**number);
    }
    check_adam_lists(tensors, numbers);
    if (params.empty()) return;
    Device::adam_device(tensors, AdamNumbers{beta1, beta2, eps, weight_decay, decoupled}, step, lr,
                        grad_scale, found_inf);
  }

  static void ema_(const std::vector<Tensor>& averages, const std::vector<Tensor>& values,
                   double decay) {
    check_ema(averages, values, decay);
    if (!averages.empty()) Device::ema(averages, values, decay);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("adam_", TORCH_BOX(&adam_));
    m.impl("adam_device_", TORCH_BOX(&adam_device_));
    m.impl("ema_", TORCH_BOX(&ema_));
  }
};

}  // namespace fastgan
