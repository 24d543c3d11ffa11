// Arithmetic on vectors; part of stepper.h.

using F = Vector<float>;
constexpr int kFloats = kLanes<float>;

// --- Transposition ---

// One vector out of the lower (Half 0) or upper halves of a and b, alternating.
template <int Half, class V>
FASTGAN_INLINE V interleave(V a, V b) {
  constexpr int n = kFloats, h = Half * kFloats / 2;
  if constexpr (n == 16) {
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3,
                                   n + h + 3, h + 4, n + h + 4, h + 5, n + h + 5, h + 6, n + h + 6,
                                   h + 7, n + h + 7);
  } else if constexpr (n == 8) {
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3,
                                   n + h + 3);
  } else {
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1);
  }
}

// A square of vectors: every round interleaves row i with row i + n / 2, which
// rotates the bits of an element's (row, column) by one place; log2 n rounds
// exchange the two.
FASTGAN_INLINE void transpose_vectors(F* a) {
  F b[kFloats];
#pragma GCC unroll 4
  for (int round = 1; round < kFloats; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kFloats / 2; ++i) {
      b[2 * i] = interleave<0>(a[i], a[i + kFloats / 2]);
      b[2 * i + 1] = interleave<1>(a[i], a[i + kFloats / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) a[i] = b[i];
  }
}

// --- Rounding ---

constexpr bool kRounded = kInstructions == Instructions::bf16_emulated;

// round_to_bf16() on a vector.
FASTGAN_INLINE F round_vector(F x) {
  typedef uint32_t Words __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
  const Words u = (Words)x, upper = Words{} + 0xffff0000u;
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & upper;
  return x == x ? (F)rounded : (F)((u | 0x400000u) & upper);
}

// --- Arithmetic on vectors ---

FASTGAN_INLINE F spread(float x) { return x - F{}; }

// NaN passes through both.
FASTGAN_INLINE F at_least(F x, F low) { return x < low ? low : x; }
FASTGAN_INLINE F at_most(F x, F high) { return x > high ? high : x; }

#if FASTGAN_VECTOR_BYTES == 64
// The exact instructions take 16 cycles or more a vector, and wait for nothing
// but themselves.
#  define FASTGAN_APPROXIMATIONS 1
FASTGAN_INLINE F divide(F a, F b) {
  const F q = (F)_mm512_rcp14_ps((__m512)b);
  return a * (q + q * (spread(1.f) - q * b));
}
FASTGAN_INLINE F square_root(F x) {
  const F r = (F)_mm512_rsqrt14_ps((__m512)x);
  const F s = x * r;
  return s + (spread(0.5f) * r) * (x - s * s);
}
#else
#  define FASTGAN_APPROXIMATIONS 0
FASTGAN_INLINE F divide(F a, F b) { return a / b; }
#endif

// math::tanh() on a vector, with its polynomials: an odd one near zero, 1 - 2 /
// (e^2|x| + 1) beyond. The quotient by divide() makes it a quarter faster than
// the loop over the scalar function.
FASTGAN_INLINE F tanh_vector(F x) {
  typedef int32_t Ints __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
  const Ints sign = (Ints)x & (Ints{} + INT32_MIN);
  const F a = (F)((Ints)x & (Ints{} + INT32_MAX));
  const F z = x * x;
  F near = spread(-5.70498872745e-3f);
  near = near * z + spread(2.06390887954e-2f);
  near = near * z + spread(-5.37397155531e-2f);
  near = near * z + spread(1.33314422036e-1f);
  near = near * z + spread(-3.33332819422e-1f);
  near = x + x * z * near;
  // Beyond 10 the result is 1 to the last place.
  const F twice = at_most(a + a, spread(20.f));
  const F shifted = twice * spread(1.44269504f) + spread(12582912.f);
  const F n = shifted - spread(12582912.f);
  const F r = (twice - n * spread(0.693359375f)) - n * spread(-2.12194440e-4f);
  F p = spread(1.9875691500e-4f);
  p = p * r + spread(1.3981999507e-3f);
  p = p * r + spread(8.3334519073e-3f);
  p = p * r + spread(4.1665795894e-2f);
  p = p * r + spread(1.6666665459e-1f);
  p = p * r + spread(5.0000001201e-1f);
  const F y = p * (r * r) + (r + spread(1.f));
  const F e = (F)((Ints)y + (Ints)((Ints)shifted << 23));
  const F far = spread(1.f) - divide(spread(2.f), e + spread(1.f));
  return a < spread(0.625f) ? near : (F)((Ints)far | sign);
}

// --- Adam ---

// adam_update() on whole vectors, with a square root and a quotient made from
// the processor's approximations by one step of Newton's method each:
// within 1.5 units in the last place.
#if FASTGAN_APPROXIMATIONS
FASTGAN_INLINE void adam_vector(const Adam<float>& a, const float* grad, float* value,
                                float* exp_avg, float* exp_avg_sq) {
  const F w = load_vector(value) * spread(a.shrink);
  const F g = load_vector(grad) + spread(a.l2) * w;
  const F m = spread(a.beta1) * load_vector(exp_avg) + spread(a.one_minus_beta1) * g;
  const F v = spread(a.beta2) * load_vector(exp_avg_sq) + spread(a.one_minus_beta2) * (g * g);
  store_vector(exp_avg, m);
  store_vector(exp_avg_sq, v);
  // Of zero the approximation is infinite; the smallest normal number has a
  // root far below eps.
  const F x = at_least(v, spread(1.17549435e-38f));
  const F root = square_root(x);
  const F d = root * spread(a.inverse_root) + spread(a.eps);
  store_vector(value, w - divide(spread(a.step_size) * m, d));
}
#endif
