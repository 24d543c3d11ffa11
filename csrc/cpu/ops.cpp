// The CPU operators: checks, allocation, division of the work among torch's threads, registration.
#include <new>
#include <tuple>

#include "access.h"
#include "checks.h"
#include "common/dropout.h"
#include "cpu/kernels.h"

namespace fastgan::cpu {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::parallel_for;

// kScratchBytes that belong to the calling thread. Kept from call to call: a fresh block of this
// size would be new pages every time.
template <class T>
T* scratch() {
  struct Aligned {
    void* data = ::operator new(kScratchBytes, std::align_val_t{64});
    ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
  };
  static thread_local const Aligned memory;
  return static_cast<T*>(memory.data);
}

int64_t units_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// f(begin, end) over [0, n) in pieces that start at multiples of `unit`; at least `grain` units
// go to a thread.
template <class F>
void parallel_units(int64_t n, int64_t unit, int64_t grain, const F& f) {
  if (n == 0) return;
  parallel_for(0, units_of(n, unit), grain, [&](int64_t first, int64_t last) {
    f(first * unit, last * unit < n ? last * unit : n);
  });
}

std::string isa_op() { return isa_name(isa()); }

// --- Linear layer with a leaky rectifier ---

// A thread is worth waking for about this many multiplications.
constexpr int64_t kGrainFlops = 1 << 17;

int64_t grain_of(int64_t flops_per_unit) {
  return flops_per_unit > 0 ? kGrainFlops / flops_per_unit + 1 : 1;
}

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
  const LinearShape shape{s.batch, s.in, s.out};
  const Tensor xc = prepared(x), wc = prepared(weight);
  const std::optional<Tensor> bc = bias ? std::optional<Tensor>(prepared(*bias)) : std::nullopt;
  Tensor y = new_empty(xc, s.result);
  const int64_t grain = grain_of(kPanelWidth * s.in * s.batch);
  parallel_units(s.out, kPanelWidth, grain, [&](int64_t begin, int64_t end) {
    k.linear_leaky_relu(shape, in_ptr<T>(xc), in_ptr<T>(wc), bc ? in_ptr<T>(*bc) : nullptr,
                        negative_slope, begin, end, scratch<T>(), out_ptr<T>(y));
  });
  return y;
}

