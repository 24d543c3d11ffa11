// Found instead of csrc/cuda/on_device.h where the operators of the fused engine are compiled for
// the emulator: they then serve tensors on the CPU.
#pragma once

#include <stdexcept>

#include "ops/checks.h"
#include "cuda_emulator.h"

#define FASTGAN_DEVICE CPU

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(expression)                                             \
  do {                                                                         \
    const cudaError_t error_ = (expression);                                   \
    if (error_ != cudaSuccess)                                                 \
      throw std::runtime_error("CUDA error " + std::to_string(error_) + ": " + \
                               cudaGetErrorString(error_));                    \
  } while (0)

namespace fastgan::cuda {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

}  // namespace fastgan::cuda
