// Runs CUDA kernels on the CPU, for tests on machines without a GPU: a C++ compiler takes the
// torch-free .cu files of csrc through this header.
//
//   g++ -std=c++20 -Icsrc -Itests/native -Itests/native/emulated -x c++ csrc/ops/adam/adam.cu ...
//
// A kernel may use: threadIdx and its kin, FASTGAN_SHARED, FASTGAN_DYNAMIC_SHARED, everything in
// cuda/device.cuh and cuda/mma.cuh, __syncthreads, warp shuffles, votes and reductions, atomics,
// __ldg, float2/float4/uint2/uint4 and the functions below. Launches go through launch() and
// launch_cooperative(). What is not here does not compile.
//
// Every CUDA thread is a fiber of one thread of the host, so nothing runs at the same time. A fiber
// runs until it waits (barrier, warp operation, spin_wait, __nanosleep, end); who goes next is
// decided by the seed: 0 takes threads and blocks in order, any other seed shuffles them. Ordinary
// launches run block by block, cooperative ones all blocks together.
//
// What a test sees through it:
//   - a missing __syncthreads or __syncwarp: results that move with the seed (run several);
//   - shared memory read before it is written: it is filled with NaN (bytes 0xff) for each block;
//   - writes past the end of shared memory: guard zones, checked when a block ends;
//   - a missing wait for an asynchronous copy: the bytes arrive at the wait, not before;
//   - a barrier that not all threads reach, a warp operation whose mask names a lane that has
//     ended or that does something else, waiting for ever: the launch fails, emulator_error() says
//     why;
//   - more shared memory than a block may have, or than was asked for by cudaFuncSetAttribute;
//     more cooperative blocks than fit at once; misaligned vector copies.
// What it cannot see: missing fences between blocks (memory here is sequentially consistent), the
// order of floating-point sums inside one tensor-core product, speed.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "emulator_language.h"
#include "emulator_threads.h"

// --- What kernels find around them, and launchers ask ---

#define FASTGAN_SHARED(type, name, extents)                                             \
  static char name##_tag;                                                               \
  using name##_array = std::remove_reference_t<decltype(std::declval<type extents>())>; \
  name##_array& name = ::fastgan::emulator::shared_array<name##_array>(&name##_tag)
#define FASTGAN_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::fastgan::emulator::dynamic_shared()

#define threadIdx (::fastgan::emulator::now().thread)
#define blockIdx (::fastgan::emulator::now().block->index)
#define blockDim (::fastgan::emulator::now().block->grid->threads)
#define gridDim (::fastgan::emulator::now().block->grid->blocks)

