// Packs operands for products_packed.h, in tiles of 1 KiB, sums padded with zeros to whole chunks:
//   left   [rows / 16][chunks][part][16 rows][16 pairs][2]
//   right  [chunks][part][columns / 16][16 pairs][16 columns][2], a panel of 32 columns
// A chunk is 32 terms of the sum; pair j has its terms j and j + 16, so that two vectors make
// sixteen pairs without a shuffle.

constexpr bool kTiled = true;
constexpr int64_t kParts = FASTGAN_INSTRUCTIONS == 4 ? 3 : 1, kChunk = 32;
constexpr int64_t kTile = 16 * kChunk;           // values
constexpr int64_t kTileParts = kTile * kParts;   // of a left tile
constexpr int64_t kPanelParts = 2 * kTileParts;  // of a chunk of a panel

int64_t chunks_of(int64_t terms) { return (terms + kChunk - 1) / kChunk; }

// Sixteen pairs, of one lane of `first` and of `second` each.
struct Pairs {
  __m512i part[kParts];
};
FASTGAN_INLINE Pairs pair(F first, F second) {
  Pairs pairs;
#if FASTGAN_INSTRUCTIONS == 4
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
#else
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  pairs.part[0] = _mm512_permutexvar_epi16(order, both);
#endif
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
template <bool Whole, int64_t Rows = 16>
FASTGAN_INLINE void pack_lines(const Square& a, const Square& b, int64_t stride, uint16_t* to,
                               int64_t part_stride) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < Rows; ++i)
    store_pairs(pair(line<Whole>(a, stride, i), line<Whole>(b, stride, i)), to + i * kChunk,
                part_stride);
}

// Row i of the tile: the pairs of column i of both squares.
template <bool Whole>
FASTGAN_INLINE void pack_columns(const Square& a, const Square& b, int64_t stride, uint16_t* to,
                                 [[maybe_unused]] int64_t part_stride) {
#if FASTGAN_INSTRUCTIONS == 4
  // Two squares of float32 are turned rather than three of pairs.
  F x[16];
  alignas(64) float turned[16 * 16];
#  pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) x[i] = line<Whole>(a, stride, i);
  transpose_vectors(x);
#  pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) store_vector(turned + 16 * i, x[i]);
#  pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) x[i] = line<Whole>(b, stride, i);
  transpose_vectors(x);
#  pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i)
    store_pairs(pair(load_vector(turned + 16 * i), x[i]), to + i * kChunk, part_stride);
#else
  F x[16];
#  pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i)
    x[i] = (F)pair(line<Whole>(a, stride, i), line<Whole>(b, stride, i)).part[0];
  transpose_vectors(x);
#  pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) store_vector(reinterpret_cast<float*>(to + i * kChunk), x[i]);
#endif
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

// A quarter of a tile whose rows are lines. Small enough that the processor, which looks ahead by
// some 500 operations and by few tiles, has it under way while the tiles multiply.
__attribute__((noinline)) void pack_quarter(const Square& a, const Square& b, int64_t stride,
                                            uint16_t* to, int64_t part_stride) {
  constexpr __mmask16 all = 0xffff;
  if (a.lines >= 4 && b.lines >= 4 && a.columns == all && b.columns == all)
    pack_lines<true, 4>(a, b, stride, to, part_stride);
  else
    pack_lines<false, 4>(a, b, stride, to, part_stride);
}

// Packing goes in units of one tile, so that it can run beside the products.

// A[m][k] = from[m * stride + k] of a tile of rows of `left`.
void left_rows(const float* from, int64_t stride, int64_t rows, int64_t terms, uint16_t* to) {
  pack<false>(square(from, rows, terms), square(from + 16, rows, terms - 16), stride, to, kTile);
}

// The same in quarters.
void left_rows_quarter(int64_t quarter, const float* from, int64_t stride, int64_t rows,
                       int64_t terms, uint16_t* to) {
  from += 4 * quarter * stride;
  rows -= 4 * quarter;
  pack_quarter(square(from, rows, terms), square(from + 16, rows, terms - 16), stride,
               to + 4 * quarter * kChunk, kTile);
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

// The same, not Turned, in quarters.
void right_quarter(int64_t quarter, const float* from, int64_t stride, int64_t terms,
                   int64_t columns, uint16_t* to) {
  const int64_t unit = quarter / 4, row = quarter % 4 * 4;
  const int64_t k = unit / 2 * kChunk + row, n = unit % 2 * 16;
  to += unit / 2 * kPanelParts + unit % 2 * kTile + row * kChunk;
  from += k * stride + n;
  pack_quarter(square(from, terms - k, columns - n),
               square(from + 16 * stride, terms - k - 16, columns - n), stride, to, 2 * kTile);
}
