// The kernels for any processor of this architecture (SSE2 on x86-64, NEON on arm64), and the
// choice among the tables.
#include "cpu/kernels.h"
#include "cpu/target.h"

#define FASTGAN_VARIANT baseline
#define FASTGAN_VECTOR_BYTES 16
#include "cpu/kernels_impl.h"

namespace fastgan::cpu {

const Kernels* kernels_for(Isa isa) {
  if (!has_isa(isa)) return nullptr;
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx: {
      static const Kernels with_tiles = [] {
        Kernels all = avx512::table;
        all.tiled = amx::tiled;
        return all;
      }();
      return &with_tiles;
    }
    case Isa::avx512:
      return &avx512::table;
    case Isa::avx2:
      return &avx2::table;
#endif
    default:
      return &baseline::table;
  }
}

const Kernels& kernels() {
  static const Kernels& chosen = *kernels_for(isa());
  return chosen;
}

}  // namespace fastgan::cpu
