// The cross-entropy of logits with its gradient.
// Included by cpu/kernels_impl.h for each instruction set.
#include "common/losses.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

template <class T>
double bce(const T* __restrict logits, int64_t n, double label, double scale, T* __restrict grad) {
  using A = arithmetic_t<T>;
  constexpr int kChunk = 256, kLanes = 8;
  const A y = static_cast<A>(label), s = static_cast<A>(scale);
  A loss[kChunk];
  double lanes[kLanes] = {};
  for (int64_t base = 0; base < n; base += kChunk) {
    const int count = static_cast<int>(n - base < kChunk ? n - base : kChunk);
    for (int i = 0; i < count; ++i) {
      const LossGrad<A> r = bce_with_logit(widen(logits[base + i]), y);
      loss[i] = r.loss;
      store(grad + base + i, s * r.grad);
    }
    for (int i = count; i < kChunk && i % kLanes; ++i) loss[i] = 0;
    for (int i = 0; i < count; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += loss[i + lane];
    }
  }
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
