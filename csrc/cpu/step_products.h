// Matrix products for step_impl.h: C [rows x 32] (+)= A B, sums in float32. FASTGAN_PRODUCTS says
// how, with the numbers of step.h's enum Products:
//   0  float32 on the register tile of microkernel.h. A is used where it lies; "right" copies a
//      panel of B together, [terms][32].
//   1, 2  operands rounded to bfloat16, on AVX-512's dot products or on AMX tiles.
//   3  float32 on AMX tiles: an operand is the sum of three bfloat16 numbers of 8 bits each, which
//      hold its 24 bits exactly, and a product is the sum of the six products of parts that are not
//      below float32's last place (after G. Henry, P. T. P. Tang, A. Heinecke, "Leveraging the
//      bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", ARITH 2019).
//      Beyond 3.38e38 a value counts as infinite, below 1e-33 its last bits are lost.
// In 1 to 3 both operands are packed in tiles of 1 KiB, sums padded with zeros to whole chunks:
//   left   [rows / 16][chunks][part][16 rows][16 pairs][2]
//   right  [chunks][part][columns / 16][16 pairs][16 columns][2], a panel of 32 columns
// A chunk is 32 terms of the sum; pair j has its terms j and j + 16, so that two vectors make
// sixteen pairs without a shuffle.

#if FASTGAN_PRODUCTS == 0

constexpr bool kTiled = false;
constexpr int64_t kParts = 1, kChunk = 1;
using Packed = float;

FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}

// B[k][n] = from[k * stride + n].
void right_rows(const float* from, int64_t stride, int64_t terms, int64_t columns, float* to) {
  for (int64_t k = 0; k < terms; ++k, from += stride, to += kBlock) {
    if (columns == kBlock) {
      for (int64_t j = 0; j < kBlock; ++j) to[j] = from[j];
    } else {
      for (int64_t j = 0; j < kBlock; ++j) to[j] = j < columns ? from[j] : 0.f;
    }
  }
}

// B[k][n] = from[n * stride + k].
void right_columns(const float* from, int64_t stride, int64_t terms, int64_t columns, float* to) {
  const int64_t whole = columns == kBlock ? terms / kFloats * kFloats : 0;
  for (int64_t k = 0; k < whole; k += kFloats)
    for (int64_t n = 0; n < kBlock; n += kFloats) {
      F square[kFloats];
#  pragma GCC unroll 16
      for (int i = 0; i < kFloats; ++i) square[i] = load_vector(from + (n + i) * stride + k);
      transpose_vectors(square);
#  pragma GCC unroll 16
      for (int i = 0; i < kFloats; ++i) store_vector(to + (k + i) * kBlock + n, square[i]);
    }
  for (int64_t k = whole; k < terms; ++k)
    for (int64_t n = 0; n < kBlock; ++n)
      to[k * kBlock + n] = n < columns ? from[n * stride + k] : 0.f;
}

#else

constexpr bool kTiled = true;
constexpr int64_t kParts = FASTGAN_PRODUCTS == 3 ? 3 : 1, kChunk = 32;
constexpr int64_t kTile = 16 * kChunk;           // values
constexpr int64_t kTileParts = kTile * kParts;   // of a left tile
constexpr int64_t kPanelParts = 2 * kTileParts;  // of a chunk of a panel
using Packed = uint16_t;

int64_t chunks_of(int64_t terms) { return (terms + kChunk - 1) / kChunk; }

// --- Packing ---

// Sixteen pairs, of one lane of `first` and of `second` each.
struct Pairs {
  __m512i part[kParts];
};
FASTGAN_INLINE Pairs pair(F first, F second) {
  Pairs pairs;
#  if FASTGAN_PRODUCTS == 3
  typedef uint32_t Words __attribute__((vector_size(64)));
  // Rounded by half a unit of the upper half, the lower half dropped: at most 8 bits are left over
  // after the second time.
  const Words half = Words{} + 0x8000u, upper = Words{} + 0xffff0000u;
  for (int64_t p = 0; p < 3; ++p) {
    const Words a = p < 2 ? ((Words)first + half) & upper : (Words)first;
    const Words b = p < 2 ? ((Words)second + half) & upper : (Words)second;
    pairs.part[p] = (__m512i)((a >> 16) | b);
    first -= (F)a;
    second -= (F)b;
  }
#  else
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  pairs.part[0] = _mm512_permutexvar_epi16(order, both);
#  endif
  return pairs;
}

