// The matrix products of a linear layer with a leaky rectifier: forward, and the gradients of its
// input, weight and bias. Included by cpu/kernels_impl.h for each instruction set.
//
// All three products are C [rows, columns] = A [rows, depth] B [depth, columns], taken in blocks
// that fit the caches (K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008). Each element of C is one sum over the depth in order, so neither the
// blocks nor the division among threads show in the bits.
#include "common/activation.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

#include "cpu/microkernel.h"

static_assert(kTileColumns<float> <= kPanelWidth && kTileColumns<double> <= kPanelWidth);

// 0, 1, ..., n - 1 as template arguments.
template <int... I>
struct Sequence {};
template <int N, int... I>
struct CountOf : CountOf<N - 1, N - 1, I...> {};
template <int... I>
struct CountOf<0, I...> {
  using type = Sequence<I...>;
};
template <int N>
using Count = typename CountOf<N>::type;

struct Unchanged {
  template <class V>
  FASTGAN_INLINE V operator()(int, V x) const {
    return x;
  }
};

// The blocks of a large product, in elements. A packed panel of B stays in the first-level cache
// beside a tile of A; the packed blocks of A and B stay in the second.
template <class T>
constexpr int kPanelDepth = 24576 / (kTileColumns<T> * static_cast<int>(sizeof(T)));
template <class T>
constexpr int kDepthBlock = kPanelDepth<T> < 384 ? kPanelDepth<T> : 384;
constexpr int kRowBlock = 16 * kTileRows;
template <class T>
constexpr int kColumnBlock = 16 * kTileColumns<T>;

template <class T>
constexpr int64_t scratch_elements() {
  return kDepthBlock<T> * (kRowBlock + kColumnBlock<T>);
}
static_assert(scratch_elements<float>() * sizeof(float) <= kScratchBytes);
static_assert(scratch_elements<double>() * sizeof(double) <= kScratchBytes);

// B [depth, columns] row-major, and how a panel of it is packed: panel[k][j] = B[first + k][at + j]
// for k < depth and j < columns, then 0 up to the width of a panel.
template <class T>
struct Rows {
  const T* b;
  int64_t stride;

  void pack(int64_t first, int64_t depth, int64_t at, int columns, T* __restrict panel) const {
    constexpr int width = kTileColumns<T>;
    const T* __restrict from = b + first * stride + at;
    for (int64_t k = 0; k < depth; ++k) {
      if (columns == width) {
        for (int j = 0; j < width; ++j) panel[k * width + j] = from[k * stride + j];
      } else {
        for (int j = 0; j < width; ++j) {
          panel[k * width + j] = j < columns ? from[k * stride + j] : T(0);
        }
      }
    }
  }
};

// The lanes of two vectors in turn: the lower halves for Half = 0, the upper ones for 1.
template <int Half, class T, int... I>
FASTGAN_INLINE Vector<T> zip(Vector<T> a, Vector<T> b, Sequence<I...>) {
  constexpr int lanes = kLanes<T>;
  return __builtin_shufflevector(a, b, (Half * lanes / 2 + I / 2 + (I % 2) * lanes)...);
}

// rows[i][j] becomes rows[j][i].
template <class T>
FASTGAN_INLINE void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
  Vector<T> zipped[lanes];
  // Each pass zips row i with row i + lanes / 2; after log2(lanes) of them rows are columns.
#pragma GCC unroll 4
  for (int pass = 1; pass < lanes; pass *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      zipped[2 * i] = zip<0, T>(rows[i], rows[i + lanes / 2], Count<lanes>{});
      zipped[2 * i + 1] = zip<1, T>(rows[i], rows[i + lanes / 2], Count<lanes>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = zipped[i];
  }
}

// to[i * to_stride + j] = from[j * from_stride + i], a square of kLanes<T>.
template <class T>
FASTGAN_INLINE void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  Vector<T> rows[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) rows[i] = load_vector(from + i * from_stride);
  transpose<T>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) store_vector(to + i * to_stride, rows[i]);
}

// The same for B given as its transpose [columns, depth], row-major.
template <class T>
struct Columns {
  const T* b;
  int64_t stride;

