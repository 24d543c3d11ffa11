// The transforms of the Winograd convolutions, in one dimension. Included inside the namespace of
// an instruction set, after cpu/microkernel.h; there is no include guard.
//
// F(m, r): m outputs of a filter of r taps from a = m + r - 1 inputs, by a products:
//   y = A^T [(G g) * (B^T d)]
// (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016). Each struct has the three matrices and
// their transposes as functions from places `s` apart to places `q` apart.

// No transform: a product for each output and tap.
struct F11 {
  static constexpr int m = 1, r = 1, a = 1;
  template <class V>
  static FASTGAN_INLINE void input(const V* d, int, V* o, int) {
    o[0] = d[0];
  }
  template <class V>
  static FASTGAN_INLINE void input_transposed(const V* u, int, V* o, int) {
    o[0] = u[0];
  }
  template <class V>
  static FASTGAN_INLINE void weight(const V* g, int, V* o, int) {
    o[0] = g[0];
  }
  template <class V>
  static FASTGAN_INLINE void weight_transposed(const V* v, int, V* o, int) {
    o[0] = v[0];
  }
  template <class V>
  static FASTGAN_INLINE void output(const V* x, int, V* o, int) {
    o[0] = x[0];
  }
  template <class V>
  static FASTGAN_INLINE void output_transposed(const V* y, int, V* o, int) {
    o[0] = y[0];
  }
};

// Points 0, 1 and infinity.
struct F22 {
  static constexpr int m = 2, r = 2, a = 3;
  template <class V>
  static FASTGAN_INLINE void input(const V* d, int s, V* o, int q) {
    o[0] = d[0] - d[s];
    o[q] = d[s];
    o[2 * q] = d[2 * s] - d[s];
  }
  template <class V>
  static FASTGAN_INLINE void input_transposed(const V* u, int s, V* o, int q) {
    o[0] = u[0];
    o[q] = u[s] - u[0] - u[2 * s];
    o[2 * q] = u[2 * s];
  }
  template <class V>
  static FASTGAN_INLINE void weight(const V* g, int s, V* o, int q) {
    o[0] = g[0];
    o[q] = g[0] + g[s];
    o[2 * q] = g[s];
  }
  template <class V>
  static FASTGAN_INLINE void weight_transposed(const V* v, int s, V* o, int q) {
    o[0] = v[0] + v[s];
    o[q] = v[s] + v[2 * s];
  }
  template <class V>
  static FASTGAN_INLINE void output(const V* x, int s, V* o, int q) {
    o[0] = x[0] + x[s];
    o[q] = x[s] + x[2 * s];
  }
  template <class V>
  static FASTGAN_INLINE void output_transposed(const V* y, int s, V* o, int q) {
    o[0] = y[0];
    o[q] = y[0] + y[s];
    o[2 * q] = y[s];
  }
};

// Points 0, 1, -1 and infinity.
struct F23 {
  static constexpr int m = 2, r = 3, a = 4;
  template <class V>
  static FASTGAN_INLINE void input(const V* d, int s, V* o, int q) {
    o[0] = d[0] - d[2 * s];
    o[q] = d[s] + d[2 * s];
    o[2 * q] = d[2 * s] - d[s];
    o[3 * q] = d[3 * s] - d[s];
  }
  template <class V>
  static FASTGAN_INLINE void weight(const V* g, int s, V* o, int q) {
    const V even = 0.5f * (g[0] + g[2 * s]), odd = 0.5f * g[s];
    o[0] = g[0];
    o[q] = even + odd;
    o[2 * q] = even - odd;
    o[3 * q] = g[2 * s];
  }
  template <class V>
  static FASTGAN_INLINE void weight_transposed(const V* v, int s, V* o, int q) {
    const V even = 0.5f * (v[s] + v[2 * s]);
    o[0] = v[0] + even;
    o[q] = 0.5f * (v[s] - v[2 * s]);
    o[2 * q] = even + v[3 * s];
  }
  template <class V>
  static FASTGAN_INLINE void output(const V* x, int s, V* o, int q) {
    o[0] = x[0] + x[s] + x[2 * s];
    o[q] = x[s] - x[2 * s] + x[3 * s];
  }
  template <class V>
  static FASTGAN_INLINE void output_transposed(const V* y, int s, V* o, int q) {
    o[0] = y[0];
    o[q] = y[0] + y[s];
    o[2 * q] = y[0] - y[s];
    o[3 * q] = y[s];
  }
};