Tensor linear_leaky_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         double negative_slope) {
  const LinearSizes s = check_linear(x, weight, bias, negative_slope);
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(is_floating(dtype), "x must be float32, float64 or bfloat16");
  Tensor y = dtype == ScalarType::Double
                 ? forward<double>(kernels().linear_f64, s, x, weight, bias, negative_slope)
                 : forward<float>(kernels().linear_f32, s, x, weight, bias, negative_slope);
  return dtype == y.scalar_type() ? y : torch::stable::to(y, dtype);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const LinearKernels<T>& k, const LinearSizes& s,
                                            const Tensor& grad, const Tensor& x,
                                            const Tensor& weight, const Tensor& sign,
                                            double negative_slope, bool need_x, bool need_weight,
                                            bool need_bias) {
  const LinearShape shape{s.batch, s.in, s.out};
  const Tensor gc = prepared(grad), sc = prepared(sign);
  const std::vector<int64_t> none{0}, bias_sizes{s.out};
  Tensor grad_pre = new_empty(gc, s.result);
  Tensor grad_x = new_empty(gc, need_x ? sizes_of(x) : none);
  Tensor grad_weight = new_empty(gc, need_weight ? sizes_of(weight) : none);
  Tensor grad_bias = new_empty(gc, need_bias ? bias_sizes : none);
  parallel_units(s.out, 64, grain_of(64 * s.batch), [&](int64_t begin, int64_t end) {
    k.leaky_relu_backward(shape, in_ptr<T>(gc), in_ptr<T>(sc), negative_slope, begin, end,
                          out_ptr<T>(grad_pre), need_bias ? out_ptr<T>(grad_bias) : nullptr);
  });
  const int64_t grain = grain_of(kPanelWidth * s.batch * s.out);
  if (need_x) {
    const Tensor wc = prepared(weight);
    parallel_units(s.in, kPanelWidth, grain, [&](int64_t begin, int64_t end) {
      k.linear_grad_x(shape, in_ptr<T>(grad_pre), in_ptr<T>(wc), begin, end, scratch<T>(),
                      out_ptr<T>(grad_x));
    });
  }
  if (need_weight) {
    const Tensor xc = prepared(x);
    parallel_units(s.in, kPanelWidth, grain, [&](int64_t begin, int64_t end) {
      k.linear_grad_weight(shape, in_ptr<T>(grad_pre), in_ptr<T>(xc), begin, end, scratch<T>(),
                           out_ptr<T>(grad_weight));
    });
  }
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> linear_leaky_relu_backward(const Tensor& grad, const Tensor& x,
                                                              const Tensor& weight,
                                                              const Tensor& sign,
                                                              double negative_slope, bool need_x,
                                                              bool need_weight, bool need_bias) {
  const LinearSizes s = check_linear(x, weight, std::nullopt, negative_slope);
  check_linear_backward(s, grad, sign, x);
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(is_floating(dtype), "x must be float32, float64 or bfloat16");
  if (dtype == ScalarType::Double) {
    return backward<double>(kernels().linear_f64, s, grad, x, weight, sign, negative_slope, need_x,
                            need_weight, need_bias);
  }
  auto [grad_x, grad_weight, grad_bias] =
      backward<float>(kernels().linear_f32, s, grad, x, weight, sign, negative_slope, need_x,
                      need_weight, need_bias);
  if (dtype == ScalarType::Float) return {grad_x, grad_weight, grad_bias};
  return {torch::stable::to(grad_x, dtype), torch::stable::to(grad_weight, dtype),
          torch::stable::to(grad_bias, dtype)};
}

// --- Minimax losses ---

// The loss of each piece of this size is summed by itself and the pieces in order, whatever the
// number of threads.
constexpr int64_t kLossChunk = 4096;

template <class T, class Kernel>
double bce_sum(Kernel kernel, const Tensor& logits, double label, double scale,
               const Tensor& grad) {
  const int64_t n = logits.numel();
  std::vector<double> sums(static_cast<size_t>(units_of(n, kLossChunk)));
  parallel_units(n, kLossChunk, 4, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kLossChunk) {
      const int64_t count = end - at < kLossChunk ? end - at : kLossChunk;
      sums[static_cast<size_t>(at / kLossChunk)] =
          kernel(in_ptr<T>(logits) + at, count, label, scale, out_ptr<T>(grad) + at);
    }
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

// sign * mean bce(logits, label), and in grad its gradient. nan for no logits, as torch's mean.
double bce(const Tensor& logits, double label, double sign, const Tensor& grad) {
  const double scale = sign / static_cast<double>(logits.numel());
  const Tensor lc = contiguous(logits);
  const Kernels& k = kernels();
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return scale * bce_sum<float>(k.bce_f32, lc, label, scale, grad);
    case ScalarType::Double:
      return scale * bce_sum<double>(k.bce_f64, lc, label, scale, grad);
    case ScalarType::BFloat16:
      return scale * bce_sum<bf16>(k.bce_bf16, lc, label, scale, grad);
    default:
      STD_TORCH_CHECK(false, "the logits must be float32, float64 or bfloat16");
  }
}

Tensor loss_scalar(const Tensor& logits, double value) {
  const bool wide = logits.scalar_type() == ScalarType::Double;
  Tensor loss =
      new_empty(logits, std::vector<int64_t>{}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    *out_ptr<double>(loss) = value;
  } else {
    *out_ptr<float>(loss) = static_cast<float>(value);
  }
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> discriminator_loss(const Tensor& real_logits,
                                                      const Tensor& fake_logits, double real_label,
                                                      double fake_label) {
  check_like(fake_logits, "fake_logits", real_logits, "real_logits");
  Tensor grad_real = new_empty(real_logits, sizes_of(real_logits));
  Tensor grad_fake = new_empty(fake_logits, sizes_of(fake_logits));
  const double loss =
      bce(real_logits, real_label, 1.0, grad_real) + bce(fake_logits, fake_label, 1.0, grad_fake);
  return {loss_scalar(real_logits, loss), grad_real, grad_fake};
}

std::tuple<Tensor, Tensor> generator_loss(const Tensor& fake_logits, bool saturating) {
  Tensor grad = new_empty(fake_logits, sizes_of(fake_logits));
  const double loss =
      saturating ? bce(fake_logits, 0.0, -1.0, grad) : bce(fake_logits, 1.0, 1.0, grad);
  return {loss_scalar(fake_logits, loss), grad};
}

// --- Adam ---

template <class T, class Kernel>
void run_adam(Kernel kernel, const Adam<T>& constants, const std::vector<Tensor>& params,
              const std::vector<Tensor>& grads, const std::vector<Tensor>& exp_avgs,
              const std::vector<Tensor>& exp_avg_sqs) {
  constexpr int64_t kUnit = 4096;
  // Units of all tensors in one range, so that many small tensors wake the threads once.
  std::vector<int64_t> first{0};
  for (const Tensor& p : params) first.push_back(first.back() + units_of(p.numel(), kUnit));
  parallel_for(0, first.back(), 4, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t from = begin > first[i] ? begin - first[i] : 0;
      const int64_t n = params[i].numel();
      const int64_t to = (end < first[i + 1] ? end - first[i] : first[i + 1] - first[i]) * kUnit;
      const int64_t at = from * kUnit, stop = to < n ? to : n;
      if (at >= stop) continue;
      kernel(constants, stop - at, in_ptr<T>(grads[i]) + at, out_ptr<T>(params[i]) + at,
             out_ptr<T>(exp_avgs[i]) + at, out_ptr<T>(exp_avg_sqs[i]) + at);
    }
  });
}