// Up to 16 lines of up to 16 values; what lies outside is not read and counts as zero.
struct Square {
  const float* from;
  int64_t lines;
  __mmask16 columns;
};
Square square(const float* from, int64_t lines, int64_t columns) {
  const auto clamp = [](int64_t n) { return n < 0 ? 0 : n > 16 ? 16 : n; };
  return {from, clamp(lines), static_cast<__mmask16>((1u << clamp(columns)) - 1u)};
}
template <bool Whole>
FASTGAN_INLINE F line(const Square& s, int64_t stride, int64_t i) {
  if (Whole) return load_vector(s.from + i * stride);
  return i < s.lines ? (F)_mm512_maskz_loadu_ps(s.columns, s.from + i * stride) : F{};
}

FASTGAN_INLINE void store_pairs(const Pairs& pairs, uint16_t* to, int64_t part_stride) {
  for (int64_t p = 0; p < kParts; ++p) _mm512_storeu_si512(to + p * part_stride, pairs.part[p]);
}

// Row i of the tile: the pairs of line i of both squares.
template <bool Whole>
FASTGAN_INLINE void pack_lines(const Square& a, const Square& b, int64_t stride, uint16_t* to,
                               int64_t part_stride) {
#  pragma GCC unroll 4
  for (int64_t i = 0; i < 16; ++i)
    store_pairs(pair(line<Whole>(a, stride, i), line<Whole>(b, stride, i)), to + i * kChunk,
                part_stride);
}

// Row i of the tile: the pairs of column i of both squares.
template <bool Whole>
FASTGAN_INLINE void pack_columns(const Square& a, const Square& b, int64_t stride, uint16_t* to,
                                 [[maybe_unused]] int64_t part_stride) {
#  if FASTGAN_PRODUCTS == 3
  // Two squares of float32 are turned rather than three of pairs.
  F x[16];
  alignas(64) float turned[16 * 16];
#    pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) x[i] = line<Whole>(a, stride, i);
  transpose_vectors(x);
#    pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) store_vector(turned + 16 * i, x[i]);
#    pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) x[i] = line<Whole>(b, stride, i);
  transpose_vectors(x);
#    pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i)
    store_pairs(pair(load_vector(turned + 16 * i), x[i]), to + i * kChunk, part_stride);
#  else
  F x[16];
#    pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i)
    x[i] = (F)pair(line<Whole>(a, stride, i), line<Whole>(b, stride, i)).part[0];
  transpose_vectors(x);
#    pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) store_vector(reinterpret_cast<float*>(to + i * kChunk), x[i]);
#  endif
}

template <bool Columns>
__attribute__((noinline)) void pack(const Square& a, const Square& b, int64_t stride, uint16_t* to,
                                    int64_t part_stride) {
  constexpr __mmask16 all = 0xffff;
  const bool whole = a.lines == 16 && b.lines == 16 && a.columns == all && b.columns == all;
  if (Columns) {
    if (whole)
      pack_columns<true>(a, b, stride, to, part_stride);
    else
      pack_columns<false>(a, b, stride, to, part_stride);
  } else {
    if (whole)
      pack_lines<true>(a, b, stride, to, part_stride);
    else
      pack_lines<false>(a, b, stride, to, part_stride);
  }
}

// Packing goes in units of one tile, so that it can run beside the products.

// A[m][k] = from[m * stride + k] of a tile of rows of `left`.
void left_rows(const float* from, int64_t stride, int64_t rows, int64_t terms, uint16_t* to) {
  pack<false>(square(from, rows, terms), square(from + 16, rows, terms - 16), stride, to, kTile);
}

// A[m][k] = from[k * stride + m].
void left_columns(const float* from, int64_t stride, int64_t rows, int64_t terms, uint16_t* to) {
  pack<true>(square(from, terms, rows), square(from + 16 * stride, terms - 16, rows), stride, to,
             kTile);
}

// Half `unit % 2` of chunk `unit / 2` of a panel: B[k][n] = from[k * stride + n], or
// from[n * stride + k] if it is Turned.
template <bool Turned>
void right_unit(int64_t unit, const float* from, int64_t stride, int64_t terms, int64_t columns,
                uint16_t* to) {
  const int64_t k = unit / 2 * kChunk, n = unit % 2 * 16;
  to += unit / 2 * kPanelParts + unit % 2 * kTile;
  if (Turned) {
    from += n * stride + k;
    pack<true>(square(from, columns - n, terms - k), square(from + 16, columns - n, terms - k - 16),
               stride, to, 2 * kTile);
  } else {
    from += k * stride + n;
    pack<false>(square(from, terms - k, columns - n),
                square(from + 16 * stride, terms - k - 16, columns - n), stride, to, 2 * kTile);
  }
}

