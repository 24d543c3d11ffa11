// The elements of a dropout mask, where a kernel needs them.
#pragma once

#include "common/dropout.h"
#include "cuda/device.cuh"
#include "ops/random/draw.h"

namespace fastgan::cuda {

// Whether the eight elements of a block of a mask are kept, as bits.
__device__ __forceinline__ uint32_t kept_eight(const Philox& g, int64_t block, uint32_t threshold) {
  uint32_t w[4], kept = 0;
  philox_block(g, static_cast<uint32_t>(block), w[0], w[1], w[2], w[3]);
#pragma unroll
  for (uint32_t e = 0; e < 8; ++e)
    kept |= static_cast<uint32_t>(keeps(w[e / 2], e % 2, threshold)) << e;
  return kept;
}
// The same of the `Count` elements from `first` on, at most eight.
template <int Count>
__device__ __forceinline__ uint32_t kept_bits(const Philox& g, int64_t first, uint32_t threshold) {
  const int64_t block = first >> 3;
  const int place = static_cast<int>(first & 7);
  uint32_t kept = kept_eight(g, block, threshold);
  if (Count > 1 && place + Count > 8) kept |= kept_eight(g, block + 1, threshold) << 8;
  return kept >> place & ((1u << Count) - 1u);
}

// A dropout as a kernel applies it, in the arithmetic of A.
template <class A>
class Mask {
 public:
  // The dropout is to be a kernel's parameter: it is read where it lies.
  __device__ explicit Mask(const Dropout& drop)
      : drop_(drop), philox_(drop.philox), scale_(keep_scale<A>(drop.threshold)) {
    if (drop.threshold < 65536) at_counter(philox_, drop.counter);
  }

  // Whether `Count` neighbours of the result from `first` on are kept, as bits.
  template <int Count>
  __device__ uint32_t kept(int64_t first) const {
    return drop_.threshold < 65536 ? kept_bits<Count>(philox_, drop_.start + first, drop_.threshold)
                                   : ~0u;
  }
  // Neighbour i of those.
  __device__ A apply(uint32_t kept, int i, A value) const {
    return kept >> i & 1u ? value * scale_ : A(0);
  }

 private:
  const Dropout& drop_;
  Philox philox_;
  A scale_;
};

}  // namespace fastgan::cuda