  void pack(int64_t first, int64_t depth, int64_t at, int columns, T* __restrict panel) const {
    constexpr int width = kTileColumns<T>, lanes = kLanes<T>;
    const T* __restrict from = b + at * stride + first;
    int64_t k = 0;
    if (columns == width) {
      for (; k + lanes <= depth; k += lanes) {
        transpose_square(from + k, stride, panel + k * width, width);
        transpose_square(from + lanes * stride + k, stride, panel + k * width + lanes, width);
      }
    }
    for (; k < depth; ++k) {
      for (int j = 0; j < width; ++j) {
        panel[k * width + j] = j < columns ? from[j * stride + k] : T(0);
      }
    }
  }
};

// tiles of rows [0, rows) of A for the terms [0, depth): those of a tile of height h lie at
// packed[first * depth + k * h + m].
template <class T>
void pack_tiles(int64_t rows, int64_t depth, const T* __restrict a, int64_t a_row, int64_t a_column,
                T* __restrict packed) {
  each_tile(rows, [&](long first, int height) FASTGAN_LAMBDA_INLINE {
    const T* __restrict from = a + first * a_row;
    T* __restrict to = packed + first * depth;
    if (a_row == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int m = 0; m < height; ++m) to[k * height + m] = from[m + k * a_column];
      }
    } else {
      for (int m = 0; m < height; ++m) {
        for (int64_t k = 0; k < depth; ++k) to[k * height + m] = from[m * a_row + k * a_column];
      }
    }
  });
}

// Columns [begin, end) of C = A B, or with `add` of C += A B, row-major with c_row elements a row;
// finish_at(column) gives what is applied to the finished vectors of the panel that starts there.
// `scratch`: kScratchBytes.
template <class T, class B, class FinishAt>
void product_columns(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_column,
                     const B& b, int64_t begin, int64_t end, T* scratch, T* c, int64_t c_row,
                     const FinishAt& finish_at, bool add = false) {
  constexpr int width = kTileColumns<T>;
  T* const packed_a = scratch;
  T* const packed_b = scratch + kDepthBlock<T> * kRowBlock;
  for (int64_t j0 = begin; j0 < end; j0 += kColumnBlock<T>) {
    const int64_t j1 = j0 + kColumnBlock<T> < end ? j0 + kColumnBlock<T> : end;
    // A product of no terms still has a result: one pass over an empty block.
    for (int64_t k0 = 0; k0 == 0 || k0 < depth; k0 += kDepthBlock<T>) {
      const int64_t terms = depth - k0 < kDepthBlock<T> ? depth - k0 : kDepthBlock<T>;
      const bool first_block = k0 == 0 && !add, last_block = k0 + terms >= depth;
      for (int64_t at = j0; at < j1; at += width) {
        b.pack(k0, terms, at, static_cast<int>(j1 - at < width ? j1 - at : width),
               packed_b + (at - j0) * terms);
      }
      for (int64_t i0 = 0; i0 < rows; i0 += kRowBlock) {
        const int64_t height_of_block = rows - i0 < kRowBlock ? rows - i0 : kRowBlock;
        pack_tiles(height_of_block, terms, a + i0 * a_row + k0 * a_column, a_row, a_column,
                   packed_a);
        for (int64_t at = j0; at < j1; at += width) {
          const int count = static_cast<int>(j1 - at < width ? j1 - at : width);
          const auto finish = finish_at(at, count);
          const T* panel = packed_b + (at - j0) * terms;
          each_tile(height_of_block, [&](long first, int height) FASTGAN_LAMBDA_INLINE {
            T* to = c + (i0 + first) * c_row + at;
            alignas(64) T ragged[kTileRows * width];
            T* out = to;
            int64_t out_row = c_row;
            if (count < width) {  // a ragged panel is computed beside C and copied
              out = ragged;
              out_row = width;
              for (int m = 0; m < height; ++m) {
                for (int j = 0; j < width; ++j) {
                  ragged[m * width + j] = first_block || j >= count ? T(0) : to[m * c_row + j];
                }
              }
            }
            tile_of<2, T>(
                height, terms, packed_a + first * terms, 1, height, panel, width,
                [&](int m, int v) FASTGAN_LAMBDA_INLINE {
                  return first_block ? Vector<T>{} : load_vector(out + m * out_row + v * kLanes<T>);
                },
                [&](int m, int v, Vector<T> x) FASTGAN_LAMBDA_INLINE {
                  store_vector(out + m * out_row + v * kLanes<T>, last_block ? finish(v, x) : x);
                });
            if (count < width) {
              for (int m = 0; m < height; ++m) {
                for (int j = 0; j < count; ++j) to[m * c_row + j] = ragged[m * width + j];
              }
            }
          });
        }
      }
    }
  }
}

