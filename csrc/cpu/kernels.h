// The table of CPU kernels, one per instruction set. No torch here: pointers and sizes only.
//
// Kernels work on a range or a tile and never create threads; the caller divides the work. Every
// reduction has an order fixed by the sizes alone, so the division does not show in the bits.
#pragma once

#include <stdint.h>

#include "common/adam.h"
#include "common/bf16.h"
#include "common/philox.h"
#include "cpu/isa.h"
#include "ops/conv/shape.h"
#include "ops/linear/shape.h"
#include "ops/norm/shape.h"
#include "ops/product/shape.h"
#include "ops/table/shape.h"

namespace fastgan::cpu {

// The columns of a product are computed in panels of this width or a divisor of it.
constexpr int64_t kPanelWidth = 32;

// Scratch memory of one thread for the products, aligned to a cache line.
constexpr int64_t kScratchBytes = 1 << 20;

// The products, in float or double. bfloat16 tensors are widened by the caller.
template <class T>
struct LinearKernels {
  // y = leaky_relu(x weight^T + bias) for the outputs [out_begin, out_end). x [batch, in], weight
  // [out, in], y [batch, out], row-major; bias may be null. `scratch`: kScratchBytes.
  void (*linear_leaky_relu)(const LinearShape& shape, const T* x, const T* weight, const T* bias,
                            double negative_slope, int64_t out_begin, int64_t out_end, T* scratch,
                            T* y);

  // Columns [out_begin, out_end) of grad_pre = leaky_relu'(sign) * grad [batch, out], and of its
  // column sum grad_bias [out]; grad_bias may be null.
  void (*leaky_relu_backward)(const LinearShape& shape, const T* grad, const T* sign,
                              double negative_slope, int64_t out_begin, int64_t out_end,
                              T* grad_pre, T* grad_bias);

  // Columns [in_begin, in_end) of grad_x [batch, in] = grad_pre [batch, out] weight [out, in].
  // `scratch`: kScratchBytes.
  void (*linear_grad_x)(const LinearShape& shape, const T* grad_pre, const T* weight,
                        int64_t in_begin, int64_t in_end, T* scratch, T* grad_x);

  // Columns [in_begin, in_end) of grad_weight [out, in] = grad_pre^T x. `scratch`: kScratchBytes.
  void (*linear_grad_weight)(const LinearShape& shape, const T* grad_pre, const T* x,
                             int64_t in_begin, int64_t in_end, T* scratch, T* grad_weight);
};

// The ways to do a convolution; ops/conv/geometry.h says what each of the names means.
enum class ConvAlgorithm {
  winograd_4x4,  // stride 2: F(2x2, 2x2) on four planes
  large_4x4,     // the same by F(4x4, 2x2)
  taps_4x4,      // stride 2: the plain sum
  winograd_3x3,  // F(2x2, 3x3)
  large_3x3,     // F(4x4, 3x3), without gradients of the weight
  taps_3x3,
  taps_1x1,
  count
};

// What an algorithm needs for a shape; memory in floats.
struct ConvSizes {
  int64_t tiles, tiles_of_image, products_of_tile;
  // Tiles whose part of a product stays in the second-level cache.
  int64_t together;
  // Packed weights for forward and for data, and the units in which they are packed.
  int64_t packed_outputs, packed_inputs, vectors_of_outputs, vectors_of_inputs;
  // Scratch of forward and data: this much, and so much for each tile.
  int64_t scratch, scratch_of_tile;
  // Backward to the weights: panels of so many tiles; the sums, in blocks of rows and in columns
  // that go to the threads; scratch of inputs and products.
  int64_t panels, tiles_of_panels, sums, blocks, columns, scratch_of_block;
};

struct ConvCall {
  ConvShape shape;
  const float* from;    // x, or dy for data
  const float* packed;  // the weight
  const float* bias;    // may be null
  float slope;          // of negative results
  float* to;            // y, or dx for data
  // What decides which results are negative, [pixels][channels]; they themselves if it is null.
  const float* sign = nullptr;
};

// A convolution by one algorithm; images are channels last. ops/conv/cpu.cpp puts them together.
// What an algorithm does not have is null.
struct ConvKernels {
  ConvSizes (*sizes)(const ConvShape& shape);
  // The weight for `data` if `inputs`, else for `forward`: units [begin, end) of it.
  void (*pack)(const ConvShape& shape, const ConvWeight<const float>& weight, bool inputs,
               int64_t begin, int64_t end, float* packed);
  // y of the tiles [first, last).
  void (*forward)(const ConvCall& call, int64_t first, int64_t last, float* scratch);
  // dx of the images [first, last), at most `most` tiles at a time. Null where it is forward with
  // the weight turned.
  void (*data)(const ConvCall& call, int64_t first, int64_t last, int64_t most, float* scratch);
  // Tiles [begin, end) of the panels that begin at the tile `first`.
  void (*inputs)(const ConvShape& shape, const float* x, int64_t first, int64_t begin, int64_t end,
                 float* scratch, float* panels);
  // One block and the columns [begin, end) of the sums over the tiles [first, last) whose panels
  // those are; onto what is there with `add`.
  void (*products)(const ConvShape& shape, const float* dy, int64_t first, int64_t last,
                   int64_t block, int64_t begin, int64_t end, const float* panels, bool add,
                   float* scratch, float* sums);
  // The gradient of the weights of outputs [begin, end).
  void (*weight)(const ConvShape& shape, const float* sums, int64_t begin, int64_t end,
                 const ConvWeight<float>& weight);
};

// BatchNorm with a rectifier, of rows [rows][channels]; ops/norm/cpu_kernel.h says what g' is.
// Sums are [number][channels], factors too.
struct NormKernels {
  // Of x - around and of its square.
  void (*moments)(int64_t rows, int64_t channels, const float* x, const float* around, float* sums);
  void (*forward)(int64_t rows, const NormChannels& n, const float* x, float* y);
  // Of g' and of g' (x - mean).
  void (*gradient_sums)(int64_t rows, const NormChannels& n, const float* x, const float* grad,
                        float* sums);
  // dx = scale g' + factors[0] (x - mean) + factors[1].
  void (*gradient)(int64_t rows, const NormChannels& n, const float* factors, const float* x,
                   const float* grad, float* dx);
  // Of v, of v (x - mean) and of v g'.
  void (*second_sums)(int64_t rows, const NormChannels& n, const float* x, const float* grad,
                      const float* v, float* sums);
  // dgrad = what the rectifier lets through of scale v + factors[0] (x - mean) + factors[1];
  // dx = factors[2] v + factors[3] g' + factors[4] (x - mean) + factors[5].
  void (*second)(int64_t rows, const NormChannels& n, const float* factors, const float* x,
                 const float* grad, const float* v, float* dgrad, float* dx);
};

struct Kernels {
  Isa isa;

