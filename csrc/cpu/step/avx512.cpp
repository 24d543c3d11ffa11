// The training step for AVX-512 (F, BW, DQ, VL), and on operands rounded to bfloat16.
#include "cpu/step/includes.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#  include <immintrin.h>
FASTGAN_BEGIN_TARGET(FASTGAN_AVX512)

#  define FASTGAN_VECTOR_BYTES 64
#  define FASTGAN_VARIANT avx512
#  define FASTGAN_INSTRUCTIONS 0
#  include "cpu/step/stepper.h"

#  define FASTGAN_VARIANT avx512_emulated
#  define FASTGAN_INSTRUCTIONS 1
#  include "cpu/step/stepper.h"

FASTGAN_END_TARGET
#endif
