// What the compiler may use in a file that is for one instruction set.
//
// FASTGAN_BEGIN_TARGET raises it, to FASTGAN_END_TARGET. Headers that define functions of the
// standard library come before: an inline function of theirs compiled for AVX-512 could be the copy
// that the linker keeps.
#pragma once

#if defined(__x86_64__)

#  define FASTGAN_AVX2 "avx2,fma"
#  define FASTGAN_AVX512 FASTGAN_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl" FASTGAN_WIDE
#  define FASTGAN_AVX512_BF16 FASTGAN_AVX512 ",avx512bf16"
#  define FASTGAN_AMX FASTGAN_AVX512_BF16 ",amx-tile,amx-bf16"

#  define FASTGAN_PRAGMA(words) _Pragma(#words)

#  if defined(__clang__)
#    define FASTGAN_WIDE
#    define FASTGAN_BEGIN_TARGET(features) \
      FASTGAN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#    define FASTGAN_END_TARGET FASTGAN_PRAGMA(clang attribute pop)
#  else
// Left to itself GCC takes vectors of 32 bytes.
#    define FASTGAN_WIDE ",prefer-vector-width=512"
#    define FASTGAN_BEGIN_TARGET(features) \
      FASTGAN_PRAGMA(GCC push_options) FASTGAN_PRAGMA(GCC target(features))
#    define FASTGAN_END_TARGET FASTGAN_PRAGMA(GCC pop_options)
#  endif

#endif

// Vector registers, as microkernel.h wants to know them.
#if defined(__aarch64__)
#  define FASTGAN_VECTOR_REGISTERS 32
#else
#  define FASTGAN_VECTOR_REGISTERS (FASTGAN_VECTOR_BYTES == 64 ? 32 : 16)
#endif
