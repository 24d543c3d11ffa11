// The training step for AVX-512 with products in bfloat16 (vdpbf16ps).
// What the headers of the standard library define comes before the target is raised: an inline
// function of theirs compiled for it could be the copy that the linker keeps.
#include "cpu/step/includes.h"

#if defined(__x86_64__)

#  include <immintrin.h>

#  if defined(__clang__)
#    pragma clang attribute push(                                                          \
        __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
        apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target( \
        "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#  endif

#  define FASTGAN_VECTOR_BYTES 64
#  define FASTGAN_VECTOR_REGISTERS 32
#  define FASTGAN_VARIANT avx512_bf16
#  define FASTGAN_INSTRUCTIONS 2
#  include "cpu/step/stepper.h"

#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

#endif
