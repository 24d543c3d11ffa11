// The kernels for AVX2 and FMA. Headers of the standard library come before the target is raised:
// an inline function of theirs compiled for AVX2 could be the copy that the linker keeps.
#include "cpu/kernels.h"

#if defined(__x86_64__)

#  if defined(__clang__)
#    pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma")
#  endif

// Vectors are passed between functions that are always inlined, so no calling convention is used.
#  pragma GCC diagnostic ignored "-Wpsabi"

#  define FASTGAN_VARIANT avx2
#  define FASTGAN_VECTOR_BYTES 32
#  define FASTGAN_VECTOR_REGISTERS 16
#  include "cpu/kernels_impl.h"

#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

#endif
