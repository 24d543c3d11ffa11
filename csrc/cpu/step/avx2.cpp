// The training step for AVX2 and FMA, and on operands rounded to bfloat16.
#include "cpu/step/includes.h"
#include "cpu/target.h"

#if defined(__x86_64__)
FASTGAN_BEGIN_TARGET(FASTGAN_AVX2)

#  define FASTGAN_VECTOR_BYTES 32
#  define FASTGAN_VARIANT avx2
#  define FASTGAN_INSTRUCTIONS 0
#  include "cpu/step/stepper.h"

#  define FASTGAN_VARIANT avx2_emulated
#  define FASTGAN_INSTRUCTIONS 1
#  include "cpu/step/stepper.h"

FASTGAN_END_TARGET
#endif
