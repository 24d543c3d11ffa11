// The training step for AVX2 and FMA.
// What the headers of the standard library define comes before the target is raised: an inline
// function of theirs compiled for it could be the copy that the linker keeps.
#include "common/activation.h"
#include "common/adam.h"
#include "common/dropout.h"
#include "cpu/clock.h"
#include "cpu/kernels.h"
#include "cpu/step.h"

#if defined(__x86_64__)

#  if defined(__clang__)
#    pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma")
#  endif

#  define FASTGAN_VARIANT avx2
#  define FASTGAN_VECTOR_BYTES 32
#  define FASTGAN_VECTOR_REGISTERS 16
#  define FASTGAN_PRODUCTS 0
#  include "cpu/step_impl.h"

#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

#endif
