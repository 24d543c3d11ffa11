// The kernels of BatchNorm without torch against plain sums in double precision, as a program of
// their own: for the sanitizers, and for vectors that this processor does not have.
#include "cpu/kernels.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#pragma GCC diagnostic ignored "-Wpsabi"

#define FASTGAN_VARIANT wide
#define FASTGAN_VECTOR_BYTES 64
#define FASTGAN_VECTOR_REGISTERS 32
#include "ops/linear/cpu_kernel.h"
#include "ops/conv/cpu_kernel.h"
#include "ops/norm/cpu_kernel.h"
#undef FASTGAN_VARIANT
#undef FASTGAN_VECTOR_BYTES
#undef FASTGAN_VECTOR_REGISTERS
#define FASTGAN_VARIANT narrow
#define FASTGAN_VECTOR_BYTES 16
#define FASTGAN_VECTOR_REGISTERS 16
#include "ops/linear/cpu_kernel.h"
#include "ops/conv/cpu_kernel.h"
#include "ops/norm/cpu_kernel.h"

using namespace fastgan;
using cpu::NormKernels;
using Floats = std::vector<float>;

namespace {

int failures = 0;

void check(const char* what, const char* variant, double found, double expected, double size) {
  if (std::abs(found - expected) <= 1e-4 * size) return;
  std::printf("%s, %s: %g instead of %g\n", variant, what, found, expected);
  ++failures;
}

void run(const NormKernels& k, const char* variant, int64_t rows, int64_t channels, float slope) {
  std::mt19937 bits(static_cast<unsigned>(rows * 97 + channels));
  std::normal_distribution<float> draw;
  // Each ends with its memory, so that a read beyond is one that the sanitizer sees.
  const auto normal = [&](int64_t n) {
    Floats out(n);
    for (float& x : out) x = draw(bits);
    return out;
  };
  const int64_t n = rows * channels;
  const Floats x = normal(n), grad = normal(n), v = normal(n), factors = normal(6 * channels);
  const Floats mean = normal(channels), scale = normal(channels), bias = normal(channels);
  const NormChannels of{channels, mean.data(), scale.data(), bias.data(), slope};
  Floats y(n), dx(n), dgrad(n), into(n), moments(2 * channels), sums(2 * channels);
  Floats second(3 * channels);
  k.moments(rows, channels, x.data(), mean.data(), moments.data());
  k.forward(rows, of, x.data(), y.data());
  k.gradient_sums(rows, of, x.data(), grad.data(), sums.data());
  k.gradient(rows, of, factors.data(), x.data(), grad.data(), dx.data());
  k.second_sums(rows, of, x.data(), grad.data(), v.data(), second.data());
  k.second(rows, of, factors.data(), x.data(), grad.data(), v.data(), dgrad.data(), into.data());
  for (int64_t c = 0; c < channels; ++c) {
    const auto f = [&](int i) -> double { return factors[i * channels + c]; };
    double total[7] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r * channels + c;
      const double d = double{x[i]} - mean[c], pre = d * scale[c] + bias[c];
      if (std::abs(pre) < 1e-5) continue;  // on either side
      const double open = pre > 0 ? 1 : slope, g = grad[i] * open, w = v[i];
      check("forward", variant, y[i], pre * open, 1 + std::abs(pre));
      check("gradient", variant, dx[i], scale[c] * g + f(0) * d + f(1), 20);
      check("second, grad", variant, dgrad[i], (scale[c] * w + f(0) * d + f(1)) * open, 20);
      check("second, x", variant, into[i], f(2) * w + f(3) * g + f(4) * d + f(5), 40);
      const double terms[] = {d, d * d, g, g * d, w, w * d, w * g};
      for (int s = 0; s < 7; ++s) total[s] += terms[s];
    }
    for (int s = 0; s < 2; ++s) {
      check("moments", variant, moments[s * channels + c], total[s], 4.0 * rows);
      check("gradient sums", variant, sums[s * channels + c], total[2 + s], 4.0 * rows);
    }
    for (int s = 0; s < 3; ++s) {
      check("second sums", variant, second[s * channels + c], total[4 + s], 4.0 * rows);
    }
  }
}

constexpr NormKernels wide{cpu::wide::norm_moments,       cpu::wide::norm_forward,
                           cpu::wide::norm_gradient_sums, cpu::wide::norm_gradient,
                           cpu::wide::norm_second_sums,   cpu::wide::norm_second};
constexpr NormKernels narrow{cpu::narrow::norm_moments,       cpu::narrow::norm_forward,
                             cpu::narrow::norm_gradient_sums, cpu::narrow::norm_gradient,
                             cpu::narrow::norm_second_sums,   cpu::narrow::norm_second};

}  // namespace

int main() {
  for (const int64_t rows : {0, 1, 3, 4, 5, 64, 131}) {
    for (const int64_t channels : {1, 3, 4, 15, 16, 17, 33, 64}) {
      for (const float slope : {1.0f, 0.2f, 0.0f}) {
        run(wide, "64 bytes", rows, channels, slope);
        run(narrow, "16 bytes", rows, channels, slope);
      }
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
