// Adam and averages of weights on the CPU.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "ops/adam/operators.h"

namespace fastgan::cpu {

namespace {

// Elements of which a unit of work is made: threads are given whole ones.
constexpr int64_t kUnit = 4096;

template <class T, class Kernel>
void run_adam(Kernel kernel, const Adam<T>& constants, const AdamLists& t,
              const std::vector<Tensor>& grads) {
  // Units of all tensors in one range, so that many small tensors wake the threads once.
  std::vector<int64_t> first{0};
  for (const Tensor& p : t.params) first.push_back(first.back() + units_of(p.numel(), kUnit));
  torch::stable::parallel_for(0, first.back(), 4, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < t.params.size(); ++i) {
      const int64_t from = begin > first[i] ? begin - first[i] : 0;
      const int64_t n = t.params[i].numel();
      const int64_t to = (end < first[i + 1] ? end - first[i] : first[i + 1] - first[i]) * kUnit;
      const int64_t at = from * kUnit, stop = to < n ? to : n;
      if (at >= stop) continue;
      kernel(constants, stop - at, in_ptr<T>(grads[i]) + at, out_ptr<T>(t.params[i]) + at,
             out_ptr<T>(t.exp_avgs[i]) + at, out_ptr<T>(t.exp_avg_sqs[i]) + at);
    }
  });
}

void update(const AdamLists& t, const std::vector<Tensor>& grads, const AdamNumbers& n, double step,
            double lr) {
  const auto constants = [&](auto tag) {
    return make_adam<decltype(tag)>(step, lr, n.beta1, n.beta2, n.eps, n.weight_decay, n.decoupled);
  };
  if (t.params[0].scalar_type() == ScalarType::Float) {
    run_adam<float>(kernels().adam_f32, constants(float{}), t, grads);
  } else {
    run_adam<double>(kernels().adam_f64, constants(double{}), t, grads);
  }
}

double number(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? *in_ptr<double>(t) : *in_ptr<float>(t);
}

// The gradients over their scale, each in a block of its own, in the order of its elements in
// memory.
std::vector<Tensor> unscaled(const std::vector<Tensor>& grads, float grad_scale) {
  std::vector<Tensor> found;
  for (const Tensor& grad : grads) {
    found.push_back(torch::stable::new_empty(grad, std::vector<int64_t>{grad.numel()}));
    dispatch(grad.scalar_type(), "grads", [&](auto tag) {
      using T = decltype(tag);
      const auto scale = static_cast<arithmetic_t<T>>(grad_scale);
      const T* from = in_ptr<T>(grad);
      T* to = out_ptr<T>(found.back());
      for (int64_t i = 0; i < grad.numel(); ++i) store(to + i, widen(from[i]) / scale);
    });
  }
  return found;
}

struct AdamOnCpu {
  static void adam(const AdamLists& t, const AdamNumbers& n, double step, double lr) {
    update(t, t.grads, n, step, lr);
  }

  static void adam_device(const AdamLists& t, const AdamNumbers& n, const Tensor& step,
                          const Tensor& lr, const std::optional<Tensor>& grad_scale,
                          const std::optional<Tensor>& found_inf) {
    if (found_inf && *in_ptr<float>(*found_inf) != 0.f) return;
    const double count = std::trunc(number(step));
    STD_TORCH_CHECK(count >= 1, "step is ", number(step), "; updates are counted from 1");
    const float scale = grad_scale ? *in_ptr<float>(*grad_scale) : 1.f;
    update(t, scale == 1.f ? t.grads : unscaled(t.grads, scale), n, count, number(lr));
  }

  // The average moved towards the value, from the nearer end, as torch.lerp.
  static void ema(const std::vector<Tensor>& averages, const std::vector<Tensor>& values,
                  double decay) {
    for (size_t i = 0; i < averages.size(); ++i) {
      dispatch(averages[i].scalar_type(), "averages", [&](auto tag) {
        using T = decltype(tag);
        using A = arithmetic_t<T>;
        T* average = out_ptr<T>(averages[i]);
        const T* value = in_ptr<T>(values[i]);
        const A share = static_cast<A>(1.0 - decay);
        parallel_units(averages[i].numel(), kUnit, 4, [&](int64_t begin, int64_t end) {
          for (int64_t j = begin; j < end; ++j) {
            const A from = widen(average[j]), to = widen(value[j]), way = to - from;
            store(average + j, share < A(0.5) ? from + share * way : to - way * (A(1) - share));
          }
        });
      });
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { AdamOperators<AdamOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
