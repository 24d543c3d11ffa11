// The kernels for AVX-512 (F, BW, DQ, VL). Headers of the standard library come before the target
// is raised: see kernels_avx2.cpp.
#include "cpu/kernels.h"

#if defined(__x86_64__)

#  if defined(__clang__)
#    pragma clang attribute push(                                               \
        __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
        apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#  endif

// Vectors are passed between functions that are always inlined, so no calling convention is used.
#  pragma GCC diagnostic ignored "-Wpsabi"

#  define FASTGAN_VARIANT avx512
#  define FASTGAN_VECTOR_BYTES 64
#  define FASTGAN_VECTOR_REGISTERS 32
#  include "cpu/kernels_impl.h"

#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

#endif
