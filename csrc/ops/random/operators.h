// What the operators that draw are on every device: their arguments, checked, and the names they
// are registered under. A device brings words, uniform, normal and keep_mask, which fill `out`, and
//   Tensor dropout(drop, x)
#pragma once

#include "ops/random/checks.h"

namespace fastgan {

template <class Device>
struct RandomOperators {
  static void philox_words(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                           int64_t start) {
    Device::words(check_philox(out, ScalarType::Long, "int64", seed, stream, step, start), start,
                  out);
  }

  static void philox_uniform(const Tensor& out, int64_t seed, int64_t stream, int64_t step) {
    Device::uniform(check_philox(out, ScalarType::Float, "float32", seed, stream, step), out);
  }

  static void philox_normal(const Tensor& out, int64_t seed, int64_t stream, int64_t step) {
    const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, step);
    Device::normal(g, Counter{}, out);
  }

  static void philox_keep_mask(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                               int64_t threshold) {
    const Philox g = check_keep_mask(out, seed, stream, step, threshold);
    Device::keep_mask(g, Counter{}, static_cast<uint32_t>(threshold), out);
  }

  static void philox_normal_at(const Tensor& out, int64_t seed, int64_t stream,
                               const Tensor& counter, int64_t multiplier, int64_t offset) {
    const Philox g = check_philox(out, ScalarType::Float, "float32", seed, stream, 0);
    Device::normal(g, check_counter_for(out, counter, multiplier, offset), out);
  }

  static void philox_keep_mask_at(const Tensor& out, int64_t seed, int64_t stream,
                                  const Tensor& counter, int64_t multiplier, int64_t offset,
                                  int64_t threshold) {
    const Philox g = check_keep_mask(out, seed, stream, 0, threshold);
    Device::keep_mask(g, check_counter_for(out, counter, multiplier, offset),
                      static_cast<uint32_t>(threshold), out);
  }

  static Tensor dropout_at(const Tensor& x, int64_t threshold, int64_t seed, int64_t stream,
                           const Tensor& counter, int64_t multiplier, int64_t offset,
                           int64_t start) {
    check_memory(x, "x");
    return Device::dropout(
        check_dropout(x, x.numel(), threshold, seed, stream, counter, multiplier, offset, start),
        x);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("philox_words", TORCH_BOX(&philox_words));
    m.impl("philox_uniform", TORCH_BOX(&philox_uniform));
    m.impl("philox_normal", TORCH_BOX(&philox_normal));
    m.impl("philox_keep_mask", TORCH_BOX(&philox_keep_mask));
    m.impl("philox_normal_at", TORCH_BOX(&philox_normal_at));
    m.impl("philox_keep_mask_at", TORCH_BOX(&philox_keep_mask_at));
    m.impl("dropout_at", TORCH_BOX(&dropout_at));
  }
};

}  // namespace fastgan
