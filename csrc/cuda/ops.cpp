// The CUDA operators: checks, allocation, launches on torch's current stream, registration.
#include <cuda_runtime_api.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "access.h"
#include "checks.h"
#include "cuda/launch.h"
#include "cuda/on_device.h"

namespace fastgan::cuda {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

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

// a b by torch, contiguous and of a's dtype: autocast, where it is on, reaches inside an operator.
Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor c = contiguous(torch::stable::matmul(a, b));
  return c.scalar_type() == a.scalar_type() ? c : torch::stable::to(c, a.scalar_type());
}

Tensor as_vector(const Tensor& t) {
  return torch::stable::reshape(t, std::vector<int64_t>{t.numel()});
}

// --- Linear layer with a leaky rectifier ---

// FASTGAN_LINEAR=tiles takes our own products, in fewer launches, where a layer is too small to
// fill the device; otherwise, and by default, the products are torch's, which obey its settings.
bool wants_tiles() {
  static const bool wanted = [] {
    const char* choice = std::getenv("FASTGAN_LINEAR");
    const std::string text = choice ? choice : "";
    STD_TORCH_CHECK(text.empty() || text == "library" || text == "tiles", "FASTGAN_LINEAR is '",
                    text, "'; set it to library or tiles, or unset it");
    return text == "tiles";
  }();
  return wanted;
}

// A rule of shapes and dtypes alone: equal calls give equal bits.
bool takes_tiles(ScalarType dtype, const LinearSizes& s) {
  constexpr int64_t kMostSum = 2048, kMostProducts = int64_t{1} << 26;
  return wants_tiles() && dtype != ScalarType::Double && s.batch <= kMostSum && s.in <= kMostSum &&
         s.out <= kMostSum && s.batch * s.in * s.out <= kMostProducts;
}

// `dispatch` among the types that the tiles take.
template <class F>
void dispatch_tiles(ScalarType dtype, const F& f) {
  dispatch(dtype, "x", [&](auto tag) {
    if constexpr (!std::is_same_v<decltype(tag), double>) f(tag);
  });
}

Tensor forward_tiles(const LinearSizes& s, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, double negative_slope, const Dropout& drop,
                     cudaStream_t stream) {
  const Tensor xc = contiguous(x), wc = contiguous(weight);
  const std::optional<Tensor> bc = bias ? std::optional<Tensor>(contiguous(*bias)) : std::nullopt;
  Tensor y = new_empty(x, s.result);
  dispatch_tiles(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(linear_tiles<T>({s.batch, s.in, s.out}, in_ptr<T>(xc), in_ptr<T>(wc),
                                   bc ? in_ptr<T>(*bc) : nullptr, negative_slope, drop,
                                   out_ptr<T>(y), stream));
  });
  return y;
}

void backward_tiles(const LinearSizes& s, const Tensor& grad_pre, const Tensor& x,
                    const Tensor& weight, Tensor* grad_x, Tensor* grad_weight,
                    cudaStream_t stream) {
  const Tensor xc = contiguous(x), wc = contiguous(weight);
  dispatch_tiles(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(
        linear_backward_tiles<T>({s.batch, s.in, s.out}, in_ptr<T>(grad_pre), in_ptr<T>(xc),
                                 in_ptr<T>(wc), grad_x ? out_ptr<T>(*grad_x) : nullptr,
                                 grad_weight ? out_ptr<T>(*grad_weight) : nullptr, stream));
  });
}

// The layer of checked arguments, with a dropout of its result.
Tensor forward(const LinearSizes& s, const Tensor& x, const Tensor& weight,
               const std::optional<Tensor>& bias, double negative_slope, const Dropout& drop) {
  const OnDeviceOf device(x);
  if (takes_tiles(x.scalar_type(), s)) {
    return forward_tiles(s, x, weight, bias, negative_slope, drop, device.stream());
  }
  Tensor y = torch::stable::reshape(product(as_matrix(detached(x), s.batch, s.in),
                                            torch::stable::transpose(detached(weight), 0, 1)),
                                    s.result);
  const std::optional<Tensor> bc = bias ? std::optional<Tensor>(contiguous(*bias)) : std::nullopt;
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(bias_leaky_relu<T>(out_ptr<T>(y), bc ? in_ptr<T>(*bc) : nullptr, s.batch, s.out,
                                      negative_slope, drop, device.stream()));
  });
  return y;
}

