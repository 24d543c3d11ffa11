// The operators that draw, on the CPU.
#include "ops/random/cpu.h"

#include "common/dropout.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "ops/random/operators.h"

namespace fastgan::cpu {

namespace {

constexpr int64_t kUnit = 256, kGrain = 64;

struct RandomOnCpu {
  static void words(const Philox& g, int64_t start, const Tensor& out) {
    int64_t* const to = out_ptr<int64_t>(out);
    parallel_units(out.numel(), kUnit, kGrain, [&](int64_t begin, int64_t end) {
      kernels().philox_words(g, start + begin, end - begin, to + begin);
    });
  }

  static void uniform(const Philox& g, const Tensor& out) {
    float* const to = out_ptr<float>(out);
    parallel_units(out.numel(), kUnit, kGrain, [&](int64_t begin, int64_t end) {
      kernels().philox_uniform(g, begin, end - begin, to + begin);
    });
  }

  static void normal(Philox g, const Counter& counter, const Tensor& out) {
    at_counter(g, counter);
    float* const to = out_ptr<float>(out);
    parallel_units(out.numel(), kUnit, kGrain, [&](int64_t begin, int64_t end) {
      kernels().philox_normal(g, begin, end - begin, to + begin);
    });
  }

  static void keep_mask(Philox g, const Counter& counter, uint32_t threshold, const Tensor& out) {
    at_counter(g, counter);
    uint8_t* const to = out_ptr<uint8_t>(out);
    parallel_units(out.numel(), kUnit, kGrain, [&](int64_t begin, int64_t end) {
      kernels().philox_keep_mask(g, begin, end - begin, threshold, to + begin);
    });
  }

  static Tensor dropout(const Dropout& drop, const Tensor& x) { return dropped(drop, x); }
};

}  // namespace

Tensor dropped(const Dropout& drop, const Tensor& x) {
  Philox g = drop.philox;
  at_counter(g, drop.counter);
  const Tensor xc = torch::stable::contiguous(x);
  const Tensor y = torch::stable::new_empty(x, sizes_of(x));
  // Masks are drawn from whole words, so the first half may be another's.
  const int64_t skip = drop.start & 1, halves = x.numel() + skip;
  const Tensor mask = torch::stable::new_empty(x, std::vector<int64_t>{halves}, ScalarType::Byte);
  dispatch(x.scalar_type(), "x", [&](auto tag) {
    using T = decltype(tag);
    using A = arithmetic_t<T>;
    const A scale = keep_scale<A>(drop.threshold);
    const T* const from = in_ptr<T>(xc);
    T* const to = out_ptr<T>(y);
    uint8_t* const keep = out_ptr<uint8_t>(mask);
    parallel_units(halves, kUnit, kGrain, [&](int64_t begin, int64_t end) {
      kernels().philox_keep_mask(g, drop.start - skip + begin, end - begin, drop.threshold,
                                 keep + begin);
      for (int64_t i = begin < skip ? skip : begin; i < end; ++i) {
        store(to + (i - skip), keep[i] ? widen(from[i - skip]) * scale : A(0));
      }
    });
  });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { RandomOperators<RandomOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
