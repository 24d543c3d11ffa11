// Products in bfloat16 for step_impl.h, and the conversions of their operands. Sums are in float32.
//
// C[rows x 32] (+)= A B, with A [rows][depth] row-major and B in pairs, [depth / 2][32][2]; depth
// is a multiple of 32. Memory has room for rows rounded up to 32, in A and in C.

// 32 values of a row, rounded to nearest even.
FASTGAN_INLINE void store_row(F low, F high, uint16_t* to) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// Sixteen columns of two rows, each column's two values side by side.
FASTGAN_INLINE void pair_rows(F first, F second, uint16_t* to) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, both));
}

#if FASTGAN_BF16 == 2
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

// Two by two tiles of C stay in registers; a last odd tile of rows goes alone.
template <bool Accumulate>
void product16(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_row, const uint16_t* b,
               float* c, int64_t c_row) {
  const int64_t a_bytes = 2 * a_row, c_bytes = 4 * c_row;
  for (int64_t m = 0; m < rows; m += 32, a += 32 * a_row, c += 32 * c_row) {
    const bool two = rows - m > 16;
    float* const lower = c + 16 * c_row;
    if (Accumulate) {
      _tile_loadd(0, c, c_bytes);
      _tile_loadd(1, c + 16, c_bytes);
      if (two) {
        _tile_loadd(2, lower, c_bytes);
        _tile_loadd(3, lower + 16, c_bytes);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const uint16_t* pairs = b;
    if (two) {
      for (int64_t k = 0; k < depth; k += 32, pairs += 32 * 32) {
        _tile_loadd(4, a + k, a_bytes);
        _tile_loadd(6, pairs, 128);
        _tile_loadd(7, pairs + 32, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + 16 * a_row + k, a_bytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(2, lower, c_bytes);
      _tile_stored(3, lower + 16, c_bytes);
    } else {
      for (int64_t k = 0; k < depth; k += 32, pairs += 32 * 32) {
        _tile_loadd(4, a + k, a_bytes);
        _tile_loadd(6, pairs, 128);
        _tile_loadd(7, pairs + 32, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
    _tile_stored(0, c, c_bytes);
    _tile_stored(1, c + 16, c_bytes);
  }
}
#else
FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}

template <int Value>
struct Height {
  static constexpr int value = Value;
};

template <int Rows, bool Accumulate>
FASTGAN_INLINE void dot_tile(int64_t depth, const uint16_t* a, int64_t a_row, const uint16_t* b,
                             float* c, int64_t c_row) {
  __m512 sum[Rows][2];
#  pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
    for (int v = 0; v < 2; ++v)
      sum[m][v] = Accumulate ? _mm512_loadu_ps(c + m * c_row + 16 * v) : _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 2, a += 2, b += 64) {
    const __m512bh low = (__m512bh)_mm512_loadu_si512(b),
                   high = (__m512bh)_mm512_loadu_si512(b + 32);
#  pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      int pair;
      __builtin_memcpy(&pair, a + m * a_row, sizeof pair);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      sum[m][0] = _mm512_dpbf16_ps(sum[m][0], x, low);
      sum[m][1] = _mm512_dpbf16_ps(sum[m][1], x, high);
    }
  }
#  pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + m * c_row + 16 * v, sum[m][v]);
}

template <bool Accumulate>
void product16(int64_t rows, int64_t depth, const uint16_t* a, int64_t a_row, const uint16_t* b,
               float* c, int64_t c_row) {
  const auto tile = [&](auto height, int64_t m) {
    dot_tile<decltype(height)::value, Accumulate>(depth, a + m * a_row, a_row, b, c + m * c_row,
                                                  c_row);
  };
  int64_t m = 0;
  for (; rows - m >= 14; m += 14) tile(Height<14>{}, m);
  for (; rows - m >= 8; m += 8) tile(Height<8>{}, m);
  for (; rows - m >= 4; m += 4) tile(Height<4>{}, m);
  for (; m < rows; ++m) tile(Height<1>{}, m);
}
#endif
