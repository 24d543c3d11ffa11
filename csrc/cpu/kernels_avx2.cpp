// The kernels for AVX2 and FMA.
#include "cpu/kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)
FASTGAN_BEGIN_TARGET(FASTGAN_AVX2)

#  define FASTGAN_VARIANT avx2
#  define FASTGAN_VECTOR_BYTES 32
#  include "cpu/kernels_impl.h"

FASTGAN_END_TARGET
#endif
