// What surrounds the products of a linear layer with a leaky rectifier.
#include "common/activation.h"
#include "cuda/tensors.cuh"
#include "ops/linear/launch.h"
#include "ops/random/mask.cuh"

namespace fastgan::cuda {

namespace {

// A matrix is cut into columns of blocks: threads of x take neighbouring columns, threads and
// blocks of y stride over the rows.
struct Cut {
  dim3 grid, block;
};
Cut cut_matrix(int64_t rows, int64_t columns) {
  unsigned width = 1;
  while (width < kThreads && width < columns) width *= 2;
  const unsigned height = kThreads / width;
  const int64_t across = (columns + width - 1) / width;
  const int64_t down = (rows + height - 1) / height;
  const int64_t most = 4096 / (across < 4096 ? across : 4096);  // blocks in y: enough to fill
  return {dim3(static_cast<unsigned>(across), static_cast<unsigned>(down < most ? down : most)),
          dim3(width, height)};
}

// Kind is T or a pack of them; the matrix is [rows, columns] of Kind.
template <class T, class Kind>
__global__ void bias_leaky_relu_kernel(T* y, const T* bias, int64_t rows, int64_t columns,
                                       arithmetic_t<T> slope,
                                       const __grid_constant__ Dropout drop) {
  constexpr int kSize = sizeof(Kind) / sizeof(T);
  const Mask<arithmetic_t<T>> mask(drop);
  const int64_t column = first_item();
  if (column >= columns) return;
  arithmetic_t<T> shift[kSize];
  for (int i = 0; i < kSize; ++i) {
    shift[i] = bias ? widen(bias[column * kSize + i]) : arithmetic_t<T>(0);
  }
  for (int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows;
       row += int64_t{gridDim.y} * blockDim.y) {
    Kind* const at = reinterpret_cast<Kind*>(y) + row * columns + column;
    Kind values = *at;
    T* const v = reinterpret_cast<T*>(&values);
    const uint32_t kept = mask.template kept<kSize>((row * columns + column) * kSize);
    for (int i = 0; i < kSize; ++i) {
      store(v + i, mask.apply(kept, i, leaky_relu<arithmetic_t<T>>(widen(v[i]) + shift[i], slope)));
    }
    *at = values;
  }
}

template <class T, class Kind>
__global__ void leaky_relu_backward_kernel(const T* grad, const T* sign, int64_t n,
                                           arithmetic_t<T> slope,
                                           const __grid_constant__ Dropout drop, T* grad_pre) {
  constexpr int kSize = sizeof(Kind) / sizeof(T);
  const Mask<arithmetic_t<T>> mask(drop);
  for (int64_t i = first_item(); i < n / kSize; i += item_stride()) {
    const Kind g = reinterpret_cast<const Kind*>(grad)[i];
    const Kind s = reinterpret_cast<const Kind*>(sign)[i];
    const uint32_t kept = mask.template kept<kSize>(i * kSize);
    Kind result;
    for (int at = 0; at < kSize; ++at) {
      const auto through = mask.apply(kept, at, widen(reinterpret_cast<const T*>(&g)[at]));
      store(reinterpret_cast<T*>(&result) + at,
            leaky_relu_grad<arithmetic_t<T>>(through, widen(reinterpret_cast<const T*>(&s)[at]),
                                             slope));
    }
    reinterpret_cast<Kind*>(grad_pre)[i] = result;
  }
}

constexpr unsigned kStripWidth = 32, kStripHeight = 8;

// A block takes 32 columns of one strip of rows; its eight rows of threads add up in a fixed order.
template <class T>
__global__ void __launch_bounds__(kStripWidth* kStripHeight)
    bias_backward_kernel(const T* grad, const T* sign, int64_t rows, int64_t columns,
                         int64_t strip_rows, arithmetic_t<T> slope,
                         const __grid_constant__ Dropout drop, T* grad_pre, arithmetic_t<T>* sums) {
  using A = arithmetic_t<T>;
  const Mask<A> mask(drop);
  FASTGAN_SHARED(A, partial, [kStripHeight][kStripWidth]);
  const int64_t column = int64_t{blockIdx.x} * kStripWidth + threadIdx.x;
  const int64_t strip = blockIdx.y, first = strip * strip_rows;
  const int64_t last = rows < first + strip_rows ? rows : first + strip_rows;
  A sum = 0;
  if (column < columns) {
    for (int64_t row = first + threadIdx.y; row < last; row += kStripHeight) {
      const int64_t i = row * columns + column;
      const A through = mask.apply(mask.template kept<1>(i), 0, widen(grad[i]));
      const A g = leaky_relu_grad<A>(through, widen(sign[i]), slope);
      store(grad_pre + i, g);
      sum += g;
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (unsigned y = 1; y < kStripHeight; ++y) sum += partial[y][threadIdx.x];
    sums[strip * columns + column] = sum;
  }
}

template <class T>
bool host_packable(const T* p) {
  return p == nullptr || reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace

template <class T>
cudaError_t bias_leaky_relu(T* y, const T* bias, int64_t rows, int64_t columns,
                            double negative_slope, const Dropout& drop, cudaStream_t stream) {
  if (rows * columns == 0) return cudaSuccess;
  const auto slope = static_cast<arithmetic_t<T>>(negative_slope);
  constexpr int kSize = Pack<T>::kSize;
  if (columns % kSize == 0 && host_packable(y)) {
    const Cut cut = cut_matrix(rows, columns / kSize);
    return launch(bias_leaky_relu_kernel<T, Pack<T>>, cut.grid, cut.block, 0, stream, y, bias, rows,
                  columns / kSize, slope, drop);
  }
  const Cut cut = cut_matrix(rows, columns);
  return launch(bias_leaky_relu_kernel<T, T>, cut.grid, cut.block, 0, stream, y, bias, rows,
                columns, slope, drop);
}

template <class T>
cudaError_t leaky_relu_backward(const T* grad, const T* sign, int64_t rows, int64_t columns,
                                double negative_slope, const Dropout& drop, T* grad_pre,
                                cudaStream_t stream) {
  const int64_t n = rows * columns;
  if (n == 0) return cudaSuccess;
  const auto slope = static_cast<arithmetic_t<T>>(negative_slope);
  constexpr int kSize = Pack<T>::kSize;
  if (n % kSize == 0 && host_packable(grad) && host_packable(sign) && host_packable(grad_pre)) {
    return launch(leaky_relu_backward_kernel<T, Pack<T>>, blocks_for(n / kSize), kThreads, 0,
                  stream, grad, sign, n, slope, drop, grad_pre);
  }
  return launch(leaky_relu_backward_kernel<T, T>, blocks_for(n), kThreads, 0, stream, grad, sign, n,
                slope, drop, grad_pre);
}

template <class T>
cudaError_t leaky_relu_bias_backward(const T* grad, const T* sign, int64_t rows, int64_t columns,
                                     double negative_slope, const Dropout& drop, T* grad_pre,
                                     arithmetic_t<T>* sums, cudaStream_t stream) {
  if (rows * columns == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((columns + kStripWidth - 1) / kStripWidth),
                  static_cast<unsigned>(strips_of(rows)));
  return launch(bias_backward_kernel<T>, grid, dim3(kStripWidth, kStripHeight), 0, stream, grad,
                sign, rows, columns, rows_of_strip(rows),
                static_cast<arithmetic_t<T>>(negative_slope), drop, grad_pre, sums);
}

#define FASTGAN_INSTANTIATE(T)                                                                    \
  template cudaError_t bias_leaky_relu<T>(T*, const T*, int64_t, int64_t, double, const Dropout&, \
                                          cudaStream_t);                                          \
  template cudaError_t leaky_relu_backward<T>(const T*, const T*, int64_t, int64_t, double,       \
                                              const Dropout&, T*, cudaStream_t);                  \
  template cudaError_t leaky_relu_bias_backward<T>(const T*, const T*, int64_t, int64_t, double,  \
                                                   const Dropout&, T*, arithmetic_t<T>*,          \
                                                   cudaStream_t);
FASTGAN_FOR_ELEMENTS(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