// The same for at most one tile of rows: B is read once, in place.
template <class T>
void few_rows_product(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_column,
                      const Rows<T>& b, int64_t at, T* c, int64_t c_row) {
  tile_of<2, T>(
      static_cast<int>(rows), depth, a, a_row, a_column, b.b + at, b.stride,
      [](int, int) FASTGAN_LAMBDA_INLINE { return Vector<T>{}; },
      [&](int m, int v, Vector<T> x)
          FASTGAN_LAMBDA_INLINE { store_vector(c + m * c_row + at + v * kLanes<T>, x); });
}

// sums[m * Outs + o] = sum over k of x[m][k] * w[o][k]: vectors run along k, so neither operand is
// rearranged. Each sum is kLanes<T> partial sums, added up as a tree: the same for every Rows,
// Outs.
template <int Rows, int Outs, class T>
FASTGAN_INLINE void dots(int64_t depth, const T* x, int64_t x_stride, const T* w, int64_t w_stride,
                         T* sums) {
  constexpr int lanes = kLanes<T>;
  constexpr int groups = (Rows * Outs + lanes - 1) / lanes;
  Vector<T> c[groups * lanes];
#pragma GCC unroll 16
  for (int i = 0; i < groups * lanes; ++i) c[i] = Vector<T>{};
  const auto add = [&](const T* xk, int64_t xs, const T* wk, int64_t ws) FASTGAN_LAMBDA_INLINE {
    Vector<T> wv[Outs];
#pragma GCC unroll 16
    for (int o = 0; o < Outs; ++o) wv[o] = load_vector(wk + o * ws);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Vector<T> xv = load_vector(xk + m * xs);
#pragma GCC unroll 16
      for (int o = 0; o < Outs; ++o) c[m * Outs + o] += xv * wv[o];
    }
  };
  int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) add(x + k, x_stride, w + k, w_stride);
  if (k < depth) {  // the rest, filled up with zeros
    alignas(64) T xs[Rows * lanes], ws[Outs * lanes];
    for (int m = 0; m < Rows; ++m) {
      for (int i = 0; i < lanes; ++i)
        xs[m * lanes + i] = k + i < depth ? x[m * x_stride + k + i] : T(0);
    }
    for (int o = 0; o < Outs; ++o) {
      for (int i = 0; i < lanes; ++i)
        ws[o * lanes + i] = k + i < depth ? w[o * w_stride + k + i] : T(0);
    }
    add(xs, lanes, ws, lanes);
  }
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
    Vector<T> part[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) part[i] = c[g * lanes + i];
    transpose<T>(part);
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < half; ++i) part[i] += part[i + half];
    }
    store_vector(sums + g * lanes, part[0]);
  }
}

// As many sums at a time as leave a register for each operand's vector.
constexpr int kDotOuts = 4;
constexpr int kDotRows = FASTGAN_VECTOR_REGISTERS >= 32 ? 4 : 2;

// y = leaky_relu(x w^T + bias) for Outs outputs and every row.
template <int Outs, class T>
inline void dot_columns(const LinearShape& s, const T* x, const T* w, const T* bias, T slope,
                        T* y) {
  alignas(64) T sums[kDotRows * kDotOuts + kLanes<T>];
  const auto finish = [&](int64_t row, int rows) FASTGAN_LAMBDA_INLINE {
    for (int m = 0; m < rows; ++m) {
      for (int o = 0; o < Outs; ++o) {
        y[(row + m) * s.out + o] = leaky_relu(sums[m * Outs + o] + (bias ? bias[o] : T(0)), slope);
      }
    }
  };
  int64_t row = 0;
  for (; row + kDotRows <= s.batch; row += kDotRows) {
    dots<kDotRows, Outs>(s.in, x + row * s.in, s.in, w, s.in, sums);
    finish(row, kDotRows);
  }
  for (; row < s.batch; ++row) {
    dots<1, Outs>(s.in, x + row * s.in, s.in, w, s.in, sums);
    finish(row, 1);
  }
}

