// Adam, one element a thread at a time.
#include "cuda/grid.cuh"
#include "cuda/launch.h"

namespace fastgan::cuda {

namespace {

template <class T>
__global__ void adam_kernel(Adam<T> a, int64_t n, const T* grad, T* weight, T* exp_avg,
                            T* exp_avg_sq) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    T w = weight[i], m = exp_avg[i], v = exp_avg_sq[i];
    adam_update(a, grad[i], w, m, v);
    weight[i] = w;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
  }
}

}  // namespace

template <class T>
cudaError_t adam(const Adam<T>& a, int64_t n, const T* grad, T* weight, T* exp_avg, T* exp_avg_sq,
                 cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  adam_kernel<T><<<blocks_for(n), kThreads, 0, stream>>>(a, n, grad, weight, exp_avg, exp_avg_sq);
  return cudaGetLastError();
}

#define FASTGAN_INSTANTIATE(T) \
  template cudaError_t adam<T>(const Adam<T>&, int64_t, const T*, T*, T*, T*, cudaStream_t);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
