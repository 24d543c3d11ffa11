// What the persistent kernel is told of its jobs, and what a block of it knows.
#pragma once

#include "cuda/step/moment.cuh"

namespace fastgan::cuda::step {

// What the description of a program has room for in shared memory.
constexpr int kMostLayers = 16;
constexpr int kMostPhases = 2 * kMostLayers;  // of an update: one a layer of G and two one of D

// A phase as a program has it.
struct Entry {
  uint8_t work, layer, segments;
  int8_t other, from;
  bool shared, small;  // small: tiles of a product
};
__device__ __forceinline__ Phase phase_of(const Entry& e) {
  return {static_cast<Phase::Work>(e.work), e.layer, e.other, e.from, e.segments, e.shared};
}

struct alignas(16) Program {
  unsigned bytes;  // as far as the last layer there is
  Step s;
  Entry phases[2][kMostPhases];  // of D's update, of G's
  int counts[2];
  unsigned first[kMostLayers + 1];  // tile of each layer's weight, counted through both networks
  int g_layers, layers_count;
  int64_t steps;
  int64_t* stamps;  // see Job
  alignas(16) Layer layers[kMostLayers];
};

// A program in the memory of its job, and how often blocks have arrived at a barrier of its gang:
// in a line of its own, as those that wait read it all the time.
struct Posted {
  Program program;
  alignas(128) uint32_t arrivals;
};

// The programs of a launch. Their gangs have as many blocks each.
constexpr int kMostGangs = 256;
struct Gangs {
  Posted* of[kMostGangs];
  unsigned count;
};

// Copies whose pointers are known to lead to memory: accesses are then no slower than those through
// a kernel's parameters, and what is in shared memory need not be read again after them.
template <class... Pointers>
__device__ __forceinline__ void in_memory(const Pointers&... pointers) {
  (assume_global(pointers), ...);
}
__device__ __forceinline__ Step told(const Step& step) {
  const Step s = step;
  in_memory(s.bytes, s.floats, s.order, s.rates, s.statistics, s.latents, s.images, s.adam,
            s.loss_rows, s.score_rows);
  return s;
}
__device__ __forceinline__ Layer told(const Layer& layer) {
  const Layer l = layer;
  in_memory(l.weight.value, l.weight.exp_avg, l.weight.exp_avg_sq, l.weight.average);
  in_memory(l.bias.value, l.bias.exp_avg, l.bias.exp_avg_sq, l.bias.average);
  in_memory(l.x, l.y, l.grad_x, l.grad_y, l.slopes);
  return l;
}

// What a block has at hand in every phase: in shared memory, as products need all registers.
struct Block {
  Clock clock;  // which is read from memory only once, as the program is
  Moment now;
  int64_t* stamp;  // where the next goes, if anywhere
  uint32_t* arrivals;
  uint32_t expected;      // arrivals of all barriers so far
  unsigned index, count;  // its place in the gang, and the gang's blocks
  unsigned resident;      // where its tiles of the weights begin in shared memory
};

// All blocks of the gang.
__device__ inline void wait_for_all(Block& block) {
  __syncthreads();
  // The release and the acquire speak for the whole block: its barriers before and after order its
  // other threads' accesses with this one's. Fences besides would only take their time twice.
  if (threadIdx.x == 0) {
    uint32_t* const arrivals = block.arrivals;
    const uint32_t expected = block.expected += block.count;
    add_release(arrivals, 1);
    while (static_cast<int32_t>(load_acquire(arrivals) - expected) < 0) spin_wait();
    if (block.stamp) *block.stamp++ = clock64();
  }
  __syncthreads();
}

}  // namespace fastgan::cuda::step