Tensor linear_leaky_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         double negative_slope) {
  const LinearSizes s = check_linear(x, weight, bias, negative_slope);
  return forward(s, x, weight, bias, negative_slope, {});
}

// The derivative of `forward`.
std::tuple<Tensor, Tensor, Tensor> backward(const LinearSizes& s, const Tensor& grad,
                                            const Tensor& x, const Tensor& weight,
                                            const Tensor& sign, double negative_slope, bool need_x,
                                            bool need_weight, bool need_bias, const Dropout& drop) {
  const OnDeviceOf device(x);
  const Tensor gc = contiguous(grad), sc = contiguous(sign);
  const std::vector<int64_t> none{0};
  Tensor grad_pre = new_empty(grad, std::vector<int64_t>{s.batch, s.out});
  Tensor grad_bias = new_empty(weight, none);
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    if (!need_bias) {
      STD_CUDA_CHECK(leaky_relu_backward<T>(in_ptr<T>(gc), in_ptr<T>(sc), s.batch, s.out,
                                            negative_slope, drop, out_ptr<T>(grad_pre),
                                            device.stream()));
      return;
    }
    using A = arithmetic_t<T>;
    constexpr ScalarType wide = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
    Tensor sums = new_empty(weight, std::vector<int64_t>{strips_of(s.batch), s.out}, wide);
    STD_CUDA_CHECK(leaky_relu_bias_backward<T>(in_ptr<T>(gc), in_ptr<T>(sc), s.batch, s.out,
                                               negative_slope, drop, out_ptr<T>(grad_pre),
                                               out_ptr<A>(sums), device.stream()));
    grad_bias =
        sums.size(0) == 1 ? as_vector(sums) : torch::stable::sum(sums, std::vector<int64_t>{0});
    if (wide != x.scalar_type()) grad_bias = torch::stable::to(grad_bias, x.scalar_type());
  });
  if (takes_tiles(x.scalar_type(), s)) {
    Tensor grad_x = new_empty(x, need_x ? sizes_of(x) : none);
    Tensor grad_weight = new_empty(weight, need_weight ? sizes_of(weight) : none);
    backward_tiles(s, grad_pre, x, weight, need_x ? &grad_x : nullptr,
                   need_weight ? &grad_weight : nullptr, device.stream());
    return {grad_x, grad_weight, grad_bias};
  }
  Tensor grad_x = need_x ? torch::stable::reshape(product(grad_pre, detached(weight)), sizes_of(x))
                         : new_empty(x, none);
  Tensor grad_weight = need_weight ? product(torch::stable::transpose(grad_pre, 0, 1),
                                             as_matrix(detached(x), s.batch, s.in))
                                   : new_empty(weight, none);
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> linear_leaky_relu_backward(const Tensor& grad, const Tensor& x,
                                                              const Tensor& weight,
                                                              const Tensor& sign,
                                                              double negative_slope, bool need_x,
                                                              bool need_weight, bool need_bias) {
  const LinearSizes s = check_linear(x, weight, std::nullopt, negative_slope);
  check_linear_backward(s, grad, sign, x);
  return backward(s, grad, x, weight, sign, negative_slope, need_x, need_weight, need_bias, {});
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

// What a launch over lists of tensors takes: their pointers and sizes.
template <class T>
std::vector<T*> pointers(const std::vector<Tensor>& tensors) {
  std::vector<T*> found;
  for (const Tensor& t : tensors) found.push_back(out_ptr<T>(t));
  return found;
}
std::vector<int64_t> numels(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> found;
  for (const Tensor& t : tensors) found.push_back(t.numel());
  return found;
}

// Calls run(AdamTensors<T>) with T the dtype of the parameters; they are not empty.
template <class Run>
void with_adam_tensors(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                       const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                       const Run& run) {
  const auto with = [&](auto tag) {
    using T = decltype(tag);
    // The kernels only read the gradients, whatever the type of the table.
    const auto p = pointers<T>(params), m = pointers<T>(exp_avgs), v = pointers<T>(exp_avg_sqs);
    std::vector<T*> g;
    for (const Tensor& t : grads) g.push_back(const_cast<T*>(in_ptr<T>(t)));
    const std::vector<int64_t> sizes = numels(params);
    const auto count = static_cast<int64_t>(params.size());
    STD_CUDA_CHECK(
        run(AdamTensors<T>{p.data(), m.data(), v.data(), g.data(), sizes.data(), count}));
  };
  params[0].scalar_type() == ScalarType::Float ? with(float{}) : with(double{});
}

void adam_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
           const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
           int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
           bool decoupled) {
  check_adam(params, grads, exp_avgs, exp_avg_sqs, step);
  if (params.empty()) return;
  const OnDeviceOf device(params[0]);
  with_adam_tensors(
      params, grads, exp_avgs, exp_avg_sqs, [&]<class T>(const AdamTensors<T>& tensors) {
        return adam<T>(make_adam<T>(step, lr, beta1, beta2, eps, weight_decay, decoupled), tensors,
                       device.stream());
      });
}