void adam_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
           const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
           int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
           bool decoupled) {
  check_adam(params, grads, exp_avgs, exp_avg_sqs, step);
  if (params.empty()) return;
  if (params[0].scalar_type() == ScalarType::Float) {
    run_adam<float>(kernels().adam_f32,
                    make_adam<float>(step, lr, beta1, beta2, eps, weight_decay, decoupled), params,
                    grads, exp_avgs, exp_avg_sqs);
  } else {
    run_adam<double>(kernels().adam_f64,
                     make_adam<double>(step, lr, beta1, beta2, eps, weight_decay, decoupled),
                     params, grads, exp_avgs, exp_avg_sqs);
  }
}

void adam_device_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                  const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                  const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                  double weight_decay, bool decoupled, const std::optional<Tensor>& grad_scale,
                  const std::optional<Tensor>& found_inf) {
  check_adam_device(params, grads, exp_avgs, exp_avg_sqs, step, lr, grad_scale, found_inf);
  if (params.empty() || (found_inf && *in_ptr<float>(*found_inf) != 0.f)) return;
  const double rate =
      lr.scalar_type() == ScalarType::Double ? *in_ptr<double>(lr) : *in_ptr<float>(lr);
  const auto number = static_cast<int64_t>(*in_ptr<float>(step));
  if (!grad_scale || *in_ptr<float>(*grad_scale) == 1.f) {
    adam_(params, grads, exp_avgs, exp_avg_sqs, number, rate, beta1, beta2, eps, weight_decay,
          decoupled);
    return;
  }
  std::vector<Tensor> unscaled;
  for (const Tensor& grad : grads) {
    unscaled.push_back(new_empty(grad, sizes_of(grad)));
    dispatch(grad.scalar_type(), "grads", [&](auto tag) {
      using T = decltype(tag);
      const auto scale = static_cast<arithmetic_t<T>>(*in_ptr<float>(*grad_scale));
      const T* from = in_ptr<T>(grad);
      T* to = out_ptr<T>(unscaled.back());
      for (int64_t i = 0; i < grad.numel(); ++i) store(to + i, widen(from[i]) / scale);
    });
  }
  adam_(params, unscaled, exp_avgs, exp_avg_sqs, number, rate, beta1, beta2, eps, weight_decay,
        decoupled);
}

// The average moved towards the value, from the nearer end, as torch.lerp.
void ema_(const std::vector<Tensor>& averages, const std::vector<Tensor>& values, double decay) {
  check_ema(averages, values, decay);
  for (size_t i = 0; i < averages.size(); ++i) {
    dispatch(averages[i].scalar_type(), "averages", [&](auto tag) {
      using T = decltype(tag);
      using A = arithmetic_t<T>;
      T* average = out_ptr<T>(averages[i]);
      const T* value = in_ptr<T>(values[i]);
      const A share = static_cast<A>(1.0 - decay);
      parallel_units(averages[i].numel(), 4096, 4, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
          const A from = widen(average[j]), to = widen(value[j]), way = to - from;
          store(average + j, share < A(0.5) ? from + share * way : to - way * (A(1) - share));
        }
      });
    });
  }
}

// --- Philox ---

constexpr int64_t kPhiloxUnit = 256, kPhiloxGrain = 64;