  // Elements [begin, begin + n) of a stream; see fastgan/random.py. philox_normal needs an even
  // begin, philox_keep_mask too.
  void (*philox_words)(const Philox& g, int64_t begin, int64_t n, int64_t* out);
  void (*philox_uniform)(const Philox& g, int64_t begin, int64_t n, float* out);
  void (*philox_normal)(const Philox& g, int64_t begin, int64_t n, float* out);
  void (*philox_keep_mask)(const Philox& g, int64_t begin, int64_t n, uint32_t threshold,
                           uint8_t* out);

  // One update of n elements in place.
  void (*adam_f32)(const Adam<float>& a, int64_t n, const float* grad, float* weight,
                   float* exp_avg, float* exp_avg_sq);
  void (*adam_f64)(const Adam<double>& a, int64_t n, const double* grad, double* weight,
                   double* exp_avg, double* exp_avg_sq);

  // grad[i] = scale * d bce(logits[i], label); returns the sum of the n losses, unscaled.
  double (*bce_f32)(const float* logits, int64_t n, double label, double scale, float* grad);
  double (*bce_f64)(const double* logits, int64_t n, double label, double scale, double* grad);
  double (*bce_bf16)(const bf16* logits, int64_t n, double label, double scale, bf16* grad);

  LinearKernels<float> linear_f32;
  LinearKernels<double> linear_f64;

  ConvKernels conv[static_cast<int>(ConvAlgorithm::count)];
  // The same with products on tiles, for many channels; null where there are none.
  const ConvKernels* tiled;
  NormKernels norm;

  // Rows and columns of product i, or of the sum of all; bias [columns] may be null. `scratch`:
  // kScratchBytes.
  void (*products)(const ProductShape& shape, const float* a, const float* b, const float* bias,
                   int64_t i, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end,
                   float* scratch, float* out);

  // The parts of a generator of a table's rows; ops/table/cpu_kernel.h says what each does. Ranges
  // are of rows for the heads, of units for the others.
  void (*heads)(const HeadsShape& shape, const float* logits, const float* normals, int64_t begin,
                int64_t end, float* scratch, float* rows);
  void (*heads_backward)(const HeadsShape& shape, const float* rows, int64_t begin, int64_t end,
                         float* scratch, float* grad);
  float (*surprise)(const float* logits, int64_t classes, int64_t asked, float scale, float* grad);
  void (*normed_relu)(const NormShape& shape, const float* x, const float* weight,
                      const float* bias, double momentum, double eps, int64_t begin, int64_t end,
                      float* running_mean, float* running_var, float* mean, float* inverse,
                      float* out);
  void (*normed_relu_backward)(const NormShape& shape, const float* out, const float* x,
                               const float* weight, const float* mean, const float* inverse,
                               int64_t begin, int64_t end, float* grad, float* grad_weight,
                               float* grad_bias);
  void (*add_columns)(const float* columns, int64_t column_row, const int64_t* category,
                      int64_t batch, int64_t begin, int64_t end, float* out, int64_t out_row);
  void (*sum_columns)(const float* grad, int64_t grad_row, const int64_t* category, int64_t batch,
                      int64_t categories, int64_t begin, int64_t end, float* out, int64_t out_row);
};

// The table of one instruction set, or nullptr if this processor or this build lacks it.
const Kernels* kernels_for(Isa isa);

// The table of isa().
const Kernels& kernels();

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace amx {
extern const ConvKernels tiled[static_cast<int>(ConvAlgorithm::count)];
}
#endif

}  // namespace fastgan::cpu
