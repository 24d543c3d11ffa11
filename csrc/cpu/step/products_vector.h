// Matrix products for stepper.h on vectors: C [rows x 32] (+)= A B, sums in float32, on the
// register tile of microkernel.h. A is used where it lies; "right" copies a panel of B, which is a
// weight in two of the three products, together as [terms][32], and with bf16_emulated rounds it.
// FASTGAN_INSTRUCTIONS 0 and 1, with the numbers of job.h's enum Instructions.

constexpr bool kTiled = false;
constexpr int64_t kParts = 1, kChunk = 1;
FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}

// B[k][n] = from[k * stride + n].
template <bool Rounded>
void right_rows(const float* from, int64_t stride, int64_t terms, int64_t columns, float* to) {
  for (int64_t k = 0; k < terms; ++k, from += stride, to += kBlock) {
    if (columns == kBlock) {
      for (int64_t j = 0; j < kBlock; ++j) to[j] = Rounded ? round_to_bf16(from[j]) : from[j];
    } else {
      for (int64_t j = 0; j < kBlock; ++j)
        to[j] = j >= columns ? 0.f : Rounded ? round_to_bf16(from[j]) : from[j];
    }
  }
}

// B[k][n] = from[n * stride + k].
void right_columns(const float* from, int64_t stride, int64_t terms, int64_t columns, float* to) {
  const int64_t whole = columns == kBlock ? terms / kFloats * kFloats : 0;
  for (int64_t k = 0; k < whole; k += kFloats)
    for (int64_t n = 0; n < kBlock; n += kFloats) {
      F square[kFloats];
#pragma GCC unroll 16
      for (int i = 0; i < kFloats; ++i) {
        square[i] = load_vector(from + (n + i) * stride + k);
        if constexpr (kRounded) square[i] = round_vector(square[i]);
      }
      transpose_vectors(square);
#pragma GCC unroll 16
      for (int i = 0; i < kFloats; ++i) store_vector(to + (k + i) * kBlock + n, square[i]);
    }
  for (int64_t k = whole; k < terms; ++k)
    for (int64_t n = 0; n < kBlock; ++n) {
      const float value = n < columns ? from[n * stride + k] : 0.f;
      to[k * kBlock + n] = kRounded ? round_to_bf16(value) : value;
    }
}