void philox_words(const Tensor& out, int64_t seed, int64_t stream, int64_t step, int64_t start) {
  STD_TORCH_CHECK(start >= 0, "start is ", start, "; expected 0 or more");
  const Philox g =
      check_philox(out, ScalarType::Long, "int64", seed, stream, step, start + out.numel());
  const Kernels& k = kernels();
  parallel_units(out.numel(), kPhiloxUnit, kPhiloxGrain, [&](int64_t begin, int64_t end) {
    k.philox_words(g, start + begin, end - begin, out_ptr<int64_t>(out) + begin);
  });
}

void philox_uniform(const Tensor& out, int64_t seed, int64_t stream, int64_t step) {
  const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, step, out.numel());
  const Kernels& k = kernels();
  parallel_units(out.numel(), kPhiloxUnit, kPhiloxGrain, [&](int64_t begin, int64_t end) {
    k.philox_uniform(g, begin, end - begin, out_ptr<float>(out) + begin);
  });
}

void philox_normal(const Tensor& out, int64_t seed, int64_t stream, int64_t step) {
  const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, step, out.numel());
  const Kernels& k = kernels();
  parallel_units(out.numel(), kPhiloxUnit, kPhiloxGrain, [&](int64_t begin, int64_t end) {
    k.philox_normal(g, begin, end - begin, out_ptr<float>(out) + begin);
  });
}

void philox_keep_mask(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                      int64_t threshold) {
  const Philox g = check_keep_mask(out, seed, stream, step, threshold);
  const Kernels& k = kernels();
  parallel_units(out.numel(), kPhiloxUnit, kPhiloxGrain, [&](int64_t begin, int64_t end) {
    k.philox_keep_mask(g, begin, end - begin, static_cast<uint32_t>(threshold),
                       out_ptr<uint8_t>(out) + begin);
  });
}

// The step that a counter stands at: an unsigned number in signed clothes.
int64_t step_at(const Tensor& counter, int64_t multiplier, int64_t offset) {
  return static_cast<int64_t>(static_cast<uint64_t>(*in_ptr<int64_t>(counter)) *
                                  static_cast<uint64_t>(multiplier) +
                              static_cast<uint64_t>(offset));
}

void philox_normal_at(const Tensor& out, int64_t seed, int64_t stream, const Tensor& counter,
                      int64_t multiplier, int64_t offset) {
  check_counter(counter, out, "out");
  philox_normal(out, seed, stream, step_at(counter, multiplier, offset));
}

void philox_keep_mask_at(const Tensor& out, int64_t seed, int64_t stream, const Tensor& counter,
                         int64_t multiplier, int64_t offset, int64_t threshold) {
  check_counter(counter, out, "out");
  philox_keep_mask(out, seed, stream, step_at(counter, multiplier, offset), threshold);
}

Tensor dropout_at(const Tensor& x, int64_t threshold, int64_t seed, int64_t stream,
                  const Tensor& counter, int64_t multiplier, int64_t offset, int64_t start) {
  check_dropout(x, x.numel(), counter, seed, stream, start, threshold);
  const Philox g = make_philox(static_cast<uint64_t>(seed), static_cast<uint32_t>(stream),
                               static_cast<uint64_t>(step_at(counter, multiplier, offset)));
  const Tensor xc = contiguous(x);
  Tensor y = new_empty(x, sizes_of(x));
  const int64_t skip = start & 1, halves = x.numel() + skip;  // masks are drawn from whole words
  const Tensor mask = new_empty(x, std::vector<int64_t>{halves}, ScalarType::Byte);
  const Kernels& k = kernels();
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    using A = arithmetic_t<T>;
    const A scale = keep_scale<A>(static_cast<uint32_t>(threshold));
    const T* from = in_ptr<T>(xc) - skip;
    T* to = out_ptr<T>(y) - skip;
    uint8_t* keep = out_ptr<uint8_t>(mask);
    parallel_units(halves, kPhiloxUnit, kPhiloxGrain, [&](int64_t begin, int64_t end) {
      k.philox_keep_mask(g, start - skip + begin, end - begin, static_cast<uint32_t>(threshold),
                         keep + begin);
      for (int64_t i = begin < skip ? skip : begin; i < end; ++i) {
        store(to + i, keep[i] ? widen(from[i]) * scale : A(0));
      }
    });
  });
  return y;
}

