// The CUDA operators: checks, allocation, launches on torch's current stream, registration.
#include <cuda_runtime_api.h>

#include <array>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/launch.h"

namespace fastgan::cuda {

namespace {

using torch::stable::contiguous;
using torch::stable::matmul;
using torch::stable::new_empty;

// The device of a tensor made current, and torch's stream on it.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <class T>
const T* in_ptr(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* out_ptr(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Calls f with a value of the type that holds elements of `dtype`.
template <class F>
void dispatch(ScalarType dtype, const char* name, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      f(float{});
      break;
    case ScalarType::Double:
      f(double{});
      break;
    case ScalarType::BFloat16:
      f(bf16{});
      break;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64 or bfloat16");
  }
}

// The same values outside autograd: torch's operations below must not record a derivative of
// their own, which would be that of a part of the operator.
Tensor detached(const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor as_matrix(const Tensor& t, int64_t rows, int64_t columns) {
  return torch::stable::reshape(t, std::vector<int64_t>{rows, columns});
}

// --- Linear layer with a leaky rectifier: the products are torch's ---

Tensor linear_leaky_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         double negative_slope) {
  const LinearSizes s = check_linear(x, weight, bias, negative_slope);
  const OnDeviceOf device(x);
  const Tensor product = matmul(as_matrix(detached(x), s.batch, s.in),
                                torch::stable::transpose(detached(weight), 0, 1));
  Tensor y = torch::stable::reshape(contiguous(product), s.result);
  const std::optional<Tensor> bc = bias ? std::optional<Tensor>(contiguous(*bias)) : std::nullopt;
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(bias_leaky_relu<T>(out_ptr<T>(y), bc ? in_ptr<T>(*bc) : nullptr, s.batch, s.out,
                                      negative_slope, device.stream()));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> linear_leaky_relu_backward(const Tensor& grad, const Tensor& x,
                                                              const Tensor& weight,
                                                              const Tensor& sign,
                                                              double negative_slope, bool need_x,
                                                              bool need_weight, bool need_bias) {
  const LinearSizes s = check_linear(x, weight, std::nullopt, negative_slope);
  check_linear_backward(s, grad, sign, x);
  const OnDeviceOf device(x);
  const Tensor gc = contiguous(grad), sc = contiguous(sign);
  const std::vector<int64_t> none{0};
  Tensor grad_pre = new_empty(grad, std::vector<int64_t>{s.batch, s.out});
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(leaky_relu_backward<T>(in_ptr<T>(gc), in_ptr<T>(sc), grad.numel(),
                                          negative_slope, out_ptr<T>(grad_pre), device.stream()));
  });
  Tensor grad_x =
      need_x ? torch::stable::reshape(contiguous(matmul(grad_pre, detached(weight))), sizes_of(x))
             : new_empty(x, none);
  Tensor grad_weight = need_weight ? contiguous(matmul(torch::stable::transpose(grad_pre, 0, 1),
                                                       as_matrix(detached(x), s.batch, s.in)))
                                   : new_empty(weight, none);
  const std::vector<int64_t> rows{0};
  Tensor grad_bias = need_bias ? torch::stable::sum(grad_pre, rows) : new_empty(weight, none);
  return {grad_x, grad_weight, grad_bias};
}

// --- Minimax losses ---

template <class T>
BceTerm<T> term(const Tensor& logits, const Tensor& grad, double label, double sign) {
  const int64_t n = logits.numel();
  return {in_ptr<T>(logits), out_ptr<T>(grad), n, label, sign / static_cast<double>(n)};
}

Tensor loss_scalar(const Tensor& logits) {
  const bool wide = logits.scalar_type() == ScalarType::Double;
  return new_empty(logits, std::vector<int64_t>{}, wide ? ScalarType::Double : ScalarType::Float);
}

// `loss` of the term with every element type; `empty` says that a mean over nothing was asked for.
template <class Make>
void run_bce(const Tensor& like, const Tensor& loss, bool empty, cudaStream_t stream,
             const Make& make) {
  dispatch(like.scalar_type(), "the logits", [&](auto tag) {
    using T = decltype(tag);
    using Loss = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const auto [first, second] = make(tag);
    STD_CUDA_CHECK((bce<T, Loss>(first, second, out_ptr<Loss>(loss), stream)));
  });
  // nan, as torch's mean
  if (empty) torch::stable::fill_(loss, std::numeric_limits<double>::quiet_NaN());
}

std::tuple<Tensor, Tensor, Tensor> discriminator_loss(const Tensor& real_logits,
                                                      const Tensor& fake_logits, double real_label,
                                                      double fake_label) {
  check_like(fake_logits, "fake_logits", real_logits, "real_logits");
  const OnDeviceOf device(real_logits);
  const Tensor real = contiguous(real_logits), fake = contiguous(fake_logits);
  Tensor grad_real = new_empty(real_logits, sizes_of(real_logits));
  Tensor grad_fake = new_empty(fake_logits, sizes_of(fake_logits));
  Tensor loss = loss_scalar(real_logits);
  const bool empty = real.numel() == 0 || fake.numel() == 0;
  run_bce(real, loss, empty, device.stream(), [&](auto tag) {
    using T = decltype(tag);
    return std::pair(term<T>(real, grad_real, real_label, 1.0),
                     term<T>(fake, grad_fake, fake_label, 1.0));
  });
  return {loss, grad_real, grad_fake};
}

std::tuple<Tensor, Tensor> generator_loss(const Tensor& fake_logits, bool saturating) {
  const OnDeviceOf device(fake_logits);
  const Tensor fake = contiguous(fake_logits);
  Tensor grad = new_empty(fake_logits, sizes_of(fake_logits));
  Tensor loss = loss_scalar(fake_logits);
  run_bce(fake, loss, fake.numel() == 0, device.stream(), [&](auto tag) {
    using T = decltype(tag);
    return std::pair(term<T>(fake, grad, saturating ? 0.0 : 1.0, saturating ? -1.0 : 1.0),
                     BceTerm<T>{nullptr, nullptr, 0, 0.0, 0.0});
  });
  return {loss, grad};
}

// --- Adam ---

template <class T>
void run_adam(const Adam<T>& constants, const std::vector<Tensor>& params,
              const std::vector<Tensor>& grads, const std::vector<Tensor>& exp_avgs,
              const std::vector<Tensor>& exp_avg_sqs, cudaStream_t stream) {
  for (size_t i = 0; i < params.size(); ++i) {
    STD_CUDA_CHECK(adam<T>(constants, params[i].numel(), in_ptr<T>(grads[i]), out_ptr<T>(params[i]),
                           out_ptr<T>(exp_avgs[i]), out_ptr<T>(exp_avg_sqs[i]), stream));
  }
}

void adam_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
           const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
           int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
           bool decoupled) {
  check_adam(params, grads, exp_avgs, exp_avg_sqs, step);
  if (params.empty()) return;
  const OnDeviceOf device(params[0]);
  if (params[0].scalar_type() == ScalarType::Float) {
    run_adam<float>(make_adam<float>(step, lr, beta1, beta2, eps, weight_decay, decoupled), params,
                    grads, exp_avgs, exp_avg_sqs, device.stream());
  } else {
    run_adam<double>(make_adam<double>(step, lr, beta1, beta2, eps, weight_decay, decoupled),
                     params, grads, exp_avgs, exp_avg_sqs, device.stream());
  }
}

// --- Philox ---

void philox_words_op(const Tensor& out, int64_t seed, int64_t stream, int64_t step, int64_t start) {
  STD_TORCH_CHECK(start >= 0, "start is ", start, "; expected 0 or more");
  const Philox g =
      check_philox(out, ScalarType::Long, "int64", seed, stream, step, start + out.numel());
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_words(g, start, out.numel(), out_ptr<int64_t>(out), device.stream()));
}

