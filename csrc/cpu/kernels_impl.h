// The kernels, compiled once per instruction set: included with FASTGAN_VARIANT (a namespace) and
// FASTGAN_VECTOR_BYTES defined. Loops are plain; the compiler vectorises them for the target.
//
// No function of the standard library is called here (see target.h); every function is
// static or in the variant's namespace.

#include "ops/adam/cpu_kernel.h"
#include "ops/linear/cpu_kernel.h"
#include "ops/conv/cpu_kernel.h"
#include "ops/losses/cpu_kernel.h"
#include "ops/norm/cpu_kernel.h"
#include "ops/product/cpu_kernel.h"
#include "ops/random/cpu_kernel.h"
#include "ops/table/cpu_kernel.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

template <class T>
constexpr LinearKernels<T> linear() {
  return {linear_leaky_relu<T>, leaky_relu_backward<T>, linear_grad_x<T>, linear_grad_weight<T>};
}

template <class F, int Stride, int Phases>
constexpr ConvKernels conv = ConvolutionKernels<Convolution<F, Stride, Phases>>::table();

constexpr Isa own_isa = FASTGAN_VECTOR_BYTES == 64   ? Isa::avx512
                        : FASTGAN_VECTOR_BYTES == 32 ? Isa::avx2
                                                     : Isa::baseline;

}  // namespace

extern constexpr Kernels table = {
    .isa = own_isa,
    .philox_words = philox_words,
    .philox_uniform = philox_uniform,
    .philox_normal = philox_normal,
    .philox_keep_mask = philox_keep_mask,
    .adam_f32 = adam<float>,
    .adam_f64 = adam<double>,
    .bce_f32 = bce<float>,
    .bce_f64 = bce<double>,
    .bce_bf16 = bce<bf16>,
    .linear_f32 = linear<float>(),
    .linear_f64 = linear<double>(),
    .conv = {conv<F22, 2, 2>, conv<F42, 2, 2>, conv<F11, 2, 4>, conv<F23, 1, 1>, conv<F43, 1, 1>,
             conv<F11, 1, 3>, conv<F11, 1, 1>},
    .tiled = nullptr,
    .norm = {norm_moments, norm_forward, norm_gradient_sums, norm_gradient, norm_second_sums,
             norm_second},
    .products = products,
    .heads = heads,
    .heads_backward = heads_backward,
    .surprise = surprise,
    .normed_relu = normed_relu,
    .normed_relu_backward = normed_relu_backward,
    .add_columns = add_columns,
    .sum_columns = sum_columns,
};

}  // namespace fastgan::cpu::FASTGAN_VARIANT
