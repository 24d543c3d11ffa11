// Philox words, uniforms, normals and dropout masks, a piece of a stream at a time.
// Included by cpu/kernels_impl.h for each instruction set.
#include "common/dropout.h"
#include "common/philox.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

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

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
