// The training step for any processor of this architecture (SSE2 on x86-64, NEON on arm64), and on
// operands rounded to bfloat16.
#include "cpu/step/includes.h"
#include "cpu/target.h"

#define FASTGAN_VECTOR_BYTES 16
#define FASTGAN_VARIANT baseline
#define FASTGAN_INSTRUCTIONS 0
#include "cpu/step/stepper.h"

#define FASTGAN_VARIANT baseline_emulated
#define FASTGAN_INSTRUCTIONS 1
#include "cpu/step/stepper.h"
