// BatchNorm of channels-last images and the rectifier behind it: rows [n][channels], a number of
// each channel in vectors [channels]. Included by cpu/kernels_impl.h for each instruction set,
// after ops/conv/cpu_kernel.h.
//
// With c = x - mean and c * scale + bias the pre-activation, g' the gradient of a pre-activation:
// all that goes forward or back is, per channel, a linear combination of rows, whose factors the
// caller makes from sums over rows.
#include "ops/norm/shape.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

// What a rectifier lets through of `grad`.
FASTGAN_INLINE Vector<float> through(Vector<float> grad, Vector<float> pre, float slope) {
  return pre > 0.0f ? grad : grad * slope;
}

// sums [Sums][channels] of add(row, channel, load, sums) over the rows. Four rows at a time: a sum
// waits for its own last value.
template <int Sums, class Add>
FASTGAN_INLINE void sums_of_rows(int64_t rows, int64_t channels, float* sums, const Add& add) {
  for (int64_t i = 0; i < Sums * channels; ++i) sums[i] = 0.0f;
  for (int64_t row = 0; row < rows; row += 4) {
    const int64_t last = rows - row < 4 ? rows : row + 4;
    each_vector(channels, [&](int64_t c, auto load, auto store) FASTGAN_LAMBDA_INLINE {
      Vector<float> found[Sums];
#pragma GCC unroll 3
      for (int s = 0; s < Sums; ++s) found[s] = Vector<float>{};
      for (int64_t r = row; r < last; ++r) add(r * channels + c, c, load, found);
#pragma GCC unroll 3
      for (int s = 0; s < Sums; ++s) {
        store(sums + s * channels + c, load(sums + s * channels + c) + found[s]);
      }
    });
  }
}

template <class Body>
FASTGAN_INLINE void each_row(int64_t rows, int64_t channels, const Body& body) {
  for (int64_t row = 0; row < rows; ++row) {
    each_vector(channels, [&](int64_t c, auto load, auto store)
                              FASTGAN_LAMBDA_INLINE { body(row * channels + c, c, load, store); });
  }
}

inline void norm_moments(int64_t rows, int64_t channels, const float* x, const float* around,
                         float* sums) {
  sums_of_rows<2>(rows, channels, sums,
                  [&](int64_t i, int64_t c, auto load, Vector<float>* found) FASTGAN_LAMBDA_INLINE {
                    const Vector<float> d = load(x + i) - load(around + c);
                    found[0] += d;
                    found[1] += d * d;
                  });
}

inline void norm_forward(int64_t rows, const NormChannels& n, const float* x, float* y) {
  each_row(rows, n.channels,
           [&](int64_t i, int64_t c, auto load, auto store) FASTGAN_LAMBDA_INLINE {
             const Vector<float> d = load(x + i) - load(n.mean + c);
             const Vector<float> pre = d * load(n.scale + c) + load(n.bias + c);
             store(y + i, through(pre, pre, n.slope));
           });
}

inline void norm_gradient_sums(int64_t rows, const NormChannels& n, const float* x,
                               const float* grad, float* sums) {
  sums_of_rows<2>(rows, n.channels, sums,
                  [&](int64_t i, int64_t c, auto load, Vector<float>* found) FASTGAN_LAMBDA_INLINE {
                    const Vector<float> d = load(x + i) - load(n.mean + c);
                    const Vector<float> pre = d * load(n.scale + c) + load(n.bias + c);
                    const Vector<float> g = through(load(grad + i), pre, n.slope);
                    found[0] += g;
                    found[1] += g * d;
                  });
}

inline void norm_gradient(int64_t rows, const NormChannels& n, const float* factors, const float* x,
                          const float* grad, float* dx) {
  const int64_t channels = n.channels;
  each_row(rows, channels, [&](int64_t i, int64_t c, auto load, auto store) FASTGAN_LAMBDA_INLINE {
    const Vector<float> d = load(x + i) - load(n.mean + c);
    const Vector<float> pre = d * load(n.scale + c) + load(n.bias + c);
    const Vector<float> g = through(load(grad + i), pre, n.slope);
    store(dx + i, load(n.scale + c) * g + load(factors + c) * d + load(factors + channels + c));
  });
}

inline void norm_second_sums(int64_t rows, const NormChannels& n, const float* x, const float* grad,
                             const float* v, float* sums) {
  sums_of_rows<3>(rows, n.channels, sums,
                  [&](int64_t i, int64_t c, auto load, Vector<float>* found) FASTGAN_LAMBDA_INLINE {
                    const Vector<float> d = load(x + i) - load(n.mean + c), w = load(v + i);
                    const Vector<float> pre = d * load(n.scale + c) + load(n.bias + c);
                    found[0] += w;
                    found[1] += w * d;
                    found[2] += w * through(load(grad + i), pre, n.slope);
                  });
}

inline void norm_second(int64_t rows, const NormChannels& n, const float* factors, const float* x,
                        const float* grad, const float* v, float* dgrad, float* dx) {
  const int64_t channels = n.channels;
  each_row(rows, channels, [&](int64_t i, int64_t c, auto load, auto store) FASTGAN_LAMBDA_INLINE {
    const float* const at = factors + c;
    const Vector<float> d = load(x + i) - load(n.mean + c), w = load(v + i);
    const Vector<float> pre = d * load(n.scale + c) + load(n.bias + c);
    const Vector<float> g = through(load(grad + i), pre, n.slope);
    const Vector<float> out = load(n.scale + c) * w + load(at) * d + load(at + channels);
    store(dgrad + i, through(out, pre, n.slope));
    store(dx + i, load(at + 2 * channels) * w + load(at + 3 * channels) * g +
                      load(at + 4 * channels) * d + load(at + 5 * channels));
  });
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
