// The training step for AVX2 and FMA, and on operands rounded to bfloat16.
// What the headers of the standard library define comes before the target is raised: an inline
// function of theirs compiled for it could be the copy that the linker keeps.
#include "cpu/step/includes.h"

#if defined(__x86_64__)

#  if defined(__clang__)
#    pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma")
#  endif

#  define FASTGAN_VECTOR_BYTES 32
#  define FASTGAN_VECTOR_REGISTERS 16
#  define FASTGAN_VARIANT avx2
#  define FASTGAN_INSTRUCTIONS 0
#  include "cpu/step/stepper.h"

#  undef FASTGAN_VARIANT
#  undef FASTGAN_INSTRUCTIONS
#  define FASTGAN_VARIANT avx2_emulated
#  define FASTGAN_INSTRUCTIONS 1
#  include "cpu/step/stepper.h"

#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

#endif
