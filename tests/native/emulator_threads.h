// The emulated device: grids, blocks, warps and fibers, who runs next, and shared memory.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

#include "emulator_language.h"

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
