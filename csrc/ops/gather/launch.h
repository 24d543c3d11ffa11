// The launcher of the kernel that gathers a batch; see cuda/launchers.h.
#pragma once

#include "cuda/launchers.h"
#include "ops/gather/gather.h"

namespace fastgan::cuda {

// A row outside order or pixels becomes NaN. Pixel: uint8_t or float (or double, where T is). T:
// float, double, bf16 or fp16.
template <class Pixel, class T>
cudaError_t gather_normalize(const Gather& gather, const Pixel* pixels, T* out,
                             cudaStream_t stream);

}  // namespace fastgan::cuda
