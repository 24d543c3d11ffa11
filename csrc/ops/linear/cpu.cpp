// The linear layer's operators on the CPU.
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "ops/linear/operators.h"
#include "ops/random/cpu.h"

namespace fastgan::cpu {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16;
}

// The dtype that tensors of `dtype` are multiplied in.
ScalarType product_dtype(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

Tensor prepared(const Tensor& t) {
  const ScalarType dtype = product_dtype(t.scalar_type());
  return contiguous(dtype == t.scalar_type() ? t : torch::stable::to(t, dtype));
}

template <class T>
Tensor forward(const LinearKernels<T>& k, const LinearSizes& s, const Tensor& x,
               const Tensor& weight, const std::optional<Tensor>& bias, double negative_slope) {
  const Tensor xc = prepared(x), wc = prepared(weight);
  const std::optional<Tensor> bc = bias ? std::optional<Tensor>(prepared(*bias)) : std::nullopt;
  Tensor y = new_empty(xc, s.result);
  if (y.numel() == 0) return y;
  const T *const from = in_ptr<T>(xc), *const w = in_ptr<T>(wc);
  const T* const b = bc ? in_ptr<T>(*bc) : nullptr;
  T* const to = out_ptr<T>(y);
  const int64_t grain = grain_of(kPanelWidth * s.in * s.batch);
  parallel_units(s.out, kPanelWidth, grain, [&](int64_t begin, int64_t end) {
    k.linear_leaky_relu(s, from, w, b, negative_slope, begin, end, scratch<T>(), to);
  });
  return y;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const LinearKernels<T>& k, const LinearSizes& s,
                                            const Tensor& grad, const Tensor& x,
                                            const Tensor& weight, const Tensor& sign,
                                            double negative_slope, const LinearNeeds& need) {
  const Tensor gc = prepared(grad), sc = prepared(sign);
  const std::vector<int64_t> none{0}, bias_sizes{s.out};
  Tensor grad_pre = new_empty(gc, s.result);
  Tensor grad_x = new_empty(gc, need.x ? sizes_of(x) : none);
  Tensor grad_weight = new_empty(gc, need.weight ? sizes_of(weight) : none);
  Tensor grad_bias = new_empty(gc, need.bias ? bias_sizes : none);
  const T *const g = in_ptr<T>(gc), *const f = in_ptr<T>(sc);
  T* const pre = out_ptr<T>(grad_pre);
  T* const to_bias = need.bias ? out_ptr<T>(grad_bias) : nullptr;
  if (grad_pre.numel() > 0 || need.bias) {
    parallel_units(s.out, 64, grain_of(64 * s.batch), [&](int64_t begin, int64_t end) {
      k.leaky_relu_backward(s, g, f, negative_slope, begin, end, pre, to_bias);
    });
  }
  // Where the gradient has elements, the weight and the batch are too few to overflow this.
  const auto grain = [&] { return grain_of(kPanelWidth * s.batch * s.out); };
  if (grad_x.numel() > 0) {
    const Tensor wc = prepared(weight);
    const T* const w = in_ptr<T>(wc);
    T* const to = out_ptr<T>(grad_x);
    parallel_units(s.in, kPanelWidth, grain(), [&](int64_t begin, int64_t end) {
      k.linear_grad_x(s, pre, w, begin, end, scratch<T>(), to);
    });
  }
  if (grad_weight.numel() > 0) {
    const Tensor xc = prepared(x);
    const T* const from = in_ptr<T>(xc);
    T* const to = out_ptr<T>(grad_weight);
    parallel_units(s.in, kPanelWidth, grain(), [&](int64_t begin, int64_t end) {
      k.linear_grad_weight(s, pre, from, begin, end, scratch<T>(), to);
    });
  }
  return {grad_x, grad_weight, grad_bias};
}

struct LinearOnCpu {
  static Tensor forward(const LinearSizes& s, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, double negative_slope,
                        const Dropout& drop) {
    const ScalarType dtype = x.scalar_type();
    STD_TORCH_CHECK(is_floating(dtype), "x must be float32, float64 or bfloat16");
    Tensor y = dtype == ScalarType::Double
                   ? cpu::forward<double>(kernels().linear_f64, s, x, weight, bias, negative_slope)
                   : cpu::forward<float>(kernels().linear_f32, s, x, weight, bias, negative_slope);
    if (dtype != y.scalar_type()) y = torch::stable::to(y, dtype);
    return drop.counter.value == nullptr ? y : dropped(drop, y);
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(const LinearSizes& s, const Tensor& grad,
                                                     const Tensor& x, const Tensor& weight,
                                                     const Tensor& sign, double negative_slope,
                                                     const LinearNeeds& need, const Dropout& drop) {
    const ScalarType dtype = x.scalar_type();
    STD_TORCH_CHECK(is_floating(dtype), "x must be float32, float64 or bfloat16");
    const Tensor kept = drop.counter.value == nullptr ? grad : dropped(drop, grad);
    if (dtype == ScalarType::Double) {
      return cpu::backward<double>(kernels().linear_f64, s, kept, x, weight, sign, negative_slope,
                                   need);
    }
    auto [grad_x, grad_weight, grad_bias] =
        cpu::backward<float>(kernels().linear_f32, s, kept, x, weight, sign, negative_slope, need);
    if (dtype == ScalarType::Float) return {grad_x, grad_weight, grad_bias};
    return {torch::stable::to(grad_x, dtype), torch::stable::to(grad_weight, dtype),
            torch::stable::to(grad_bias, dtype)};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { LinearOperators<LinearOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