// Points 0, -1, 1/2, 2 and infinity.
struct F42 {
  static constexpr int m = 4, r = 2, a = 5;
  template <class V>
  static FASTGAN_INLINE void input(const V* d, int s, V* o, int q) {
    const V middle = d[s] + d[2 * s], last = d[2 * s] + d[3 * s];
    o[0] = d[0] + d[3 * s] - 1.5f * middle;
    o[q] = d[s] + d[3 * s] - 2.5f * d[2 * s];
    o[2 * q] = d[3 * s] - d[2 * s] - 2.0f * d[s];
    o[3 * q] = d[3 * s] + 0.5f * (d[2 * s] - d[s]);
    o[4 * q] = d[s] + d[4 * s] - 1.5f * last;
  }
  template <class V>
  static FASTGAN_INLINE void input_transposed(const V* u, int s, V* o, int q) {
    const V ends = u[0] + u[4 * s], half = 0.5f * u[3 * s];
    o[0] = u[0];
    o[q] = u[s] + u[4 * s] - 1.5f * u[0] - 2.0f * u[2 * s] - half;
    o[2 * q] = half - u[2 * s] - 1.5f * ends - 2.5f * u[s];
    o[3 * q] = u[0] + u[s] + u[2 * s] + u[3 * s] - 1.5f * u[4 * s];
    o[4 * q] = u[4 * s];
  }
  template <class V>
  static FASTGAN_INLINE void weight(const V* g, int s, V* o, int q) {
    o[0] = g[0];
    o[q] = (2.0f / 9) * (g[s] - g[0]);
    o[2 * q] = (-4.0f / 9) * (g[0] + g[0] + g[s]);
    o[3 * q] = (1.0f / 9) * (g[0] + g[s] + g[s]);
    o[4 * q] = g[s];
  }
  template <class V>
  static FASTGAN_INLINE void weight_transposed(const V* v, int s, V* o, int q) {
    const V a = (2.0f / 9) * v[s], b = (4.0f / 9) * v[2 * s], c = (1.0f / 9) * v[3 * s];
    o[0] = v[0] - a - b - b + c;
    o[q] = v[4 * s] + a - b + c + c;
  }
  template <class V>
  static FASTGAN_INLINE void output(const V* x, int s, V* o, int q) {
    o[0] = x[0] + x[s] + x[2 * s] + x[3 * s];
    o[q] = 0.5f * x[2 * s] - x[s] + 2.0f * x[3 * s];
    o[2 * q] = x[s] + 0.25f * x[2 * s] + 4.0f * x[3 * s];
    o[3 * q] = x[4 * s] - x[s] + 0.125f * x[2 * s] + 8.0f * x[3 * s];
  }
  template <class V>
  static FASTGAN_INLINE void output_transposed(const V* y, int s, V* o, int q) {
    const V even = y[0] + y[2 * s], odd = y[s] + y[3 * s];
    o[0] = y[0];
    o[q] = even - odd;
    o[2 * q] = y[0] + 0.5f * y[s] + 0.25f * y[2 * s] + 0.125f * y[3 * s];
    o[3 * q] = y[0] + 2.0f * y[s] + 4.0f * y[2 * s] + 8.0f * y[3 * s];
    o[4 * q] = y[3 * s];
  }
};

// Points 0, 1, -1, 1/2, -2 and infinity. Not for gradients of the weight, which it rounds more than
// four times as much as a plain sum.
struct F43 {
  static constexpr int m = 4, r = 3, a = 6;
  template <class V>
  static FASTGAN_INLINE void input(const V* d, int s, V* o, int q) {
    const V odd = d[3 * s] - d[s], even = d[4 * s] - d[2 * s];
    o[0] = d[0] + d[4 * s] + 1.5f * odd - 2.0f * d[2 * s];
    o[q] = d[4 * s] - d[s] + 0.5f * d[2 * s] + 2.5f * d[3 * s];
    o[2 * q] = d[4 * s] + d[s] + 0.5f * d[3 * s] - 2.5f * d[2 * s];
    o[3 * q] = even + 2.0f * odd;
    o[4 * q] = even - 0.5f * odd;
    o[5 * q] = d[s] + d[5 * s] + 1.5f * even - 2.0f * d[3 * s];
  }
  template <class V>
  static FASTGAN_INLINE void weight(const V* g, int s, V* o, int q) {
    const V ends = g[0] + g[2 * s];
    o[0] = g[0];
    o[q] = (1.0f / 3) * (ends + g[s]);
    o[2 * q] = (1.0f / 3) * (g[s] - ends);
    o[3 * q] = (-4.0f / 15) * (4.0f * g[0] + 2.0f * g[s] + g[2 * s]);
    o[4 * q] = (1.0f / 15) * (g[0] - 2.0f * g[s] + 4.0f * g[2 * s]);
    o[5 * q] = g[2 * s];
  }
  template <class V>
  static FASTGAN_INLINE void output(const V* x, int s, V* o, int q) {
    const V sum = x[s] + x[2 * s], difference = x[s] - x[2 * s];
    o[0] = x[0] + sum + x[3 * s] + x[4 * s];
    o[q] = difference + 0.5f * x[3 * s] - 2.0f * x[4 * s];
    o[2 * q] = sum + 0.25f * x[3 * s] + 4.0f * x[4 * s];
    o[3 * q] = difference + 0.125f * x[3 * s] - 8.0f * x[4 * s] + x[5 * s];
  }
};

// The same in two dimensions: out [To][To] = M in M^T for the transform `line` of From places.
template <int From, int To, class V, class Line>
FASTGAN_INLINE void transform(const V (&in)[From * From], V (&out)[To * To], const Line& line) {
  V columns[To * From];
#pragma GCC unroll 8
  for (int j = 0; j < From; ++j) line(in + j, From, columns + j, From);
#pragma GCC unroll 8
  for (int i = 0; i < To; ++i) line(columns + i * From, 1, out + i * To, 1);
}
#define FASTGAN_TRANSFORM(F, From, To, name, in, out)                                           \
  transform<From, To>(in, out, [](const auto* d, int s, auto* o, int q) FASTGAN_LAMBDA_INLINE { \
    F::name(d, s, o, q);                                                                        \
  })
