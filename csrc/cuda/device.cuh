// What a kernel asks of the device beyond arithmetic: launches, shared memory, waiting for other
// blocks. Kernels use these names and not the bare syntax, so that a C++ compiler can take the same
// source and run it on the CPU: without nvcc, the tests' emulator stands in for this file.
#pragma once

#if !defined(__CUDACC__)
#  include "cuda_emulator.h"
#else

#  include <cuda_runtime.h>
#  include <stdint.h>

#  include <utility>

// A shared array: FASTGAN_SHARED(float, tile, [16][17]).
#  define FASTGAN_SHARED(type, name, extents) __shared__ type name extents
// The launch's dynamic shared memory as unsigned char name[].
#  define FASTGAN_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace fastgan::cuda {

template <class... Parameters, class... Arguments>
cudaError_t launch_with(bool cooperative, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                        size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  // Told to the caller, and so no longer to whoever asks next for the last error.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), and the error of the launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  return launch_with(false, kernel, grid, block, shared_bytes, stream,
                     std::forward<Arguments>(arguments)...);
}

// The same with all blocks resident at once, so that they may wait for one another.
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                               size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return launch_with(true, kernel, grid, block, shared_bytes, stream,
                     std::forward<Arguments>(arguments)...);
}

// Belongs into every loop that waits for another thread's write. The emulator runs the others here.
__device__ __forceinline__ void spin_wait() {}

// Tells the compiler that p leads to global memory, which it knows only of a kernel's parameters.
__device__ __forceinline__ void assume_global(const void* p) { __builtin_assume(__isGlobal(p)); }

// Asks for the line of global memory at p, which must be in an allocation, to come to the L2 cache.
__device__ __forceinline__ void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Nanoseconds since some moment in the past, by a clock of the whole device that moves in jumps.
__device__ __forceinline__ int64_t nanoseconds() {
  int64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
  return now;
}

// A flag in global memory between blocks: what was written before the release is seen after the
// acquire that reads it.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ void add_release(uint32_t* flag, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

}  // namespace fastgan::cuda

#endif