const float* number_or_null(const std::optional<Tensor>& t) {
  return t ? in_ptr<float>(*t) : nullptr;
}

void adam_device_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                  const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                  const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                  double weight_decay, bool decoupled, const std::optional<Tensor>& grad_scale,
                  const std::optional<Tensor>& found_inf) {
  check_adam_device(params, grads, exp_avgs, exp_avg_sqs, step, lr, grad_scale, found_inf);
  if (params.empty()) return;
  const OnDeviceOf device(params[0]);
  const bool wide = lr.scalar_type() == ScalarType::Double;
  const AdamOnDevice d{in_ptr<float>(step),
                       wide ? nullptr : in_ptr<float>(lr),
                       wide ? in_ptr<double>(lr) : nullptr,
                       number_or_null(grad_scale),
                       number_or_null(found_inf),
                       beta1,
                       beta2,
                       eps,
                       weight_decay,
                       decoupled};
  with_adam_tensors(params, grads, exp_avgs, exp_avg_sqs,
                    [&]<class T>(const AdamTensors<T>& tensors) {
                      return adam_device<T>(d, tensors, device.stream());
                    });
}

void ema_(const std::vector<Tensor>& averages, const std::vector<Tensor>& values, double decay) {
  check_ema(averages, values, decay);
  if (averages.empty()) return;
  const OnDeviceOf device(averages[0]);
  dispatch(averages[0].scalar_type(), "averages", [&](auto tag) {
    using T = decltype(tag);
    const auto a = pointers<T>(averages);
    std::vector<T*> v;
    for (const Tensor& t : values) v.push_back(const_cast<T*>(in_ptr<T>(t)));
    const std::vector<int64_t> sizes = numels(averages);
    STD_CUDA_CHECK(ema<T>(a.data(), v.data(), sizes.data(), static_cast<int64_t>(a.size()), decay,
                          device.stream()));
  });
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
  STD_CUDA_CHECK(philox_normal(g, {}, out.numel(), out_ptr<float>(out), device.stream()));
}

void philox_keep_mask_op(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                         int64_t threshold) {
  const Philox g = check_keep_mask(out, seed, stream, step, threshold);
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_keep_mask(g, {}, out.numel(), static_cast<uint32_t>(threshold),
                                  out_ptr<bool>(out), device.stream()));
}

Counter counter_of(const Tensor& counter, int64_t multiplier, int64_t offset) {
  return {in_ptr<int64_t>(counter), multiplier, offset};
}

void philox_normal_at(const Tensor& out, int64_t seed, int64_t stream, const Tensor& counter,
                      int64_t multiplier, int64_t offset) {
  const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, 0, out.numel());
  check_counter(counter, out, "out");
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_normal(g, counter_of(counter, multiplier, offset), out.numel(),
                               out_ptr<float>(out), device.stream()));
}

void philox_keep_mask_at(const Tensor& out, int64_t seed, int64_t stream, const Tensor& counter,
                         int64_t multiplier, int64_t offset, int64_t threshold) {
  const Philox g = check_keep_mask(out, seed, stream, 0, threshold);
  check_counter(counter, out, "out");
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(philox_keep_mask(g, counter_of(counter, multiplier, offset), out.numel(),
                                  static_cast<uint32_t>(threshold), out_ptr<bool>(out),
                                  device.stream()));
}

// The mask of `elements` on the device of x.
Dropout dropout_of(const Tensor& x, int64_t elements, int64_t threshold, int64_t seed,
                   int64_t stream, const Tensor& counter, int64_t multiplier, int64_t offset,
                   int64_t start) {
  return {check_dropout(x, elements, counter, seed, stream, start, threshold),
          counter_of(counter, multiplier, offset), start, static_cast<uint32_t>(threshold)};
}

