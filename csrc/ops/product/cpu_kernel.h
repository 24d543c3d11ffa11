// Several products of matrices with steps of their own, or their sum.
// Included by cpu/kernels_impl.h for each instruction set, behind ops/linear/cpu_kernel.h.
#include "ops/product/shape.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

struct Shifted {
  alignas(64) float shift[kTileColumns<float>];

  FASTGAN_INLINE Vector<float> operator()(int v, Vector<float> sum) const {
    return sum + load_vector(shift + v * kLanes<float>);
  }
};

template <class B>
void product_of(const ProductShape& s, const float* a, const B& b, const float* bias,
                int64_t row_begin, int64_t row_end, int64_t begin, int64_t end, bool add,
                float* scratch, float* out) {
  const int64_t rows = row_end - row_begin;
  a += row_begin * s.a_row;
  out += row_begin * s.out_row;
  if (bias == nullptr) {
    product_columns(
        rows, s.depth, a, s.a_row, s.a_term, b, begin, end, scratch, out, s.out_row,
        [](int64_t, int) { return Unchanged{}; }, add);
    return;
  }
  product_columns(
      rows, s.depth, a, s.a_row, s.a_term, b, begin, end, scratch, out, s.out_row,
      [&](int64_t at, int count) {
        Shifted shifted;
        for (int j = 0; j < kTileColumns<float>; ++j) {
          shifted.shift[j] = j < count ? bias[at + j] : 0.f;
        }
        return shifted;
      },
      add);
}

// Rows [row_begin, row_end) and columns [begin, end) of out[i], or of the sum of all.
void products(const ProductShape& s, const float* a, const float* b, const float* bias, int64_t i,
              int64_t row_begin, int64_t row_end, int64_t begin, int64_t end, float* scratch,
              float* out) {
  const int64_t first = s.sum ? 0 : i, last = s.sum ? s.many : i + 1;
  for (int64_t k = first; k < last; ++k) {
    const float* const from = a + k * s.a_many;
    const float* const with = b + k * s.b_many;
    float* const to = out + (s.sum ? 0 : k * s.out_many);
    const bool add = s.add || k > first;
    const float* const shift = k + 1 == last ? bias : nullptr;
    if (s.b_column == 1) {
      product_of(s, from, Rows<float>{with, s.b_term}, shift, row_begin, row_end, begin, end, add,
                 scratch, to);
    } else {
      product_of(s, from, Columns<float>{with, s.b_column}, shift, row_begin, row_end, begin, end,
                 add, scratch, to);
    }
  }
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
