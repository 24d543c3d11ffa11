// The element-wise CUDA kernels' launchers for Python, on emulated memory;
// tests/test_cuda_kernels.py. Types are chosen by a code: 0 float, 1 double, 2 bf16, 3 fp16, 4
// uint8.
#include <type_traits>

#include "ops/adam/launch.h"
#include "ops/gather/launch.h"
#include "ops/linear/launch.h"
#include "ops/losses/launch.h"
#include "ops/random/launch.h"

using namespace fastgan;
using namespace fastgan::cuda;

namespace {

template <class F>
int with_type(int64_t code, const F& f) {
  switch (code) {
    case 0:
      return f(float{});
    case 1:
      return f(double{});
    case 2:
      return f(bf16{});
    case 3:
      return f(fp16{});
    default:
      return cudaErrorInvalidValue;
  }
}

Counter counter_of(const int64_t* value, int64_t multiplier, int64_t offset) {
  return {value, multiplier, offset};
}

// A mask of seed 5, stream 64 at step 3 * counter + 2; none where counter is null.
Dropout dropout_of(const int64_t* counter, int64_t start, int64_t threshold) {
  if (counter == nullptr) return {};
  return {make_philox(5, 64, 0), counter_of(counter, 3, 2), start,
          static_cast<uint32_t>(threshold)};
}

}  // namespace

