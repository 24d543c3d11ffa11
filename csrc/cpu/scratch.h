// What the operators that are matrix products have in common: a thread's working memory, and how
// much work is worth a thread.
#pragma once

#include <stdint.h>

#include <new>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fastgan::cpu {

// kScratchBytes that belong to the calling thread. Kept from call to call: a fresh block of this
// size would be new pages every time.
template <class T>
T* scratch() {
  struct Aligned {
    void* data = ::operator new(kScratchBytes, std::align_val_t{64});
    ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
  };
  static thread_local const Aligned memory;
  return static_cast<T*>(memory.data);
}

// Units of work that make it worth waking a thread: about this many multiplications.
inline int64_t grain_of(int64_t multiplications_per_unit) {
  constexpr int64_t kWorth = 1 << 17;
  return multiplications_per_unit > 0 ? kWorth / multiplications_per_unit + 1 : 1;
}

}  // namespace fastgan::cpu
