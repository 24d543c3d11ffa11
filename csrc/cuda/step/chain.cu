// The chain: a step as a sequence of kernels, one a phase, for any plan. A captured graph of it
// serves every step, because the kernels read the clock.
#include <utility>

#include "cuda/step/backward.cuh"
#include "cuda/step/forward.cuh"
#include "cuda/step/head.cuh"
#include "cuda/step/inputs.cuh"
#include "cuda/step/norm.cuh"
#include "cuda/step/tiles.cuh"
#include "cuda/step/update.cuh"

namespace fastgan::cuda::step {

namespace {

// --- Kernels

__global__ void __launch_bounds__(kThreads)
    inputs_kernel(FASTGAN_PARAMETER(Step, s), int64_t i, int64_t k) {
  const Moment now = moment(s, *s.clock, i, k);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  inputs(s, *s.clock, now, k, k + 1 == s.d_steps, first,
         static_cast<int64_t>(gridDim.x) * kThreads);
}

// A BatchNorm's count of batches is moved on by the kernel after it, when nothing reads it.
struct Count {
  int64_t* batches;
  int by;
};
__device__ __forceinline__ void add(const Count& count) {
  if (count.batches && blockIdx.x == 0 && threadIdx.x == 0)
    *count.batches = more_batches(*count.batches, count.by);
}

template <class T, Precision precision>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i, int64_t k,
                   int from, int segments, Count count) {
  FASTGAN_DYNAMIC_SHARED(shared);
  add(count);
  const Moment now = moment(s, *s.clock, i, k);
  if (blockIdx.x >= forward_tiles<T>(l, segments * now.batch)) return;
  forward_tile<T, precision>(s, l, now, from, segments, blockIdx.x, shared);
}

__global__ void __launch_bounds__(kThreads)
    head_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                FASTGAN_PARAMETER(Layer, lower), bool differentiated, int64_t i, int64_t k,
                int from, int segments, Count count) {
  add(count);
  const Moment now = moment(s, *s.clock, i, k);
  const int warp = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  head_rows(s, l, lower, differentiated, now, from, segments, warp,
            static_cast<int>(gridDim.x) * kWarps);
}

template <class T, Precision precision>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                    FASTGAN_PARAMETER(Layer, lower), int64_t i, int64_t k, int from, int segments) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const Moment now = moment(s, *s.clock, i, k);
  if (blockIdx.x >= backward_tiles<T>(l, segments * now.batch)) return;
  backward_tile<T, precision>(s, l, lower, now, from, segments, blockIdx.x, shared);
}

// As many layers as their descriptions fit into 4 KiB of parameters.
constexpr int kUpdated = 8;
struct Updated {
  Layer layers[kUpdated];
  int64_t first[kUpdated + 1];  // tile of each layer
  int count;
  bool statistics;  // whether the last block has the means to take
};
static_assert(sizeof(Updated) + sizeof(Step) <= 4000);

// Left to itself, ptxas spills the small tile's registers for blocks that shared memory rules out.
template <class T>
constexpr int kUpdateBlocks = blocks_that_fit(kUpdateBytes<T>) < 2 ? 1 : 2;
template <class T, Precision precision>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<T>)
    update_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Updated, u), int64_t i, int64_t k,
                  int from, int segments) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const Moment now = moment(s, *s.clock, i, k);
  if (blockIdx.x == u.first[u.count]) {
    if (u.statistics) write_statistics(s, now, u.layers[0].in_g, shared);
    // The averaged network takes the statistics over as they are.
    for (int n = 0; n < u.count; ++n) {
      const Layer& l = u.layers[n];
      if (l.average_mean == nullptr) continue;
      for (int64_t f = threadIdx.x; f < l.out; f += kThreads) {
        l.average_mean[f] = l.running_mean[f];
        l.average_var[f] = l.running_var[f];
      }
      if (threadIdx.x == 0) *l.average_batches = *l.batches;
    }
    return;
  }
  int n = 0;
  while (blockIdx.x >= u.first[n + 1]) ++n;
  update_tile<T, precision, false>(s, u.layers[n], now, from, segments,
                                   blockIdx.x - static_cast<unsigned>(u.first[n]), shared, nullptr);
}

__global__ void advance_kernel(Clock* clock, int64_t steps) {
  clock->step = wrapped_sum(clock->step, steps);
}

// --- Launches

// Goes through the phases of a step in order; launches them, or only counts.
template <Precision precision>
class Chain {
 public:
  Chain(const Job& job, const Device& device, cudaStream_t stream, bool launching)
      : job_(job), device_(device), stream_(stream), launching_(launching) {}

  cudaError_t run() {
    for (i_ = 0; i_ < job_.steps && error_ == cudaSuccess; ++i_) {
      for (k_ = 0; k_ < job_.d_steps; ++k_)
        for (const Phase& phase : job_.d_phases) carry_out(phase);
      k_ = job_.d_steps - 1;
      for (const Phase& phase : job_.g_phases) carry_out(phase);
    }
    return error_ == cudaSuccess ? advance(job_.clock, job_.steps, stream_) : error_;
  }
  // Kernels that some phases take.
  int64_t length(const std::vector<Phase>& phases) {
    length_ = 0;
    for (const Phase& phase : phases) carry_out(phase);
    return length_;
  }

