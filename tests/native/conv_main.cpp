// The convolutions' kernels without torch against plain sums in double precision, as a program of
// their own: for the sanitizers, and for vectors that this processor does not have. The compiler
// makes 64-byte vectors and 32 registers of what there is, so that every line of the AVX-512
// variant runs, though not its instructions. Those on AMX tiles run where the processor has them.
#include "cpu/isa.h"
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#pragma GCC diagnostic ignored "-Wpsabi"

#define FASTGAN_VARIANT wide
#define FASTGAN_VECTOR_BYTES 64
#define FASTGAN_VECTOR_REGISTERS 32
#include "ops/linear/cpu_kernel.h"
#include "ops/conv/cpu_kernel.h"
#undef FASTGAN_VARIANT
#undef FASTGAN_VECTOR_BYTES
#undef FASTGAN_VECTOR_REGISTERS
#define FASTGAN_VARIANT narrow
#define FASTGAN_VECTOR_BYTES 16
#define FASTGAN_VECTOR_REGISTERS 16
#include "ops/linear/cpu_kernel.h"
#include "ops/conv/cpu_kernel.h"

using namespace fastgan;
using cpu::ConvKernels;

namespace {

std::mt19937 random_bits(1);
int failures = 0;

std::vector<float> normal(int64_t n) {
  std::normal_distribution<float> draw;
  std::vector<float> out(n);
  for (float& x : out) x = draw(random_bits);
  return out;
}

// The convolution as it is written down.
struct Plain {
  ConvShape s;
  int kernel, stride, pad;
  int64_t rows() const { return s.height / stride; }
  int64_t columns() const { return s.width / stride; }

  // f(place in x, in the weight [out, in, kernel, kernel], in y) for every product.
  template <class F>
  void each(const F& f) const {
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t i = 0; i < rows(); ++i)
        for (int64_t j = 0; j < columns(); ++j)
          for (int p = 0; p < kernel; ++p)
            for (int q = 0; q < kernel; ++q) {
              const int64_t row = stride * i + p - pad, column = stride * j + q - pad;
              if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
              for (int64_t c = 0; c < s.in; ++c)
                for (int64_t n = 0; n < s.out; ++n)
                  f(((b * s.height + row) * s.width + column) * s.in + c,
                    ((n * s.in + c) * kernel + p) * kernel + q,
                    ((b * rows() + i) * columns() + j) * s.out + n);
            }
  }
};

void compare(const char* what, const char* name, const ConvShape& s,
             const std::vector<float>& found, const std::vector<double>& wanted) {
  double error = 0, scale = 1;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double off = std::fabs(found[i] - wanted[i]);
    error = off <= error ? error : off;  // a NaN is an error, too
    scale = std::fmax(scale, std::fabs(wanted[i]));
  }
  if (error <= 1e-5 * scale) return;  // large tiles round more than a plain sum
  std::printf("%s %s of [%ld, %ld, %ld, %ld] to %ld: error %g of %g\n", name, what, long(s.batch),
              long(s.in), long(s.height), long(s.width), long(s.out), error, scale);
  ++failures;
}

void check(const char* name, const ConvKernels& k, int kernel, const ConvShape& s) {
  const Plain plain{s, kernel, kernel == 4 ? 2 : 1, kernel > 1};
  const auto x = normal(s.batch * s.height * s.width * s.in);
  const auto weight = normal(s.out * s.in * kernel * kernel), bias = normal(s.in + s.out);
  const auto dy = normal(s.batch * plain.rows() * plain.columns() * s.out);
  std::vector<double> y(dy.size()), dx(x.size()), dw(weight.size());
  plain.each([&](int64_t a, int64_t w, int64_t b) {
    y[b] += double(x[a]) * weight[w];
    dx[a] += double(dy[b]) * weight[w];
    dw[w] += double(x[a]) * dy[b];
  });
  const auto finish = [&](std::vector<double>& pixels, int64_t channels) {
    for (size_t i = 0; i < pixels.size(); ++i) {
      pixels[i] += bias[i % channels];
      if (pixels[i] < 0) pixels[i] *= 0.25;
    }
  };
  finish(y, s.out);
  finish(dx, s.in);

  const auto sizes = k.sizes(s);
  const int64_t taps = kernel * kernel;
  const ConvWeight<const float> w{weight.data(), s.in * taps, taps, kernel, 1, false};
  // Exactly what is asked for, so that the address sanitizer sees a step beyond.
  std::vector<float> packed(sizes.packed_outputs), found(dy.size());
  k.pack(s, w, false, 0, sizes.vectors_of_outputs, packed.data());
  const cpu::ConvCall call{s, x.data(), packed.data(), bias.data(), 0.25f, found.data()};
  for (int64_t first = 0; first < sizes.tiles;) {  // pieces of several sizes
    const int64_t last = std::min(sizes.tiles, first + 1 + first % 17);
    std::vector<float> scratch(sizes.scratch + (last - first) * sizes.scratch_of_tile);
    k.forward(call, first, last, scratch.data());
    first = last;
  }
  compare("forward", name, s, found, y);
  // By the sign of something else: of y's negative, none of whose results is left alone where y
  // was.
  std::vector<float> sign(y.size());
  for (size_t i = 0; i < sign.size(); ++i) sign[i] = y[i] > 0 ? -1.0f : 1.0f;
  cpu::ConvCall signed_call = call;
  signed_call.sign = sign.data();
  {
    std::vector<float> scratch(sizes.scratch + sizes.tiles * sizes.scratch_of_tile);
    k.forward(signed_call, 0, sizes.tiles, scratch.data());
  }
  std::vector<double> other(y);
  for (double& value : other) value = value > 0 ? value * 0.25 : value / 0.25;
  compare("forward by a sign", name, s, found, other);

  if (k.data != nullptr) {
    packed.assign(sizes.packed_inputs, NAN);
    found.assign(x.size(), NAN);
    k.pack(s, w, true, 0, sizes.vectors_of_inputs, packed.data());
    const cpu::ConvCall back{s, dy.data(), packed.data(), bias.data(), 0.25f, found.data()};
    constexpr int64_t most = 11;
    std::vector<float> scratch(sizes.scratch + most * sizes.scratch_of_tile);
    k.data(back, 0, s.batch / 2, most, scratch.data());
    k.data(back, s.batch / 2, s.batch, most, scratch.data());
    compare("data", name, s, found, dx);
    sign.assign(dx.size(), -1.0f);
    cpu::ConvCall signed_back = back;
    signed_back.sign = sign.data();
    k.data(signed_back, 0, s.batch, most, scratch.data());
    for (double& value : dx) value = value > 0 ? value * 0.25 : value;
    compare("data by a sign", name, s, found, dx);
  }

  if (k.weight == nullptr) return;
  std::vector<float> sums(sizes.sums, NAN), scratch(sizes.scratch_of_block);
  const int64_t chunk = 2 * sizes.tiles_of_panels;
  for (int64_t first = 0; first < sizes.tiles; first += chunk) {
    const int64_t last = std::min(sizes.tiles, first + chunk);
    std::vector<float> panels(2 * sizes.panels);
    k.inputs(s, x.data(), first, 0, (last - first) / 3, scratch.data(), panels.data());
    k.inputs(s, x.data(), first, (last - first) / 3, last - first, scratch.data(), panels.data());
    for (int64_t block = 0; block < sizes.blocks; ++block) {
      for (int64_t column = 0; column < sizes.columns; ++column) {
        k.products(s, dy.data(), first, last, block, column, column + 1, panels.data(), first > 0,
                   scratch.data(), sums.data());
      }
    }
  }
  found.assign(weight.size(), NAN);
  k.weight(s, sums.data(), 0, s.out, {found.data(), s.in * taps, taps, kernel, 1, false});
  compare("weight", name, s, found, dw);
}