// --- Products of packed operands ---

#  if FASTGAN_PRODUCTS >= 2

// Eight tiles of 16 rows of 64 bytes.
void start_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  _tile_loadconfig(&configuration);
}
void stop_tiles() { _tile_release(); }

// Tiles 0 to 3 are C, two by two; 4 and 5 are rows of A, 6 and 7 columns of B. A lone tile of rows
// uses 0, 1 and 4.
template <bool Two>
FASTGAN_INLINE void load_left(const uint16_t* a, int64_t tile_row, int part) {
  _tile_loadd(4, a + part * kTile, 64);
  if (Two) _tile_loadd(5, a + tile_row + part * kTile, 64);
}
FASTGAN_INLINE void load_right(const uint16_t* b, int part) {
  _tile_loadd(6, b + part * 2 * kTile, 64);
  _tile_loadd(7, b + part * 2 * kTile + kTile, 64);
}
template <bool Two>
FASTGAN_INLINE void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (Two) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool Accumulate, bool Two, class Between>
FASTGAN_INLINE void tiles(int64_t chunks, const uint16_t* a, int64_t tile_row, const uint16_t* b,
                          float* c, int64_t c_row, Between between) {
  const int64_t c_bytes = 4 * c_row;
  float* const lower = c + 16 * c_row;
  if (Accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    if (Two) {
      _tile_loadd(2, lower, c_bytes);
      _tile_loadd(3, lower + 16, c_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (Two) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t i = 0; i < chunks; ++i, a += kTileParts, b += kPanelParts) {
#    if FASTGAN_PRODUCTS == 3
    // One operand changes at a time, and the largest product comes last.
    load_left<Two>(a, tile_row, 0);
    load_right(b, 2);
    multiply_tiles<Two>();
    load_right(b, 1);
    multiply_tiles<Two>();
    load_left<Two>(a, tile_row, 1);
    multiply_tiles<Two>();
    load_right(b, 0);
    multiply_tiles<Two>();
    load_left<Two>(a, tile_row, 2);
    multiply_tiles<Two>();
    load_left<Two>(a, tile_row, 0);
    multiply_tiles<Two>();
#    else
    load_left<Two>(a, tile_row, 0);
    load_right(b, 0);
    multiply_tiles<Two>();
#    endif
    between();
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if (Two) {
    _tile_stored(2, lower, c_bytes);
    _tile_stored(3, lower + 16, c_bytes);
  }
}

// Rows are computed in sixteens. between() is called for each chunk of 32 rows: the tiles work on
// their own for hundreds of cycles, in which the vector units are free to pack what comes next.
template <bool Accumulate, class Between>
void product_packed(int64_t rows, int64_t chunks, const uint16_t* a, int64_t tile_row,
                    const uint16_t* b, float* c, int64_t c_row, Between between) {
  for (int64_t m = 0; m < rows; m += 32, a += 2 * tile_row, c += 32 * c_row) {
    if (rows - m > 16)
      tiles<Accumulate, true>(chunks, a, tile_row, b, c, c_row, between);
    else
      tiles<Accumulate, false>(chunks, a, tile_row, b, c, c_row, between);
  }
}

#  else

FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}

template <bool Accumulate, class Between>
void product_packed(int64_t rows, int64_t chunks, const uint16_t* a, int64_t tile_row,
                    const uint16_t* b, float* c, int64_t c_row, Between between) {
  constexpr int kRows = 8;
  for (int64_t m = 0; m < rows; m += kRows, c += kRows * c_row) {
    if (m % 32 == 0)
      for (int64_t i = 0; i < chunks; ++i) between();
    const uint16_t* left = a + m / 16 * tile_row + m % 16 * kChunk;
    const uint16_t* right = b;
    __m512 sum[kRows][2];
#    pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < 2; ++v)
        sum[i][v] = Accumulate ? _mm512_loadu_ps(c + i * c_row + 16 * v) : _mm512_setzero_ps();
    for (int64_t chunk = 0; chunk < chunks; ++chunk, left += kTile, right += 2 * kTile)
      for (int64_t j = 0; j < 16; ++j) {
        const __m512bh low = (__m512bh)_mm512_loadu_si512(right + j * kChunk),
                       high = (__m512bh)_mm512_loadu_si512(right + kTile + j * kChunk);
#    pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          int both;
          __builtin_memcpy(&both, left + i * kChunk + 2 * j, sizeof both);
          const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
          sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, low);
          sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, high);
        }
      }
#    pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + i * c_row + 16 * v, sum[i][v]);
  }
}

#  endif
#endif
