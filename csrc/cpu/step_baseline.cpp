// The training step for any processor of this architecture (SSE2 on x86-64, NEON on arm64).
#include "common/activation.h"
#include "common/adam.h"
#include "common/dropout.h"
#include "cpu/clock.h"
#include "cpu/kernels.h"
#include "cpu/step.h"

#define FASTGAN_VARIANT baseline
#define FASTGAN_VECTOR_BYTES 16
#if defined(__aarch64__)
#  define FASTGAN_VECTOR_REGISTERS 32
#else
#  define FASTGAN_VECTOR_REGISTERS 16
#endif
#define FASTGAN_PRODUCTS 0
#include "cpu/step_impl.h"
