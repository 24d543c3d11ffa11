// Adam on a piece of a tensor.
// Included by cpu/kernels_impl.h for each instruction set.
#include "common/adam.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

template <class T>
void adam(const Adam<T>& a, int64_t n, const T* __restrict grad, T* __restrict weight,
          T* __restrict exp_avg, T* __restrict exp_avg_sq) {
  const Adam<T> constants = a;  // a copy: stores to the buffers cannot alias it
  for (int64_t i = 0; i < n; ++i) {
    adam_update(constants, grad[i], weight[i], exp_avg[i], exp_avg_sq[i]);
  }
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
