// A register tile of a matrix product: C[m][0:32] (+)= sum over k of A[m][k] * B[k][0:32].
//
// A is read one element at a time and broadcast, so any strides will do; B is read in whole
// vectors, so 32 neighbouring columns must be contiguous. Column-major A costs nothing, a
// column-major B must be transposed by the caller. Every product of a linear layer fits this form
// without copying its weight.
//
// One source for every instruction set, in GCC's and clang's vector extensions. Include it once per
// instruction set, inside that set's namespace and its target (target.h), with FASTGAN_VECTOR_BYTES
// defined: 64 (AVX-512), 32 (AVX2) or 16 (SSE2, NEON). It includes nothing and defines nothing
// outside the namespace but the macros FASTGAN_INLINE and FASTGAN_LAMBDA_INLINE. There is no
// include guard: a second instruction set in one file is a second copy.
//
// Each element of C is one chain of multiply-adds over k in increasing order, whatever the tile's
// shape: how a caller cuts C into tiles changes no bit of the result.

#undef FASTGAN_INLINE
#define FASTGAN_INLINE __attribute__((always_inline)) inline
#undef FASTGAN_LAMBDA_INLINE
#define FASTGAN_LAMBDA_INLINE __attribute__((always_inline))

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(FASTGAN_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = FASTGAN_VECTOR_BYTES / static_cast<int>(sizeof(T));

// Two vectors wide, and as high as the registers allow beside two of B and one of A. On two
// multiply-add units of latency 4 at least 8 accumulators must be in flight.
constexpr int kTileRows = FASTGAN_VECTOR_REGISTERS >= 32 ? 14 : 6;
template <class T>
constexpr int kTileColumns = 2 * kLanes<T>;

template <class T>
FASTGAN_INLINE Vector<T> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <class T>
FASTGAN_INLINE void store_vector(T* p, Vector<T> x) {
  *reinterpret_cast<Vector<T>*>(p) = x;
}
// Subtracting zero changes no value, so the compiler leaves a broadcast straight from memory, which
// runs in the load unit. A broadcast written as an initialiser list or through a scalar register
// takes a shuffle, and those share a port with the multiply-adds: a third of the speed was lost.
template <class T>
FASTGAN_INLINE Vector<T> broadcast(const T* p) {
  return *p - Vector<T>{};
}

// One tile of Rows x Vectors * kLanes<T>.
//   k            terms of the sum, >= 0
//   a            A[m][k] = a[m * a_row + k * a_column]
//   b            B[k][j] = b[k * b_row + j]
//   begin(m, v)  the value that vector v of row m starts from: zero, or what C holds
//   end(m, v, x) takes the finished vector v of row m: stores it, or applies an activation first
template <int Rows, int Vectors, class T, class Begin, class End>
FASTGAN_INLINE void tile(long k, const T* a, long a_row, long a_column, const T* b, long b_row,
                         Begin begin, End end) {
  Vector<T> c[Rows][Vectors];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) c[m][v] = begin(m, v);
  for (long i = 0; i < k; ++i) {
    Vector<T> row[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) row[v] = load_vector(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Vector<T> x = broadcast(a + m * a_row);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) c[m][v] += x * row[v];
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) end(m, v, c[m][v]);
}

// A tile whose height is known at run time only, 1 to kTileRows.
template <int Vectors, class T, class Begin, class End>
FASTGAN_INLINE void tile_of(int rows, long k, const T* a, long a_row, long a_column, const T* b,
                            long b_row, Begin begin, End end) {
#define FASTGAN_CASE(n)                                                 \
  case n:                                                               \
    if constexpr (n <= kTileRows)                                       \
      tile<n, Vectors, T>(k, a, a_row, a_column, b, b_row, begin, end); \
    break;
  switch (rows) {
    FASTGAN_CASE(1)
    FASTGAN_CASE(2)
    FASTGAN_CASE(3)
    FASTGAN_CASE(4)
    FASTGAN_CASE(5)
    FASTGAN_CASE(6)
    FASTGAN_CASE(7)
    FASTGAN_CASE(8)
    FASTGAN_CASE(9)
    FASTGAN_CASE(10)
    FASTGAN_CASE(11)
    FASTGAN_CASE(12)
    FASTGAN_CASE(13)
    FASTGAN_CASE(14)
  }
#undef FASTGAN_CASE
}

// Cuts `rows` into the fewest tiles, as even in height as possible, and calls f(first row, height).
template <class F>
FASTGAN_INLINE void each_tile(long rows, F f) {
  const long tiles = (rows + kTileRows - 1) / kTileRows;
  for (long i = 0; i < tiles; ++i) {
    const long first = rows * i / tiles;
    f(first, static_cast<int>(rows * (i + 1) / tiles - first));
  }
}

// C[rows x columns] = A B, or += with Accumulate. Whole vectors of B and C are read and written:
// both must have room for `columns` rounded up to kLanes<T>.
template <bool Accumulate, class T>
FASTGAN_INLINE void product(long rows, long columns, long k, const T* a, long a_row, long a_column,
                            const T* b, long b_row, T* c, long c_row) {
  constexpr long lanes = kLanes<T>;
  for (long j = 0; j < columns; j += 2 * lanes)
    each_tile(rows, [&](long first, int height) FASTGAN_LAMBDA_INLINE {
      T* out = c + first * c_row + j;
      const auto begin = [&](int m, int v) FASTGAN_LAMBDA_INLINE {
        return Accumulate ? load_vector(out + m * c_row + v * lanes) : Vector<T>{};
      };
      const auto end = [&](int m, int v, Vector<T> x)
                           FASTGAN_LAMBDA_INLINE { store_vector(out + m * c_row + v * lanes, x); };
      const T* from = a + first * a_row;
      if (columns - j > lanes)
        tile_of<2, T>(height, k, from, a_row, a_column, b + j, b_row, begin, end);
      else
        tile_of<1, T>(height, k, from, a_row, a_column, b + j, b_row, begin, end);
    });
}