static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline const char* cudaGetErrorString(cudaError_t) {
  return ::fastgan::emulator::state.error.c_str();
}
static inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& d = ::fastgan::emulator::device;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = d.multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(d.shared_per_block);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(d.shared_per_multiprocessor);
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = d.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = d.minor;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
  }
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > ::fastgan::emulator::device.shared_per_block) {
    return cudaErrorInvalidValue;
  }
  ::fastgan::emulator::state.shared_limit[reinterpret_cast<const void*>(kernel)] =
      static_cast<size_t>(value);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads,
                                                          size_t dynamic_bytes) {
  *blocks = ::fastgan::emulator::resident_blocks(threads, dynamic_bytes);
  return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                          cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

// --- What kernels call ---

static inline void __syncthreads() {
  ::fastgan::emulator::barrier(0, ::fastgan::emulator::now().block->threads);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::fastgan::emulator::collective(mask, "__syncwarp", 0, [](auto) { return 0; });
}
static inline void __nanosleep(unsigned) { ::fastgan::emulator::spin(); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline long long clock64() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}
[[noreturn]] static inline void __trap() { ::fastgan::emulator::fail("__trap"); }

template <class T>
T __ldg(const T* p) {
  ::fastgan::emulator::check_aligned(p, sizeof(T), "what __ldg reads");
  return *p;
}
#define __ldcg __ldg
#define __ldcs __ldg
template <class T>
void __stcg(T* p, T value) {
  ::fastgan::emulator::check_aligned(p, sizeof(T), "what __stcg writes");
  *p = value;
}
#define __stcs __stcg

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = ::fastgan::emulator::now().lane();
  const int from = lane / width * width + (source & (width - 1));
  return ::fastgan::emulator::collective(mask, "__shfl_sync", value,
                                         [from](auto at) { return at(from); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = ::fastgan::emulator::now().lane(), from = lane ^ bits;
  const bool inside = from / width <= lane / width;
  return ::fastgan::emulator::collective(
      mask, "__shfl_xor_sync", value,
      [from, inside, value](auto at) { return inside ? at(from) : value; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = ::fastgan::emulator::now().lane(), from = lane + static_cast<int>(by);
  const bool inside = from / width == lane / width;
  return ::fastgan::emulator::collective(
      mask, "__shfl_down_sync", value,
      [from, inside, value](auto at) { return inside ? at(from) : value; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = ::fastgan::emulator::now().lane(), from = lane - static_cast<int>(by);
  const bool inside = from >= lane / width * width;
  return ::fastgan::emulator::collective(
      mask, "__shfl_up_sync", value,
      [from, inside, value](auto at) { return inside ? at(from) : value; });
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return ::fastgan::emulator::collective(mask, "__ballot_sync", predicate, [mask](auto at) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1u) votes |= static_cast<unsigned>(at(lane) != 0) << lane;
    }
    return votes;
  });
}
static inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return ::fastgan::emulator::collective(mask, "__reduce_add_sync", value, [mask](auto at) {
    unsigned sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += mask >> lane & 1u ? at(lane) : 0u;
    return sum;
  });
}

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  const T before = *p;
  *p = before + value;
  return before;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  const T before = *p;
  *p = std::max(before, value);
  return before;
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  const T before = *p;
  *p = std::min(before, value);
  return before;
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value) {
  const T before = *p;
  *p = before | value;
  return before;
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return std::exchange(*p, value);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T before = *p;
  if (before == expected) *p = value;
  return before;
}

static inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
// Products that are not fused with what follows: the barrier keeps the compiler from it.
static inline float __fmul_rn(float a, float b) {
  float product = a * b;
  asm volatile("" : "+x"(product));
  return product;
}
static inline double __dmul_rn(double a, double b) {
  double product = a * b;
  asm volatile("" : "+x"(product));
  return product;
}
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
using std::max;
using std::min;

// --- cuda/device.cuh and cuda/mma.cuh
// -------------------------------------------------------------

namespace fastgan::cuda {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t, Arguments&&... arguments) {
  return emulator::launch_with(false, kernel, grid, block, shared_bytes,
                               std::forward<Arguments>(arguments)...);
}
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                               size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
  return emulator::launch_with(true, kernel, grid, block, shared_bytes,
                               std::forward<Arguments>(arguments)...);
}

static inline void spin_wait() { emulator::spin(); }
static inline void assume_global(const void*) {}
// Reads the byte, so that a tool for memory errors sees an address outside.
static inline void prefetch(const void* p) {
  [[maybe_unused]] const volatile char byte = *static_cast<const volatile char*>(p);
}
static inline int64_t nanoseconds() { return clock64(); }
static inline uint32_t load_acquire(const uint32_t* flag) {
  return *static_cast<const volatile uint32_t*>(flag);
}
static inline void add_release(uint32_t* flag, uint32_t value) {
  *static_cast<volatile uint32_t*>(flag) = *flag + value;
}

static inline uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  // Ties away from zero; infinities and NaN keep what they are.
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}
static inline float emulated_tf32(uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); }
static inline float emulated_bf16(uint32_t bits) { return __uint_as_float((bits & 0xffffu) << 16); }
static inline float emulated_fp16(uint32_t bits) {
  const float sign = bits & 0x8000u ? -1.f : 1.f;
  const int exponent = static_cast<int>(bits >> 10 & 31u);
  const float fraction = static_cast<float>(bits & 1023u) / 1024.f;
  if (exponent == 31) return fraction != 0.f ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexpf(1.f + fraction, exponent - 15) : ldexpf(fraction, -14));
}

