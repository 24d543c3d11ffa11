// What surrounds the products of a linear layer with a leaky rectifier.
#include "common/activation.h"
#include "cuda/grid.cuh"
#include "cuda/launch.h"

namespace fastgan::cuda {

namespace {

template <class T>
__global__ void bias_leaky_relu_kernel(T* y, const T* bias, int64_t n, int64_t columns,
                                       arithmetic_t<T> slope) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    const arithmetic_t<T> shift = bias ? widen(bias[i % columns]) : arithmetic_t<T>(0);
    store(y + i, leaky_relu<arithmetic_t<T>>(widen(y[i]) + shift, slope));
  }
}

template <class T>
__global__ void leaky_relu_backward_kernel(const T* grad, const T* sign, int64_t n,
                                           arithmetic_t<T> slope, T* grad_pre) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    store(grad_pre + i, leaky_relu_grad<arithmetic_t<T>>(widen(grad[i]), widen(sign[i]), slope));
  }
}

}  // namespace

template <class T>
cudaError_t bias_leaky_relu(T* y, const T* bias, int64_t rows, int64_t columns,
                            double negative_slope, cudaStream_t stream) {
  const int64_t n = rows * columns;
  if (n == 0) return cudaSuccess;
  bias_leaky_relu_kernel<T><<<blocks_for(n), kThreads, 0, stream>>>(
      y, bias, n, columns, static_cast<arithmetic_t<T>>(negative_slope));
  return cudaGetLastError();
}

template <class T>
cudaError_t leaky_relu_backward(const T* grad, const T* sign, int64_t n, double negative_slope,
                                T* grad_pre, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  leaky_relu_backward_kernel<T><<<blocks_for(n), kThreads, 0, stream>>>(
      grad, sign, n, static_cast<arithmetic_t<T>>(negative_slope), grad_pre);
  return cudaGetLastError();
}

#define FASTGAN_INSTANTIATE(T)                                                                   \
  template cudaError_t bias_leaky_relu<T>(T*, const T*, int64_t, int64_t, double, cudaStream_t); \
  template cudaError_t leaky_relu_backward<T>(const T*, const T*, int64_t, double, T*,           \
                                              cudaStream_t);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
FASTGAN_INSTANTIATE(bf16)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
