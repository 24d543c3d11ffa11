// The launchers of the linear layer's kernels; see cuda/launchers.h. Matrices are row-major without
// gaps.
#pragma once

#include "cuda/launchers.h"
#include "ops/linear/shape.h"
#include "ops/random/draw.h"

namespace fastgan::cuda {

// y = dropout(leaky_relu(y + bias)) in place; y [rows, columns], bias [columns] or null.
// T: float, double, bf16 or fp16.
template <class T>
cudaError_t bias_leaky_relu(T* y, const T* bias, int64_t rows, int64_t columns,
                            double negative_slope, const Dropout& drop, cudaStream_t stream);

// grad_pre = leaky_relu'(sign) * dropout(grad), [rows, columns] each.
template <class T>
cudaError_t leaky_relu_backward(const T* grad, const T* sign, int64_t rows, int64_t columns,
                                double negative_slope, const Dropout& drop, T* grad_pre,
                                cudaStream_t stream);

// The same, and column sums of grad_pre: those of strips of rows_of_strip(rows) rows, which added
// up are the bias's gradient. sums [strips_of(rows), columns], of the type that T is computed in.
inline int64_t rows_of_strip(int64_t rows) {
  constexpr int64_t kRows = 512, kMost = 65535;  // strips, which a launch can have
  return rows <= kRows * kMost ? kRows : (rows + kMost - 1) / kMost;
}
inline int64_t strips_of(int64_t rows) {
  return (rows + rows_of_strip(rows) - 1) / rows_of_strip(rows);
}
template <class T>
cudaError_t leaky_relu_bias_backward(const T* grad, const T* sign, int64_t rows, int64_t columns,
                                     double negative_slope, const Dropout& drop, T* grad_pre,
                                     arithmetic_t<T>* sums, cudaStream_t stream);

// y = dropout(leaky_relu(x weight^T + bias)) in one launch, for layers too small to fill the
// device. weight [out, in]; bias [out] or null. T: bf16, fp16, or float, whose products keep about
// its precision and turn an infinite factor into NaN.
template <class T>
cudaError_t linear_tiles(const LinearShape& shape, const T* x, const T* weight, const T* bias,
                         double negative_slope, const Dropout& drop, T* y, cudaStream_t stream);

// grad_x = grad_pre weight and grad_weight = grad_pre^T x in one launch; one of them may be null.
template <class T>
cudaError_t linear_backward_tiles(const LinearShape& shape, const T* grad_pre, const T* x,
                                  const T* weight, T* grad_x, T* grad_weight, cudaStream_t stream);

}  // namespace fastgan::cuda
