// The training step for AVX-512 with products on AMX tiles: in bfloat16, and in float32.
#include "cpu/step/includes.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#  include <immintrin.h>
FASTGAN_BEGIN_TARGET(FASTGAN_AMX)

#  define FASTGAN_VECTOR_BYTES 64
#  define FASTGAN_VARIANT amx
#  define FASTGAN_INSTRUCTIONS 3
#  include "cpu/step/stepper.h"

#  define FASTGAN_VARIANT amx_fp32
#  define FASTGAN_INSTRUCTIONS 4
#  include "cpu/step/stepper.h"

FASTGAN_END_TARGET
#endif
