// The kernels, compiled once per instruction set: included with FASTGAN_VARIANT (a namespace) and
// FASTGAN_VECTOR_BYTES defined. Loops are plain; the compiler vectorises them for the target.
//
// No function of the standard library is called here (see kernels_avx2.cpp); every function is
// static or in the variant's namespace.

#include "common/activation.h"
#include "common/dropout.h"
#include "common/losses.h"
#include "cpu/linear_impl.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

// --- Philox ---

constexpr int kBlocks = 64;  // per call of generate: 256 words, in the first-level cache
constexpr int64_t kWords = 4 * kBlocks;

// The words of `count` <= kBlocks blocks from `first`, in order.
void generate(const Philox& g, uint32_t first, int count, uint32_t* __restrict out) {
  uint32_t w0[kBlocks], w1[kBlocks], w2[kBlocks], w3[kBlocks];
  for (int i = 0; i < count; ++i) {
    philox_block(g, first + static_cast<uint32_t>(i), w0[i], w1[i], w2[i], w3[i]);
  }
  for (int i = 0; i < count; ++i) {
    out[4 * i] = w0[i];
    out[4 * i + 1] = w1[i];
    out[4 * i + 2] = w2[i];
    out[4 * i + 3] = w3[i];
  }
}

// Calls use(words, offset, count) for consecutive pieces of the words [begin, begin + n).
template <class Use>
inline void for_words(const Philox& g, int64_t begin, int64_t n, const Use& use) {
  alignas(64) uint32_t words[kWords];
  for (int64_t done = 0; done < n;) {
    const int64_t at = begin + done;
    const int64_t skip = at & 3;
    const int64_t count = n - done < kWords - skip ? n - done : kWords - skip;
    generate(g, static_cast<uint32_t>(at >> 2), static_cast<int>((skip + count + 3) >> 2), words);
    use(words + skip, done, count);
    done += count;
  }
}

void philox_words(const Philox& g, int64_t begin, int64_t n, int64_t* out) {
  for_words(g, begin, n, [out](const uint32_t* words, int64_t offset, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[offset + i] = words[i];
  });
}

void philox_uniform(const Philox& g, int64_t begin, int64_t n, float* out) {
  for_words(g, begin, n, [out](const uint32_t* words, int64_t offset, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[offset + i] = uniform_from(words[i]);
  });
}

void philox_normal(const Philox& g, int64_t begin, int64_t n, float* out) {
  // A pair is computed whole even where n cuts it, so ask for an even number of words.
  for_words(g, begin, n + (n & 1), [out, n](const uint32_t* words, int64_t offset, int64_t count) {
    // Separate arrays for cosines and sines: the loop then vectorises on every instruction set.
    alignas(64) float cosines[kWords / 2], sines[kWords / 2], pairs[kWords];
    uint32_t first[kWords / 2], second[kWords / 2];
    const int half = static_cast<int>(count / 2);
    for (int i = 0; i < half; ++i) {
      first[i] = words[2 * i];
      second[i] = words[2 * i + 1];
    }
    for (int i = 0; i < half; ++i) normals_from(first[i], second[i], cosines[i], sines[i]);
    for (int i = 0; i < half; ++i) {
      pairs[2 * i] = cosines[i];
      pairs[2 * i + 1] = sines[i];
    }
    const int64_t wanted = n - offset < count ? n - offset : count;
    for (int64_t i = 0; i < wanted; ++i) out[offset + i] = pairs[i];
  });
}

void philox_keep_mask(const Philox& g, int64_t begin, int64_t n, uint32_t threshold, uint8_t* out) {
  for_words(g, begin / 2, (n + 1) / 2,
            [out, n, threshold](const uint32_t* words, int64_t offset, int64_t count) {
              const int64_t first = 2 * offset;
              const int64_t wanted = n - first < 2 * count ? n - first : 2 * count;
              for (int64_t i = 0; i < wanted / 2; ++i) {
                out[first + 2 * i] = keeps(words[i], 0, threshold);
                out[first + 2 * i + 1] = keeps(words[i], 1, threshold);
              }
              if (wanted & 1) out[first + wanted - 1] = keeps(words[wanted / 2], 0, threshold);
            });
}

// --- Losses ---

template <class T>
double bce(const T* __restrict logits, int64_t n, double label, double scale, T* __restrict grad) {
  using A = arithmetic_t<T>;
  constexpr int kChunk = 256, kLanes = 8;
  const A y = static_cast<A>(label), s = static_cast<A>(scale);
  A loss[kChunk];
  double lanes[kLanes] = {};
  for (int64_t base = 0; base < n; base += kChunk) {
    const int count = static_cast<int>(n - base < kChunk ? n - base : kChunk);
    for (int i = 0; i < count; ++i) {
      const LossGrad<A> r = bce_with_logit(widen(logits[base + i]), y);
      loss[i] = r.loss;
      store(grad + base + i, s * r.grad);
    }
    for (int i = count; i < kChunk && i % kLanes; ++i) loss[i] = 0;
    for (int i = 0; i < count; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += loss[i + lane];
    }
  }
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

// --- Adam ---

template <class T>
void adam(const Adam<T>& a, int64_t n, const T* __restrict grad, T* __restrict weight,
          T* __restrict exp_avg, T* __restrict exp_avg_sq) {
  const Adam<T> constants = a;  // a copy: stores to the buffers cannot alias it
  for (int64_t i = 0; i < n; ++i) {
    adam_update(constants, grad[i], weight[i], exp_avg[i], exp_avg_sq[i]);
  }
}

template <class T>
constexpr LinearKernels<T> linear() {
  return {linear_leaky_relu<T>, leaky_relu_backward<T>, linear_grad_x<T>, linear_grad_weight<T>};
}

constexpr Isa own_isa = FASTGAN_VECTOR_BYTES == 64   ? Isa::avx512
                        : FASTGAN_VECTOR_BYTES == 32 ? Isa::avx2
                                                     : Isa::baseline;

}  // namespace

extern constexpr Kernels table = {
    .isa = own_isa,
    .philox_words = philox_words,
    .philox_uniform = philox_uniform,
    .philox_normal = philox_normal,
    .philox_keep_mask = philox_keep_mask,
    .adam_f32 = adam<float>,
    .adam_f64 = adam<double>,
    .bce_f32 = bce<float>,
    .bce_f64 = bce<double>,
    .bce_bf16 = bce<bf16>,
    .linear_f32 = linear<float>(),
    .linear_f64 = linear<double>(),
};

}  // namespace fastgan::cpu::FASTGAN_VARIANT
