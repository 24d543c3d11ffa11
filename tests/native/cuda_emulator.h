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
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

// --- The language
// ---------------------------------------------------------------------------------

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

// --- The run-time library
// -------------------------------------------------------------------------

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
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout,
};

namespace fastgan::emulator {

// What the emulated device is. Tests may change it.
struct Device {
  int multiprocessors = 132;
  int major = 9, minor = 0;
  size_t shared_per_block = 227 * 1024;  // with cudaFuncSetAttribute; 48 KiB without
  size_t shared_per_multiprocessor = 228 * 1024;
  int threads_per_multiprocessor = 2048;
};
inline Device device;

constexpr size_t kSharedWithoutAsking = 48 * 1024;
constexpr int kWarp = 32;

struct Fiber;

// Threads that wait for one another.
struct Barrier {
  int arrived = 0;
  std::vector<Fiber*> waiting;
};

// One group of lanes that does warp operations together. Two buffers, used in turn: a lane can be
// one operation ahead of another that has yet to read.
struct Exchange {
  static constexpr size_t kBytes = 64;
  uint32_t mask = 0, arrived = 0;
  unsigned turn = 0;
  const char* what = "";
  alignas(16) unsigned char data[2][kWarp][kBytes];
  std::vector<Fiber*> waiting;
};

struct Warp {
  uint32_t ended = 0;
  std::deque<Exchange> exchanges;  // one for each mask that was used; they must not move
};

// A piece of shared memory with guard zones around it.
class Guarded {
 public:
  Guarded(const void* tag, size_t bytes) : tag(tag), bytes_(bytes) {
    memory_.reset(static_cast<unsigned char*>(aligned_alloc(1024, total())));
    memset(memory_.get(), 0xa5, total());
    memset(data(), 0xff, bytes);
  }
  unsigned char* data() { return memory_.get() + kZone; }
  bool intact() const {
    for (size_t i = 0; i < total(); ++i) {
      if ((i < kZone || i >= kZone + bytes_) && memory_.get()[i] != 0xa5) return false;
    }
    return true;
  }
  const void* tag;

 private:
  static constexpr size_t kZone = 1024;
  size_t total() const { return (bytes_ + 1023) / 1024 * 1024 + 2 * kZone; }
  struct Free {
    void operator()(unsigned char* p) const { free(p); }
  };
  size_t bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
};

struct Grid;

struct Block {
  Grid* grid;
  dim3 index;
  int threads, live;
  Barrier barriers[16];
  std::vector<Warp> warps;
  std::deque<Guarded> shared;  // the first is the dynamic one
  size_t shared_bytes = 0;
};

struct Grid {
  dim3 blocks, threads;
  size_t dynamic_bytes;
  std::function<void()> body;
  int live = 0;  // fibers that have not ended
};

// The stack of a CUDA thread. Its fiber stays when the thread ends and takes another one.
struct Fiber {
  static constexpr size_t kStack = 128 * 1024;
  ucontext_t first;
  jmp_buf state;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  bool begun = false;
  Block* block = nullptr;
  dim3 thread;
  int linear = 0;
  struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool valid;
  };
  std::deque<std::vector<Copy>> groups;  // of asynchronous copies; the last one is open
  Warp& warp() { return block->warps[static_cast<size_t>(linear / kWarp)]; }
  int lane() const { return linear % kWarp; }
};

struct State {
  uint64_t seed = 0, random = 0;
  std::string error;
  Fiber* now = nullptr;
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  std::vector<std::unique_ptr<Fiber>> pool;
  std::vector<Fiber*> ready;
  bool only_spun = true;  // since the round began
  std::unordered_map<const void*, size_t> shared_limit;
  uint64_t launches = 0;
};
inline State state;

inline uint64_t draw(uint64_t below) {
  state.random += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = state.random;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (z ^ (z >> 31)) % below;
}
template <class T>
void shuffle(std::vector<T>& items) {
  if (state.seed == 0) return;
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[draw(i)]);
}

inline Fiber& now() { return *state.now; }

// Back to the scheduler; returns when this fiber is run again.
__attribute__((noinline)) inline void leave() {
  if (_setjmp(state.now->state) == 0) _longjmp(state.scheduler, 1);
}

