// Adam over all tensors of a network in one launch.
#include "cuda/tensors.cuh"
#include "ops/adam/launch.h"

namespace fastgan::cuda {

namespace {

template <class T, int Capacity>
using AdamTable = TensorTable<T, 4, Capacity>;

// The pointers of a table, in this order: what is written comes first.
template <class T>
__device__ void update(const Adam<T>& a, T (&values)[4], T grad_divisor) {
  adam_update(a, values[3] / grad_divisor, values[0], values[1], values[2]);
}

template <class T, int Capacity>
__global__ void adam_kernel(const __grid_constant__ AdamTable<T, Capacity> table,
                            const __grid_constant__ Adam<T> a) {
  with_chunk(table, [&a](T* const(&pointers)[4], int64_t n, bool packed) {
    for_elements<T, 3>(pointers, n, packed, [&a](T(&values)[4]) { update(a, values, T(1)); });
  });
}

__device__ double read(const RealOnDevice& number) {
  return number.wide ? *number.wide : static_cast<double>(*number.value);
}

template <class T, int Capacity>
__global__ void adam_device_kernel(const __grid_constant__ AdamTable<T, Capacity> table,
                                   const __grid_constant__ AdamOnDevice d) {
  if (d.found_inf && *d.found_inf != 0.f) return;
  FASTGAN_SHARED(Adam<T>, shared, [1]);
  if (threadIdx.x == 0) {
    const auto n = static_cast<int64_t>(read(d.step));
    shared[0] = make_adam_of_powers<T>(power(d.beta1, n), power(d.beta2, n), read(d.lr), d.beta1,
                                       d.beta2, d.eps, d.weight_decay, d.decoupled);
  }
  __syncthreads();
  const Adam<T> a = shared[0];
  const T divisor = d.grad_scale ? static_cast<T>(*d.grad_scale) : T(1);
  with_chunk(table, [&](T* const(&pointers)[4], int64_t n, bool packed) {
    for_elements<T, 3>(pointers, n, packed, [&](T(&values)[4]) { update(a, values, divisor); });
  });
}

}  // namespace

template <class T>
cudaError_t adam(const Adam<T>& a, const AdamTensors<T>& t, cudaStream_t stream) {
  T* const* const lists[4] = {t.weights, t.exp_avgs, t.exp_avg_sqs, t.grads};
  return for_tables<T, 4>(lists, t.sizes, t.count, [&]<int C>(const AdamTable<T, C>& table) {
    return launch(adam_kernel<T, C>, table.first_chunk[table.count], kThreads, 0, stream, table, a);
  });
}

template <class T>
cudaError_t adam_device(const AdamOnDevice& d, const AdamTensors<T>& t, cudaStream_t stream) {
  T* const* const lists[4] = {t.weights, t.exp_avgs, t.exp_avg_sqs, t.grads};
  return for_tables<T, 4>(lists, t.sizes, t.count, [&]<int C>(const AdamTable<T, C>& table) {
    return launch(adam_device_kernel<T, C>, table.first_chunk[table.count], kThreads, 0, stream,
                  table, d);
  });
}

#define FASTGAN_INSTANTIATE(T)                                                       \
  template cudaError_t adam<T>(const Adam<T>&, const AdamTensors<T>&, cudaStream_t); \
  template cudaError_t adam_device<T>(const AdamOnDevice&, const AdamTensors<T>&, cudaStream_t);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