struct EmulatedFragments {
  uint32_t a[4], b[2];
};

// element(word, half) is the value of one half of a 32-bit register.
template <int K, class Element>
void emulated_mma(const char* what, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const Element& element) {
  EmulatedFragments own;
  memcpy(own.a, a, sizeof a);
  memcpy(own.b, b, sizeof b);
  const int lane = emulator::now().lane(), g = lane / 4, t = lane % 4;
  emulator::collective(~0u, what, own, [&](auto at) {
    // Rows g and g + 8 of A and columns 2 t and 2 t + 1 of B. K = 8: register k / 4 of lane k % 4
    // of the row's or column's four. K = 16: half k % 2 of register k / 8 of lane k % 8 / 2.
    float rows[2][K], columns[2][K];
    for (int lane_of = 0; lane_of < 4; ++lane_of) {
      const EmulatedFragments of_a = at(4 * g + lane_of);
      const EmulatedFragments of_b[2] = {at(4 * (2 * t) + lane_of), at(4 * (2 * t + 1) + lane_of)};
      for (int high = 0; high < 2; ++high) {
        for (int half = 0; half < K / 8; ++half) {
          const int k = K == 8 ? lane_of + 4 * high : 2 * lane_of + half + 8 * high;
          for (int i = 0; i < 2; ++i) {
            rows[i][k] = element(of_a.a[i + 2 * high], half);
            columns[i][k] = element(of_b[i].b[high], half);
          }
        }
      }
    }
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < K; ++k) d[i] += rows[i / 2][k] * columns[i % 2][k];
    }
    return 0;
  });
}

static inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma<8>("mma_tf32", d, a, b, [](uint32_t word, int) { return emulated_tf32(word); });
}
static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma<16>("mma_bf16", d, a, b,
                   [](uint32_t word, int half) { return emulated_bf16(word >> 16 * half); });
}
static inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma<16>("mma_fp16", d, a, b, [](uint32_t word, int half) {
    return emulated_fp16(word >> 16 * half & 0xffffu);
  });
}

template <bool Transposed>
void emulated_load_matrices(uint32_t (&r)[4], const void* row) {
  emulator::check_aligned(row, 16, "a row of load_matrices");
  const int lane = emulator::now().lane(), g = lane / 4, t = lane % 4;
  emulator::collective(~0u, "load_matrices", row, [&](auto at) {
    for (int j = 0; j < 4; ++j) {
      uint32_t halves[2];
      for (int i = 0; i < 2; ++i) {
        const int from = Transposed ? 2 * t + i : g, column = Transposed ? g : 2 * t + i;
        halves[i] = static_cast<const uint16_t*>(at(8 * j + from))[column];
      }
      r[j] = halves[0] | halves[1] << 16;
    }
    return 0;
  });
  // The real instruction has read its rows when it returns.
  emulator::collective(~0u, "load_matrices", 0, [](auto) { return 0; });
}
static inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulated_load_matrices<false>(r, row);
}
static inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  emulated_load_matrices<true>(r, row);
}

template <int Bytes>
void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulator::check_aligned(shared, Bytes, "what copy_async writes");
  if (valid) emulator::check_aligned(global, Bytes, "what copy_async reads");
  emulator::now().groups.back().push_back({shared, global, Bytes, valid});
}
static inline void copy_async_commit() { emulator::now().groups.emplace_back(); }
template <int Pending>
void copy_async_wait() {
  auto& groups = emulator::now().groups;
  while (groups.size() > Pending + 1) {
    for (const auto& copy : groups.front()) {
      if (copy.valid) {
        memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      } else {
        memset(copy.to, 0, static_cast<size_t>(copy.bytes));
      }
    }
    groups.pop_front();
  }
}

}  // namespace fastgan::cuda