Tensor dropout_at(const Tensor& x, int64_t threshold, int64_t seed, int64_t stream,
                  const Tensor& counter, int64_t multiplier, int64_t offset, int64_t start) {
  const Dropout drop =
      dropout_of(x, x.numel(), threshold, seed, stream, counter, multiplier, offset, start);
  const OnDeviceOf device(x);
  const Tensor xc = contiguous(x);
  Tensor y = new_empty(x, sizes_of(x));
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(dropout<T>(drop, x.numel(), in_ptr<T>(xc), out_ptr<T>(y), device.stream()));
  });
  return y;
}

Tensor linear_leaky_relu_dropout_at(const Tensor& x, const Tensor& weight,
                                    const std::optional<Tensor>& bias, double negative_slope,
                                    int64_t threshold, int64_t seed, int64_t stream,
                                    const Tensor& counter, int64_t multiplier, int64_t offset,
                                    int64_t start) {
  const LinearSizes s = check_linear(x, weight, bias, negative_slope);
  return forward(
      s, x, weight, bias, negative_slope,
      dropout_of(x, s.batch * s.out, threshold, seed, stream, counter, multiplier, offset, start));
}

std::tuple<Tensor, Tensor, Tensor> linear_leaky_relu_dropout_backward_at(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& sign,
    double negative_slope, bool need_x, bool need_weight, bool need_bias, int64_t threshold,
    int64_t seed, int64_t stream, const Tensor& counter, int64_t multiplier, int64_t offset,
    int64_t start) {
  const LinearSizes s = check_linear(x, weight, std::nullopt, negative_slope);
  check_linear_backward(s, grad, sign, x);
  return backward(
      s, grad, x, weight, sign, negative_slope, need_x, need_weight, need_bias,
      dropout_of(grad, grad.numel(), threshold, seed, stream, counter, multiplier, offset, start));
}

// --- Batches ---

void gather_normalize_op(const Tensor& out, const Tensor& pixels, const Tensor& order,
                         const Tensor& counter, int64_t multiplier, int64_t offset, int64_t batch,
                         int64_t batches_per_epoch) {
  const GatherSizes s = check_gather(out, pixels, order, counter, batch, batches_per_epoch);
  const OnDeviceOf device(out);
  const Gather gather{s.rows,
                      s.channels,
                      s.plane,
                      s.channels_last,
                      pixels.size(0),
                      order.size(0),
                      batch,
                      batches_per_epoch,
                      in_ptr<int64_t>(order),
                      counter_of(counter, multiplier, offset)};
  dispatch_gather(pixels, out, [&](auto pixel, auto element) {
    using Pixel = decltype(pixel);
    using T = decltype(element);
    STD_CUDA_CHECK((gather_normalize<Pixel, T>(gather, in_ptr<Pixel>(pixels), out_ptr<T>(out),
                                               device.stream())));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) {
  m.impl("linear_leaky_relu", TORCH_BOX(&linear_leaky_relu));
  m.impl("linear_leaky_relu_backward", TORCH_BOX(&linear_leaky_relu_backward));
  m.impl("discriminator_loss", TORCH_BOX(&discriminator_loss));
  m.impl("generator_loss", TORCH_BOX(&generator_loss));
  m.impl("adam_", TORCH_BOX(&adam_));
  m.impl("philox_words", TORCH_BOX(&philox_words_op));
  m.impl("philox_uniform", TORCH_BOX(&philox_uniform_op));
  m.impl("philox_normal", TORCH_BOX(&philox_normal_op));
  m.impl("philox_keep_mask", TORCH_BOX(&philox_keep_mask_op));
  m.impl("philox_normal_at", TORCH_BOX(&philox_normal_at));
  m.impl("philox_keep_mask_at", TORCH_BOX(&philox_keep_mask_at));
  m.impl("dropout_at", TORCH_BOX(&dropout_at));
  m.impl("linear_leaky_relu_dropout_at", TORCH_BOX(&linear_leaky_relu_dropout_at));
  m.impl("linear_leaky_relu_dropout_backward_at",
         TORCH_BOX(&linear_leaky_relu_dropout_backward_at));
  m.impl("gather_normalize", TORCH_BOX(&gather_normalize_op));
  m.impl("adam_device_", TORCH_BOX(&adam_device_));
  m.impl("ema_", TORCH_BOX(&ema_));
}

}  // namespace fastgan::cuda