Tensor linear_leaky_relu_dropout_at(const Tensor& x, const Tensor& weight,
                                    const std::optional<Tensor>& bias, double negative_slope,
                                    int64_t threshold, int64_t seed, int64_t stream,
                                    const Tensor& counter, int64_t multiplier, int64_t offset,
                                    int64_t start) {
  return dropout_at(linear_leaky_relu(x, weight, bias, negative_slope), threshold, seed, stream,
                    counter, multiplier, offset, start);
}

std::tuple<Tensor, Tensor, Tensor> linear_leaky_relu_dropout_backward_at(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& sign,
    double negative_slope, bool need_x, bool need_weight, bool need_bias, int64_t threshold,
    int64_t seed, int64_t stream, const Tensor& counter, int64_t multiplier, int64_t offset,
    int64_t start) {
  return linear_leaky_relu_backward(
      dropout_at(grad, threshold, seed, stream, counter, multiplier, offset, start), x, weight,
      sign, negative_slope, need_x, need_weight, need_bias);
}

// --- Batches ---

// Bytes span [-1, 1]; other pixels are what they are.
template <class A>
A normalised(uint8_t pixel) {
  return static_cast<A>(pixel) * static_cast<A>(2.0 / 255.0) - A(1);
}
template <class A, class Pixel>
A normalised(Pixel pixel) {
  return static_cast<A>(pixel);
}

void gather_normalize(const Tensor& out, const Tensor& pixels, const Tensor& order,
                      const Tensor& counter, int64_t multiplier, int64_t offset, int64_t batch,
                      int64_t batches_per_epoch) {
  const GatherSizes s = check_gather(out, pixels, order, counter, batch, batches_per_epoch);
  const auto update = static_cast<uint64_t>(step_at(counter, multiplier, offset));
  const int64_t first =
      static_cast<int64_t>(update % static_cast<uint64_t>(batches_per_epoch)) * batch;
  STD_TORCH_CHECK(first + s.rows <= order.size(0), "out has ", s.rows, " rows, but batch ",
                  first / batch, " of order, which has ", order.size(0), " entries, has fewer");
  const int64_t* images = in_ptr<int64_t>(order) + first;
  for (int64_t row = 0; row < s.rows; ++row) {
    STD_TORCH_CHECK(images[row] >= 0 && images[row] < pixels.size(0), "order has an entry ",
                    images[row], "; expected 0 <= entry < ", pixels.size(0));
  }
  const int64_t elements = s.channels * s.plane;
  dispatch_gather(pixels, out, [&](auto pixel, auto element) {
    using Pixel = decltype(pixel);
    using T = decltype(element);
    parallel_for(0, s.rows, 1 + 65536 / (elements + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const Pixel* from = in_ptr<Pixel>(pixels) + images[row] * elements;
        T* to = out_ptr<T>(out) + row * elements;
        for (int64_t i = 0; i < elements; ++i) {
          const int64_t at = s.channels_last ? i % s.channels * s.plane + i / s.channels : i;
          store(to + i, normalised<arithmetic_t<T>>(from[at]));
        }
      }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) {
  m.impl("linear_leaky_relu", TORCH_BOX(&linear_leaky_relu));
  m.impl("linear_leaky_relu_backward", TORCH_BOX(&linear_leaky_relu_backward));
  m.impl("discriminator_loss", TORCH_BOX(&discriminator_loss));
  m.impl("generator_loss", TORCH_BOX(&generator_loss));
  m.impl("adam_", TORCH_BOX(&adam_));
  m.impl("philox_words", TORCH_BOX(&philox_words));
  m.impl("philox_uniform", TORCH_BOX(&philox_uniform));
  m.impl("philox_normal", TORCH_BOX(&philox_normal));
  m.impl("philox_keep_mask", TORCH_BOX(&philox_keep_mask));
  m.impl("philox_normal_at", TORCH_BOX(&philox_normal_at));
  m.impl("philox_keep_mask_at", TORCH_BOX(&philox_keep_mask_at));
  m.impl("dropout_at", TORCH_BOX(&dropout_at));
  m.impl("linear_leaky_relu_dropout_at", TORCH_BOX(&linear_leaky_relu_dropout_at));
  m.impl("linear_leaky_relu_dropout_backward_at",
         TORCH_BOX(&linear_leaky_relu_dropout_backward_at));
  m.impl("gather_normalize", TORCH_BOX(&gather_normalize));
  m.impl("adam_device_", TORCH_BOX(&adam_device_));
  m.impl("ema_", TORCH_BOX(&ema_));
}

}  // namespace fastgan::cpu
