// What lets one header serve the C++ compilers and nvcc.
#pragma once

#if defined(__CUDACC__)
#  define FASTGAN_HD __host__ __device__ __forceinline__
#  define FASTGAN_UNROLL  // nvcc unrolls short loops of known length by itself
#else
// Always inlined: a function that kept its own body could be emitted once for several instruction
// sets, and the linker would be free to keep the one this processor cannot run.
#  define FASTGAN_HD static inline __attribute__((always_inline))
#  define FASTGAN_UNROLL _Pragma("GCC unroll 16")
#endif