[[noreturn]] inline void fail(const std::string& reason) {
  const Fiber& f = now();
  const dim3 b = f.block->index, t = f.thread;
  char where[160];
  snprintf(where, sizeof where, " (block %u,%u,%u thread %u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
  state.error = reason + where;
  _longjmp(state.scheduler, 1);
}

inline void wake(std::vector<Fiber*>& waiting) {
  state.only_spun = false;
  state.ready.insert(state.ready.end(), waiting.begin(), waiting.end());
  waiting.clear();
}

inline void spin() {
  state.ready.push_back(state.now);
  leave();
}

inline void barrier(int id, int threads) {
  Block& block = *now().block;
  Barrier& b = block.barriers[id];
  if (id == 0 && block.live != block.threads) {
    fail("__syncthreads after a thread of the block has ended");
  }
  if (++b.arrived == threads) {
    b.arrived = 0;
    wake(b.waiting);
    // The last to come takes its turn like the others: it must not always be the first to go on.
    spin();
  } else {
    b.waiting.push_back(state.now);
    leave();
  }
}

// A warp operation: every lane of `mask` gives `own`; combine(at) then computes this lane's result,
// where at(lane) is what a lane gave.
template <class T, class Combine>
auto collective(uint32_t mask, const char* what, const T& own, const Combine& combine) {
  static_assert(sizeof(T) <= Exchange::kBytes && std::is_trivially_copyable_v<T>);
  Fiber& f = now();
  Warp& warp = f.warp();
  const uint32_t self = 1u << f.lane();
  if (!(mask & self)) fail(std::string(what) + ": the mask does not name the calling lane");
  if (mask & warp.ended) fail(std::string(what) + ": the mask names a lane that has ended");
  Exchange* e = nullptr;
  for (Exchange& known : warp.exchanges) {
    if (known.mask == mask) e = &known;
  }
  if (e == nullptr) {
    e = &warp.exchanges.emplace_back();
    e->mask = mask;
  }
  if (e->arrived == 0) {
    e->what = what;
  } else if (strcmp(e->what, what) != 0) {
    fail(std::string("lanes of one warp do ") + e->what + " and " + what);
  }
  const unsigned turn = e->turn & 1u;
  memcpy(e->data[turn][f.lane()], &own, sizeof own);
  e->arrived |= self;
  if (e->arrived == mask) {
    e->arrived = 0;
    e->turn++;
    wake(e->waiting);
  } else {
    e->waiting.push_back(state.now);
    leave();
  }
  return combine([e, turn, what](int lane) {
    if (!(e->mask >> lane & 1u)) fail(std::string(what) + " reads a lane outside its mask");
    T value;
    memcpy(&value, e->data[turn][lane], sizeof value);
    return value;
  });
}

// --- Threads and launches ---

inline void end_of_thread() {
  Fiber& f = now();
  Block& block = *f.block;
  for (const auto& group : f.groups) {
    if (!group.empty()) fail("a thread ends with asynchronous copies under way");
  }
  for (const Barrier& b : block.barriers) {
    if (&b == &block.barriers[0] && b.arrived) fail("a thread ends while others are at a barrier");
  }
  f.warp().ended |= 1u << f.lane();
  for (const Exchange& e : f.warp().exchanges) {
    if (e.arrived && (e.mask & f.warp().ended)) {
      fail(std::string("a lane ends while others wait for it in ") + e.what);
    }
  }
  state.only_spun = false;
  --block.grid->live;
  if (--block.live == 0) {
    for (const Guarded& piece : block.shared) {
      if (!piece.intact()) fail("something was written outside of shared memory");
    }
  }
}

inline void fiber_main() {
  for (;;) {
    now().block->grid->body();
    end_of_thread();
    leave();
  }
}

inline void resume(Fiber* fiber) {
  state.now = fiber;
  if (_setjmp(state.scheduler) != 0) return;
  if (fiber->begun) _longjmp(fiber->state, 1);
  fiber->begun = true;
  getcontext(&fiber->first);
  fiber->first.uc_stack.ss_sp = fiber->stack.get();
  fiber->first.uc_stack.ss_size = Fiber::kStack;
  fiber->first.uc_link = nullptr;
  makecontext(&fiber->first, fiber_main, 0);
  setcontext(&fiber->first);
}

inline void begin_block(Grid& grid, Block& block, dim3 index, size_t first_fiber) {
  block.grid = &grid;
  block.index = index;
  block.threads = static_cast<int>(grid.threads.x * grid.threads.y * grid.threads.z);
  block.live = block.threads;
  block.warps.resize(static_cast<size_t>((block.threads + kWarp - 1) / kWarp));
  if (block.threads % kWarp) block.warps.back().ended = ~0u << (block.threads % kWarp);
  block.shared.emplace_back(nullptr, grid.dynamic_bytes);
  block.shared_bytes = grid.dynamic_bytes;
  grid.live += block.threads;
  for (int i = 0; i < block.threads; ++i) {
    const size_t at = first_fiber + static_cast<size_t>(i);
    if (at == state.pool.size()) state.pool.push_back(std::make_unique<Fiber>());
    Fiber& f = *state.pool[at];
    f.block = &block;
    f.linear = i;
    const unsigned u = static_cast<unsigned>(i);
    f.thread = dim3(u % grid.threads.x, u / grid.threads.x % grid.threads.y,
                    u / (grid.threads.x * grid.threads.y));
    f.groups.clear();
    f.groups.emplace_back();
    state.ready.push_back(&f);
  }
}

// Runs what is ready until all threads have ended. False: state.error says what went wrong.
inline bool run_to_end(Grid& grid) {
  int idle_rounds = 0;
  std::vector<Fiber*> round;
  while (grid.live > 0) {
    round.clear();
    round.swap(state.ready);
    if (round.empty()) {
      state.error = "every thread waits at a barrier or in a warp operation that the others miss";
      return false;
    }
    shuffle(round);
    state.only_spun = true;
    for (Fiber* fiber : round) {
      resume(fiber);
      if (!state.error.empty()) return false;
    }
    idle_rounds = state.only_spun ? idle_rounds + 1 : 0;
    if (idle_rounds == 10000) {
      state.error = "threads spin for something that never comes";
      return false;
    }
  }
  return true;
}

inline cudaError_t run(Grid& grid, bool cooperative) {
  std::vector<dim3> order;
  for (unsigned z = 0; z < grid.blocks.z; ++z) {
    for (unsigned y = 0; y < grid.blocks.y; ++y) {
      for (unsigned x = 0; x < grid.blocks.x; ++x) order.emplace_back(x, y, z);
    }
  }
  shuffle(order);
  const size_t threads = size_t{grid.threads.x} * grid.threads.y * grid.threads.z;
  bool fine = true;
  if (cooperative) {
    std::deque<Block> blocks(order.size());
    for (size_t i = 0; i < order.size(); ++i) {
      begin_block(grid, blocks[i], order[i], i * threads);
    }
    fine = run_to_end(grid);
  } else {
    for (size_t i = 0; i < order.size() && fine; ++i) {
      Block block;
      begin_block(grid, block, order[i], 0);
      fine = run_to_end(grid);
    }
  }
  state.now = nullptr;
  if (fine) return cudaSuccess;
  state.ready.clear();
  state.pool.clear();  // the stacks of threads that did not end
  return cudaErrorLaunchFailure;
}

inline cudaError_t refuse(const std::string& reason, cudaError_t code) {
  state.error = reason;
  return code;
}

inline int resident_blocks(int threads, size_t dynamic_bytes) {
  const size_t by_threads = static_cast<size_t>(device.threads_per_multiprocessor / threads);
  const size_t by_shared = device.shared_per_multiprocessor / (dynamic_bytes + 1024);
  return static_cast<int>(std::min({by_threads, by_shared, size_t{32}}));
}

inline size_t shared_limit(const void* kernel) {
  const auto asked = state.shared_limit.find(kernel);
  return asked == state.shared_limit.end() ? kSharedWithoutAsking : asked->second;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_with(bool cooperative, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                        size_t shared_bytes, Arguments&&... arguments) {
  const size_t per_block = size_t{threads.x} * threads.y * threads.z;
  const size_t count = size_t{blocks.x} * blocks.y * blocks.z;
  state.error.clear();
  state.random = state.seed;
  ++state.launches;
  if (per_block == 0 || per_block > 1024 || count == 0 || blocks.x > 0x7fffffffu ||
      blocks.y > 65535 || blocks.z > 65535) {
    return refuse("the launch has no threads, more than 1024 in a block or too many blocks",
                  cudaErrorInvalidConfiguration);
  }
  if (shared_bytes > shared_limit(reinterpret_cast<const void*>(kernel))) {
    return refuse("more dynamic shared memory than cudaFuncSetAttribute allowed this kernel",
                  cudaErrorInvalidValue);
  }
  if (cooperative &&
      count > static_cast<size_t>(device.multiprocessors) *
                  static_cast<size_t>(resident_blocks(static_cast<int>(per_block), shared_bytes))) {
    return refuse("more cooperative blocks than the device holds at once",
                  cudaErrorCooperativeLaunchTooLarge);
  }
  Grid grid;
  grid.blocks = blocks;
  grid.threads = threads;
  grid.dynamic_bytes = shared_bytes;
  const std::tuple<std::decay_t<Parameters>...> bound(std::forward<Arguments>(arguments)...);
  grid.body = [&] { std::apply(kernel, bound); };
  return run(grid, cooperative);
}

// --- Shared memory ---

inline unsigned char* dynamic_shared() { return now().block->shared.front().data(); }

template <class T>
T& shared_array(const void* tag) {
  Block& block = *now().block;
  for (Guarded& piece : block.shared) {
    if (piece.tag == tag) return *reinterpret_cast<T*>(piece.data());
  }
  block.shared_bytes += sizeof(T);
  if (block.shared_bytes > device.shared_per_block)
    fail("more shared memory than a block can have");
  return *reinterpret_cast<T*>(block.shared.emplace_back(tag, sizeof(T)).data());
}

inline void check_aligned(const void* p, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail(std::string(what) + " is not aligned");
}

}  // namespace fastgan::emulator

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

// --- What kernels call
// ----------------------------------------------------------------------------

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
