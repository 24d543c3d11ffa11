// What nvcc understands and declares without a header, for a C++ compiler.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
using uint3 = dim3;

#define FASTGAN_EMULATED_VECTORS(T, name)                                        \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                             \
  struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }              \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
FASTGAN_EMULATED_VECTORS(float, float)
FASTGAN_EMULATED_VECTORS(double, double)
FASTGAN_EMULATED_VECTORS(int, int)
FASTGAN_EMULATED_VECTORS(unsigned, uint)
FASTGAN_EMULATED_VECTORS(unsigned short, ushort)
FASTGAN_EMULATED_VECTORS(unsigned char, uchar)
#undef FASTGAN_EMULATED_VECTORS

// --- The run-time library ---

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrCooperativeLaunch,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout,
};
