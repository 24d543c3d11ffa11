// The training step for AVX-512 with products in bfloat16 (vdpbf16ps).
#include "cpu/step/includes.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#  include <immintrin.h>
FASTGAN_BEGIN_TARGET(FASTGAN_AVX512_BF16)

#  define FASTGAN_VECTOR_BYTES 64
#  define FASTGAN_VARIANT avx512_bf16
#  define FASTGAN_INSTRUCTIONS 2
#  include "cpu/step/stepper.h"

FASTGAN_END_TARGET
#endif