extern "C" {

int words(uint64_t seed, int64_t stream, uint64_t step, int64_t start, int64_t n, int64_t* out) {
  return philox_words(make_philox(seed, static_cast<uint32_t>(stream), step), start, n, out,
                      nullptr);
}
int uniform(uint64_t seed, int64_t stream, uint64_t step, int64_t n, float* out) {
  return philox_uniform(make_philox(seed, static_cast<uint32_t>(stream), step), n, out, nullptr);
}
int normal(uint64_t seed, int64_t stream, uint64_t step, const int64_t* counter, int64_t multiplier,
           int64_t offset, int64_t n, float* out) {
  return philox_normal(make_philox(seed, static_cast<uint32_t>(stream), step),
                       counter_of(counter, multiplier, offset), n, out, nullptr);
}
int keep_mask(uint64_t seed, int64_t stream, uint64_t step, const int64_t* counter,
              int64_t multiplier, int64_t offset, int64_t n, int64_t threshold, bool* out) {
  return philox_keep_mask(make_philox(seed, static_cast<uint32_t>(stream), step),
                          counter_of(counter, multiplier, offset), n,
                          static_cast<uint32_t>(threshold), out, nullptr);
}
int dropout_at(int64_t type, const int64_t* counter, int64_t start, int64_t threshold, int64_t n,
               const void* x, void* y) {
  return with_type(type, [&](auto tag) {
    using T = decltype(tag);
    return dropout<T>(dropout_of(counter, start, threshold), n, static_cast<const T*>(x),
                      static_cast<T*>(y), nullptr);
  });
}

int gather(int64_t pixel_type, int64_t type, int64_t rows, int64_t channels, int64_t plane,
           int64_t channels_last, int64_t images, int64_t ordered, int64_t batch,
           int64_t batches_per_epoch, const int64_t* order, const int64_t* counter,
           int64_t multiplier, int64_t offset, const void* pixels, void* out) {
  const Gather g{rows,   channels,
                 plane,  channels_last != 0,
                 images, ordered,
                 batch,  batches_per_epoch,
                 order,  counter_of(counter, multiplier, offset)};
  if (pixel_type == 1) {
    return gather_normalize<double, double>(g, static_cast<const double*>(pixels),
                                            static_cast<double*>(out), nullptr);
  }
  return with_type(type, [&](auto tag) {
    using T = decltype(tag);
    return pixel_type == 4 ? gather_normalize<uint8_t, T>(g, static_cast<const uint8_t*>(pixels),
                                                          static_cast<T*>(out), nullptr)
                           : gather_normalize<float, T>(g, static_cast<const float*>(pixels),
                                                        static_cast<T*>(out), nullptr);
  });
}

int bias_rectify(int64_t type, void* y, const void* bias, int64_t rows, int64_t columns,
                 double slope, const int64_t* counter, int64_t start, int64_t threshold) {
  return with_type(type, [&](auto tag) {
    using T = decltype(tag);
    return bias_leaky_relu<T>(static_cast<T*>(y), static_cast<const T*>(bias), rows, columns, slope,
                              dropout_of(counter, start, threshold), nullptr);
  });
}
int64_t strips(int64_t rows) { return strips_of(rows); }
// sums: null for the kernel without them.
int rectify_backward(int64_t type, const void* grad, const void* sign, int64_t rows,
                     int64_t columns, double slope, const int64_t* counter, int64_t start,
                     int64_t threshold, void* grad_pre, void* sums) {
  const Dropout drop = dropout_of(counter, start, threshold);
  return with_type(type, [&](auto tag) {
    using T = decltype(tag);
    const T *g = static_cast<const T*>(grad), *s = static_cast<const T*>(sign);
    T* const to = static_cast<T*>(grad_pre);
    return sums ? leaky_relu_bias_backward<T>(g, s, rows, columns, slope, drop, to,
                                              static_cast<arithmetic_t<T>*>(sums), nullptr)
                : leaky_relu_backward<T>(g, s, rows, columns, slope, drop, to, nullptr);
  });
}

int tiles(int64_t type, int64_t batch, int64_t in, int64_t out, const void* x, const void* weight,
          const void* bias, double slope, const int64_t* counter, int64_t start, int64_t threshold,
          void* y) {
  return with_type(type, [&](auto tag) -> int {
    using T = decltype(tag);
    if constexpr (std::is_same_v<T, double>) {
      return cudaErrorInvalidValue;
    } else {
      return linear_tiles<T>({batch, in, out}, static_cast<const T*>(x),
                             static_cast<const T*>(weight), static_cast<const T*>(bias), slope,
                             dropout_of(counter, start, threshold), static_cast<T*>(y), nullptr);
    }
  });
}
int backward_tiles(int64_t type, int64_t batch, int64_t in, int64_t out, const void* grad_pre,
                   const void* x, const void* weight, void* grad_x, void* grad_weight) {
  return with_type(type, [&](auto tag) -> int {
    using T = decltype(tag);
    if constexpr (std::is_same_v<T, double>) {
      return cudaErrorInvalidValue;
    } else {
      return linear_backward_tiles<T>({batch, in, out}, static_cast<const T*>(grad_pre),
                                      static_cast<const T*>(x), static_cast<const T*>(weight),
                                      static_cast<T*>(grad_x), static_cast<T*>(grad_weight),
                                      nullptr);
    }
  });
}

int bce_pair(int64_t type, const void* first, int64_t n, double label, const void* second,
             int64_t m, double second_label, double sign, void* grad_first, void* grad_second,
             void* loss) {
  return with_type(type, [&](auto tag) {
    using T = decltype(tag);
    using Loss = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const auto term = [sign](const void* logits, void* grad, int64_t count, double y) {
      return BceTerm<T>{static_cast<const T*>(logits), static_cast<T*>(grad), count, y,
                        sign / static_cast<double>(count)};
    };
    return bce<T, Loss>(term(first, grad_first, n, label),
                        term(second, grad_second, m, second_label), static_cast<Loss*>(loss),
                        nullptr);
  });
}

// step <= 0: the update reads step and lr on the device.
int adam_lists(int64_t type, int64_t count, void* const* weights, void* const* exp_avgs,
               void* const* exp_avg_sqs, void* const* grads, const int64_t* sizes, int64_t step,
               double lr, double beta1, double beta2, double eps, double weight_decay,
               int64_t decoupled, const float* device_step, const float* device_lr,
               const double* wide_lr, const float* grad_scale, const float* found_inf) {
  const auto run = [&](auto tag) -> int {
    using T = decltype(tag);
    const auto list = [](void* const* p) { return reinterpret_cast<T* const*>(p); };
    const AdamTensors<T> tensors{list(weights), list(exp_avgs), list(exp_avg_sqs),
                                 list(grads),   sizes,          count};
    if (step > 0) {
      return adam<T>(make_adam<T>(step, lr, beta1, beta2, eps, weight_decay, decoupled != 0),
                     tensors, nullptr);
    }
    return adam_device<T>({{device_step, nullptr},
                           {device_lr, wide_lr},
                           grad_scale,
                           found_inf,
                           beta1,
                           beta2,
                           eps,
                           weight_decay,
                           decoupled != 0},
                          tensors, nullptr);
  };
  return type == 1 ? run(double{}) : run(float{});
}

int ema_lists(int64_t type, int64_t count, void* const* averages, void* const* values,
              const int64_t* sizes, double decay) {
  return with_type(type, [&](auto tag) {
    using T = decltype(tag);
    return ema<T>(reinterpret_cast<T* const*>(averages), reinterpret_cast<T* const*>(values), sizes,
                  count, decay, nullptr);
  });
}

// fp16 and back, as the kernels of the other compiler do it.
int round_fp16(int64_t n, const float* from, uint16_t* bits, float* back) {
  for (int64_t i = 0; i < n; ++i) {
    const fp16 half = narrow_fp16(from[i]);
    bits[i] = half.bits;
    back[i] = widen(half);
  }
  return 0;
}

}  // extern "C"
