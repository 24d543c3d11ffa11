// Matrix products for stepper.h on packed operands: C [rows x 32] (+)= A B, sums in float32.
// FASTGAN_INSTRUCTIONS says how, with the numbers of job.h's enum Instructions:
//   2, 3  operands rounded to bfloat16, on AVX-512's dot products or on AMX tiles.
//   4  float32 on AMX tiles: an operand is the sum of three bfloat16 numbers of 8 bits each, which
//      hold its 24 bits exactly, and a product is the sum of the six products of parts that are not
//      below float32's last place (after G. Henry, P. T. P. Tang, A. Heinecke, "Leveraging the
//      bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", ARITH 2019).
//      Beyond 3.38e38 a value counts as infinite, below 1e-33 its last bits are lost.

#if FASTGAN_INSTRUCTIONS >= 3

// Eight tiles of 16 rows of 64 bytes.
void start_tiles() {
  // Not on the stack: the compiler takes the instruction to read eight bytes only, and may leave
  // out what writes the others.
  static constexpr struct alignas(64) {
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

template <bool Accumulate, bool Two, int Calls, class Between>
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
#  if FASTGAN_INSTRUCTIONS == 4
    // One operand changes at a time, and the largest product comes last.
    load_left<Two>(a, tile_row, 0);
    load_right(b, 2);
    multiply_tiles<Two>();
    if constexpr (Calls == 4) between();
    load_right(b, 1);
    multiply_tiles<Two>();
    load_left<Two>(a, tile_row, 1);
    multiply_tiles<Two>();
    if constexpr (Calls == 4) between();
    load_right(b, 0);
    multiply_tiles<Two>();
    if constexpr (Calls == 4) between();
    load_left<Two>(a, tile_row, 2);
    multiply_tiles<Two>();
    load_left<Two>(a, tile_row, 0);
    multiply_tiles<Two>();
    between();
#  else
    load_left<Two>(a, tile_row, 0);
    load_right(b, 0);
    multiply_tiles<Two>();
    for (int call = 0; call < Calls; ++call) between();
#  endif
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if (Two) {
    _tile_stored(2, lower, c_bytes);
    _tile_stored(3, lower + 16, c_bytes);
  }
}

// Rows are computed in sixteens. between() is called once, or four times, for each chunk of 32
// rows: the tiles work on their own for hundreds of cycles, in which the vector units are free to
// pack what comes next.
template <bool Accumulate, int Calls = 1, class Between>
void product_packed(int64_t rows, int64_t chunks, const uint16_t* a, int64_t tile_row,
                    const uint16_t* b, float* c, int64_t c_row, Between between) {
  for (int64_t m = 0; m < rows; m += 32, a += 2 * tile_row, c += 32 * c_row) {
    if (rows - m > 16)
      tiles<Accumulate, true, Calls>(chunks, a, tile_row, b, c, c_row, between);
    else
      tiles<Accumulate, false, Calls>(chunks, a, tile_row, b, c, c_row, between);
  }
}

#else

FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}

template <bool Accumulate, int Calls = 1, class Between>
void product_packed(int64_t rows, int64_t chunks, const uint16_t* a, int64_t tile_row,
                    const uint16_t* b, float* c, int64_t c_row, Between between) {
  constexpr int kRows = 8;
  for (int64_t m = 0; m < rows; m += kRows, c += kRows * c_row) {
    if (m % 32 == 0)
      for (int64_t i = 0; i < chunks; ++i) between();
    const uint16_t* left = a + m / 16 * tile_row + m % 16 * kChunk;
    const uint16_t* right = b;
    __m512 sum[kRows][2];
#  pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < 2; ++v)
        sum[i][v] = Accumulate ? _mm512_loadu_ps(c + i * c_row + 16 * v) : _mm512_setzero_ps();
    for (int64_t chunk = 0; chunk < chunks; ++chunk, left += kTile, right += 2 * kTile)
      for (int64_t j = 0; j < 16; ++j) {
        const __m512bh low = (__m512bh)_mm512_loadu_si512(right + j * kChunk),
                       high = (__m512bh)_mm512_loadu_si512(right + kTile + j * kChunk);
#  pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          int both;
          __builtin_memcpy(&both, left + i * kChunk + 2 * j, sizeof both);
          const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
          sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, low);
          sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, high);
        }
      }
#  pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + i * c_row + 16 * v, sum[i][v]);
  }
}

#endif