 private:
  template <class... Parameters, class... Arguments>
  void emit(void (*kernel)(Parameters...), int64_t blocks, int bytes,
            const Arguments&... arguments) {
    ++length_;
    if (!launching_ || error_ != cudaSuccess) return;
    if (blocks > INT32_MAX) {
      error_ = cudaErrorInvalidConfiguration;
      return;
    }
    if (bytes > 48 * 1024) {
      error_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      if (error_ != cudaSuccess) return;
    }
    error_ = launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                    static_cast<size_t>(bytes), stream_, arguments...);
  }

  const Step& common() const { return job_; }

  // The kind of tile that is done first, among those that the device has the shared memory for. The
  // large one, with its short pieces, always fits: smaller GPUs of an architecture have 99 KiB.
  template <bool AAlong, bool BAlong, class Use>
  void with_tile(int64_t rows, int64_t columns, int64_t depth, const Use& use) const {
    static_assert(LargeTile::Bytes<AAlong, BAlong> <= 64 * 1024);
    const auto cycles = [&](auto tile) {
      using T = decltype(tile);
      return T::template Bytes<AAlong, BAlong> <= static_cast<int64_t>(device_.shared_bytes)
                 ? tile_cycles<T>(rows, columns, depth, device_.multiprocessors, precision)
                 : static_cast<double>(INFINITY);
    };
    const double small = cycles(SmallTile{}), middle = cycles(MiddleTile{}),
                 large = cycles(LargeTile{});
    if (large < small && large < middle) {
      use(LargeTile{});
    } else if (middle < small) {
      use(MiddleTile{});
    } else {
      use(SmallTile{});
    }
  }

  const Layer& layer(int n) const { return job_.layer(n); }

  Count take_count() { return std::exchange(count_, Count{nullptr, 0}); }

  void carry_out(const Phase& p) {
    const Layer& l = layer(p.layer);
    const bool for_g_too = p.shared && k_ + 1 == job_.d_steps;
    const int segments = p.segments + (for_g_too ? 1 : 0);
    const int64_t rows = segments * job_.batch;
    switch (p.work) {
      case Phase::inputs: {
        const int64_t items = job_.batch * (tiles_along(job_.image, 4) + job_.latent);
        emit(inputs_kernel, min_blocks(tiles_along(items, kThreads)), 0, common(), i_, k_);
        break;
      }
      case Phase::forward:
        with_tile<true, true>(rows, l.out, l.in, [&](auto tile) {
          using T = decltype(tile);
          emit(forward_kernel<T, precision>, forward_tiles<T>(l, rows), kForwardBytes<T>, common(),
               l, i_, k_, p.from, segments, take_count());
        });
        break;
      case Phase::norm:
        emit(norm_kernel, tiles_along(l.out, kFeatures), 0, common(), l, i_, k_, p.from, segments);
        count_ = {l.batches, segments};
        break;
      case Phase::head:
        emit(head_kernel, tiles_along(rows, kWarps), 0, common(), l,
             p.other < 0 ? l : layer(p.other), p.other >= 0, i_, k_, p.from, segments,
             take_count());
        break;
      case Phase::backward:
        with_tile<true, false>(rows, l.in, l.out, [&](auto tile) {
          using T = decltype(tile);
          emit(backward_kernel<T, precision>, backward_tiles<T>(l, rows), kBackwardBytes<T>,
               common(), l, layer(p.other), i_, k_, p.from, segments);
        });
        break;
      case Phase::norm_backward:
        emit(norm_backward_kernel, tiles_along(l.out, kFeatures), 0, common(), l, i_, k_, p.from,
             segments, p.trained);
        break;
      case Phase::update:
        update(p, rows);
        break;
      default:  // no sum is cut, and no plan has penalties
        break;
    }
  }

  void update(const Phase& p, int64_t rows) {
    // One kind of tile for all, by the largest layer.
    const Layer* largest = &layer(p.layer);
    for (int n = p.layer; n < p.other; ++n)
      if (layer(n).in * layer(n).out > largest->in * largest->out) largest = &layer(n);
    with_tile<false, false>(largest->out, largest->in, rows, [&](auto tile) {
      using T = decltype(tile);
      for (int first = p.layer; first < p.other; first += kUpdated) {
        Updated u{};
        for (int n = first; n < p.other && u.count < kUpdated; ++n) {
          u.layers[u.count] = layer(n);
          u.first[u.count + 1] = u.first[u.count] + update_tiles<T>(layer(n));
          ++u.count;
        }
        u.statistics = first == p.layer;
        emit(update_kernel<T, precision>, u.first[u.count] + 1, kUpdateBytes<T>, common(), u, i_,
             k_, p.from, p.segments);
      }
    });
  }

  // Threads stride where there is more to do than this.
  int64_t min_blocks(int64_t blocks) const {
    const int64_t most = 8 * static_cast<int64_t>(device_.multiprocessors);
    return blocks < most ? blocks : most;
  }

  const Job& job_;
  const Device& device_;
  const cudaStream_t stream_;
  const bool launching_;
  int64_t i_ = 0, k_ = 0, length_ = 0;
  Count count_{nullptr, 0};
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

cudaError_t advance(Clock* clock, int64_t steps, cudaStream_t stream) {
  return launch(advance_kernel, dim3(1), dim3(1), 0, stream, clock, steps);
}

cudaError_t device_properties(Device& device) {
  int number = 0, shared = 0;
  cudaError_t error = cudaGetDevice(&number);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, number);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number);
  }
  device.shared_bytes = static_cast<size_t>(shared);
  return error;
}

cudaError_t run_chain(const Job& job, const Device& device, cudaStream_t stream) {
  switch (job.precision) {
    case Precision::tf32:
      return Chain<Precision::tf32>(job, device, stream, true).run();
    case Precision::bf16:
      return Chain<Precision::bf16>(job, device, stream, true).run();
    default:
      return Chain<Precision::fp32>(job, device, stream, true).run();
  }
}

int64_t chain_length(const Job& job) {
  Device device;
  device.multiprocessors = 1;
  Chain<Precision::fp32> chain(job, device, nullptr, false);
  return job.d_steps * chain.length(job.d_phases) + chain.length(job.g_phases);
}

}  // namespace fastgan::cuda::step