// What becomes of the finished sums of one panel of the forward product.
template <class T>
struct Epilogue {
  alignas(64) T shift[kTileColumns<T>];
  T slope;

  FASTGAN_INLINE Vector<T> operator()(int v, Vector<T> sum) const {
    const Vector<T> pre = sum + load_vector(shift + v * kLanes<T>);
    return pre > T(0) ? pre : pre * slope;
  }
};

template <class T>
void linear_leaky_relu(const LinearShape& s, const T* __restrict x, const T* __restrict weight,
                       const T* __restrict bias, double negative_slope, int64_t out_begin,
                       int64_t out_end, T* scratch, T* __restrict y) {
  constexpr int width = kTileColumns<T>;
  const T slope = static_cast<T>(negative_slope);
  // With few rows, turning the weight into panels would cost more than it saves.
  constexpr int64_t few_rows = 16;
  if (s.batch <= few_rows) {
    int64_t o = out_begin;
    for (; o + kDotOuts <= out_end; o += kDotOuts) {
      dot_columns<kDotOuts>(s, x, weight + o * s.in, bias ? bias + o : nullptr, slope, y + o);
    }
    for (; o < out_end; ++o) {
      dot_columns<1>(s, x, weight + o * s.in, bias ? bias + o : nullptr, slope, y + o);
    }
    return;
  }
  product_columns(s.batch, s.in, x, s.in, int64_t{1}, Columns<T>{weight, s.in}, out_begin, out_end,
                  scratch, y, s.out, [&](int64_t at, int count) {
                    Epilogue<T> epilogue;
                    for (int j = 0; j < width; ++j) {
                      epilogue.shift[j] = bias && j < count ? bias[at + j] : T(0);
                    }
                    epilogue.slope = slope;
                    return epilogue;
                  });
}

template <class T>
void leaky_relu_backward(const LinearShape& s, const T* __restrict grad, const T* __restrict sign,
                         double negative_slope, int64_t out_begin, int64_t out_end,
                         T* __restrict grad_pre, T* __restrict grad_bias) {
  constexpr int strip = 4096;  // columns: their sums stay in a near cache, and rows are read whole
  const T slope = static_cast<T>(negative_slope);
  for (int64_t at = out_begin; at < out_end; at += strip) {
    const int count = static_cast<int>(out_end - at < strip ? out_end - at : strip);
    alignas(64) T sums[strip];
    for (int j = 0; j < count; ++j) sums[j] = T(0);
    for (int64_t row = 0; row < s.batch; ++row) {
      const int64_t offset = row * s.out + at;
      const T* __restrict g = grad + offset;
      const T* __restrict f = sign + offset;
      T* __restrict to = grad_pre + offset;
      for (int j = 0; j < count; ++j) {
        const T value = leaky_relu_grad(g[j], f[j], slope);
        to[j] = value;
        sums[j] += value;
      }
    }
    if (grad_bias) {
      for (int j = 0; j < count; ++j) grad_bias[at + j] = sums[j];
    }
  }
}

template <class T>
void linear_grad_x(const LinearShape& s, const T* __restrict grad_pre, const T* __restrict weight,
                   int64_t in_begin, int64_t in_end, T* scratch, T* __restrict grad_x) {
  constexpr int width = kTileColumns<T>;
  const Rows<T> b{weight, s.in};
  int64_t at = in_begin;
  if (s.batch > 0 && s.batch <= kTileRows) {
    for (; at + width <= in_end; at += width) {
      few_rows_product(s.batch, s.out, grad_pre, s.out, int64_t{1}, b, at, grad_x, s.in);
    }
  }
  product_columns(s.batch, s.out, grad_pre, s.out, int64_t{1}, b, at, in_end, scratch, grad_x, s.in,
                  [](int64_t, int) { return Unchanged{}; });
}

template <class T>
void linear_grad_weight(const LinearShape& s, const T* __restrict grad_pre, const T* __restrict x,
                        int64_t in_begin, int64_t in_end, T* scratch, T* __restrict grad_weight) {
  product_columns(s.out, s.batch, grad_pre, int64_t{1}, s.out, Rows<T>{x, s.in}, in_begin, in_end,
                  scratch, grad_weight, s.in, [](int64_t, int) { return Unchanged{}; });
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
