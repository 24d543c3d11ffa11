// Averages of all weights of a network in one launch.
#include "cuda/tensors.cuh"
#include "ops/adam/launch.h"

namespace fastgan::cuda {

namespace {

// from + share * (to - from), from the nearer end, as torch.lerp.
template <class T, int Capacity>
__global__ void ema_kernel(const __grid_constant__ TensorTable<T, 2, Capacity> table,
                           arithmetic_t<T> share) {
  using A = arithmetic_t<T>;
  with_chunk(table, [share](T* const(&pointers)[2], int64_t n, bool packed) {
    for_elements<T, 1>(pointers, n, packed, [share](T(&values)[2]) {
      const A from = widen(values[0]), to = widen(values[1]), way = to - from;
      store(&values[0], share < A(0.5) ? from + share * way : to - way * (A(1) - share));
    });
  });
}

}  // namespace

template <class T>
cudaError_t ema(T* const* averages, T* const* values, const int64_t* sizes, int64_t count,
                double decay, cudaStream_t stream) {
  T* const* const lists[2] = {averages, values};
  return for_tables<T, 2>(lists, sizes, count, [&]<int C>(const TensorTable<T, 2, C>& table) {
    return launch(ema_kernel<T, C>, table.first_chunk[table.count], kThreads, 0, stream, table,
                  static_cast<arithmetic_t<T>>(1.0 - decay));
  });
}

#define FASTGAN_INSTANTIATE(T) \
  template cudaError_t ema<T>(T* const*, T* const*, const int64_t*, int64_t, double, cudaStream_t);
FASTGAN_FOR_ELEMENTS(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
