// The kernels for AVX-512 (F, BW, DQ, VL).
#include "cpu/kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)
FASTGAN_BEGIN_TARGET(FASTGAN_AVX512)

#  define FASTGAN_VARIANT avx512
#  define FASTGAN_VECTOR_BYTES 64
#  include "cpu/kernels_impl.h"

FASTGAN_END_TARGET
#endif