template <class Winograd4, class Large4, class Taps4, class Winograd3, class Large3, class Taps3,
          class Taps1>
void check_all(const char* variant) {
  const std::string name = variant;
  constexpr int64_t channels[][2] = {{1, 1}, {3, 33}, {16, 5}, {32, 64}, {37, 100}, {70, 3}};
  constexpr int64_t images[][3] = {{1, 1, 1}, {3, 2, 5}, {2, 7, 3}, {5, 9, 10}};
  for (const auto& [in, out] : channels) {
    for (const auto& [batch, rows, columns] : images) {
      const ConvShape even{batch, 2 * rows, 2 * columns, in, out};
      const ConvShape any{batch, rows, columns, in, out};
      check((name + " winograd 4x4").c_str(), Winograd4::table(), 4, even);
      check((name + " large 4x4").c_str(), Large4::table(), 4, even);
      check((name + " large 3x3").c_str(), Large3::table(), 3, any);
      check((name + " taps 4x4").c_str(), Taps4::table(), 4, even);
      check((name + " winograd 3x3").c_str(), Winograd3::table(), 3, any);
      check((name + " taps 3x3").c_str(), Taps3::table(), 3, any);
      check((name + " taps 1x1").c_str(), Taps1::table(), 1, any);
    }
  }
}

}  // namespace

#define CHECK_ALL(v)                                                            \
  check_all<cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F22, 2, 2>>, \
            cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F42, 2, 2>>, \
            cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F11, 2, 4>>, \
            cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F23, 1, 1>>, \
            cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F43, 1, 1>>, \
            cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F11, 1, 3>>, \
            cpu::v::ConvolutionKernels<cpu::v::Convolution<cpu::v::F11, 1, 1>>>(#v)

#if defined(__x86_64__)
namespace {

// What the processor lacks is told on stderr: nothing failed.
void check_tiles() {
  if (!cpu::has_isa(cpu::Isa::amx)) {
    std::fprintf(stderr, "no AMX here: its kernels were not run\n");
    return;
  }
  const auto of = [](cpu::ConvAlgorithm a) { return cpu::amx::tiled[static_cast<int>(a)]; };
  // Several tiles of rows, several chunks of a sum, and sums in several blocks.
  constexpr int64_t sizes[][5] = {
      {1, 2, 2, 3, 33}, {3, 6, 10, 37, 100}, {2, 14, 10, 70, 40}, {2, 6, 6, 300, 150}};
  for (const auto& [batch, rows, columns, in, out] : sizes) {
    const ConvShape s{batch, rows, columns, in, out};
    check("amx winograd 4x4", of(cpu::ConvAlgorithm::winograd_4x4), 4, s);
    check("amx large 4x4", of(cpu::ConvAlgorithm::large_4x4), 4, s);
    check("amx winograd 3x3", of(cpu::ConvAlgorithm::winograd_3x3), 3, s);
    check("amx large 3x3", of(cpu::ConvAlgorithm::large_3x3), 3, s);
  }
}

}  // namespace
#endif

int main() {
  CHECK_ALL(wide);
  CHECK_ALL(narrow);
#if defined(__x86_64__)
  check_tiles();
#endif
  std::printf("%d failures\n", failures);
  return failures != 0;
}
