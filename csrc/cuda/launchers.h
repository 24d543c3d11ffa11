// What the launchers of the CUDA kernels have in common: pointers, sizes and a stream, no torch.
// Each returns the error of its launch. Sizes of 0 launch nothing. Nothing allocates or
// synchronises, so every launch may be captured in a graph.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/fp16.h"

// For the element types of most kernels.
#define FASTGAN_FOR_ELEMENTS(instantiate) \
  instantiate(float) instantiate(double) instantiate(bf16) instantiate(fp16)