void philox_uniform_op(const Tensor& out, int64_t seed, int64_t stream, int64_t step) {
  const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, step, out.numel());
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_uniform(g, out.numel(), out_ptr<float>(out), device.stream()));
}

void philox_normal_op(const Tensor& out, int64_t seed, int64_t stream, int64_t step) {
  const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, step, out.numel());
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_normal(g, out.numel(), out_ptr<float>(out), device.stream()));
}

void philox_keep_mask_op(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                         int64_t threshold) {
  const Philox g = check_keep_mask(out, seed, stream, step, threshold);
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_keep_mask(g, out.numel(), static_cast<uint32_t>(threshold),
                                  out_ptr<bool>(out), device.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CUDA, m) {
  m.impl("linear_leaky_relu", TORCH_BOX(&linear_leaky_relu));
  m.impl("linear_leaky_relu_backward", TORCH_BOX(&linear_leaky_relu_backward));
  m.impl("discriminator_loss", TORCH_BOX(&discriminator_loss));
  m.impl("generator_loss", TORCH_BOX(&generator_loss));
  m.impl("adam_", TORCH_BOX(&adam_));
  m.impl("philox_words", TORCH_BOX(&philox_words_op));
  m.impl("philox_uniform", TORCH_BOX(&philox_uniform_op));
  m.impl("philox_normal", TORCH_BOX(&philox_normal_op));
  m.impl("philox_keep_mask", TORCH_BOX(&philox_keep_mask_op));
}

}  // namespace fastgan::cuda
