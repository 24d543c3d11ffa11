// The chain: a step as a sequence of kernels, one a phase, for any plan. A captured graph of it
// serves every step, because the kernels read the clock.
#include <utility>

#include "cuda/step/backward.cuh"
#include "cuda/step/clip.cuh"
#include "cuda/step/forward.cuh"
#include "cuda/step/head.cuh"
#include "cuda/step/inputs.cuh"
#include "cuda/step/norm.cuh"
#include "cuda/step/penalty.cuh"
#include "cuda/step/tiles.cuh"
#include "cuda/step/update.cuh"

namespace fastgan::cuda::step {

namespace {

// --- Kernels

__global__ void __launch_bounds__(kThreads)
    inputs_kernel(FASTGAN_PARAMETER(Step, s), int64_t i, int64_t k) {
  const Moment now = moment(s, *s.clock, i, k);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  if (now.more > 0) {
    more_inputs(s, *s.clock, now, k, first, stride);
  } else {
    inputs(s, *s.clock, now, k, k + 1 == s.d_steps, first, stride);
  }
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

template <class T, Precision precision, bool kFront = false>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i, int64_t k,
                   Span planned, Count count) {
  FASTGAN_DYNAMIC_SHARED(shared);
  add(count);
  const Moment now = moment(s, *s.clock, i, k);
  const Span span = kFront ? at_hand(s, planned) : planned;
  if (blockIdx.x >= forward_tiles<T>(l, span.segments * now.batch)) return;
  forward_tile<T, precision>(s, l, now, span.from, span.segments, blockIdx.x, shared);
}

template <bool kPenalised>
__global__ void __launch_bounds__(kThreads)
    head_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                FASTGAN_PARAMETER(Layer, lower), bool differentiated, int64_t i, int64_t k,
                Span planned, Count count) {
  add(count);
  const Moment now = moment(s, *s.clock, i, k);
  const Span span = kPenalised ? at_hand(s, planned) : planned;
  head_rows<kPenalised>(s, l, lower, differentiated, now, span.from, span.segments, own_warp(),
                        all_warps());
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

// Left to itself, ptxas spills the small tile's registers for blocks that shared memory rules out.
template <class T>
constexpr int kUpdateBlocks = blocks_that_fit(kUpdateBytes<T>) < 2 ? 1 : 2;
template <class T, Precision precision, bool kGeneral>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<T>)
    update_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Updated, u), int64_t i, int64_t k,
                  Span planned) {
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
  update_tile<T, precision, false, kGeneral>(s, u.layers[n], now, planned.from, planned.segments,
                                             blockIdx.x - static_cast<unsigned>(u.first[n]), shared,
                                             nullptr, planned.front);
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
      : job_(job), device_(device), stream_(stream), launching_(launching) {
    bool places[kPlaces] = {};
    for (const PlannedPenalty& p : job.penalties) {
      penalties_.of[penalties_.count++] = p;
      places[static_cast<int64_t>(p.at)] = true;
    }
    for (const bool place : places) penalised_ += place;
  }

  cudaError_t run() {
    for (i_ = 0; i_ < job_.steps && error_ == cudaSuccess; ++i_) {
      for (k_ = 0; k_ < job_.d_steps; ++k_)
        for (const Phase& phase : job_.d_phases) carry_out(phase, false);
      k_ = job_.d_steps - 1;
      for (const Phase& phase : job_.g_phases) carry_out(phase, true);
      for (int64_t more = 1; more < job_.g_steps; ++more) {
        ++k_;
        for (const Phase& phase : job_.more_phases) carry_out(phase, true);
      }
    }
    return error_ == cudaSuccess ? advance(job_.clock, job_.steps, stream_) : error_;
  }
  // Kernels that some phases take.
  int64_t length(const std::vector<Phase>& phases, bool of_g) {
    length_ = 0;
    for (const Phase& phase : phases) carry_out(phase, of_g);
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

  void carry_out(const Phase& p, bool of_g) {
    const Layer& l = layer(p.layer);
    const Layer& lower = p.other < 0 || p.work == Phase::update ? l : layer(p.other);
    const bool for_g_too = p.shared && k_ + 1 == job_.d_steps;
    const int front = p.front ? 1 : 0;
    const Span span{p.from - front, p.segments + (for_g_too ? 1 : 0) + front, p.front};
    const int64_t rows = span.segments * job_.batch;
    const bool penalised = penalised_ > 0 && !of_g;
    switch (p.work) {
      case Phase::inputs: {
        const int64_t items = job_.batch * (tiles_along(job_.image, 4) + job_.latent);
        const int64_t blocks = min_blocks(tiles_along(items, kThreads));
        if (penalised) {
          emit(penalised_inputs_kernel, blocks, 0, common(), penalties_, i_, k_);
        } else {
          emit(inputs_kernel, blocks, 0, common(), i_, k_);
        }
        break;
      }
      case Phase::forward:
        with_tile<true, true>(rows, l.out, l.in, [&](auto tile) {
          using T = decltype(tile);
          const auto forward = [&](auto kernel) {
            emit(kernel, forward_tiles<T>(l, rows), kForwardBytes<T>, common(), l, i_, k_, span,
                 take_count());
          };
          if constexpr (precision != Precision::bf16)
            if (p.front) return forward(forward_kernel<T, precision, true>);
          forward(forward_kernel<T, precision>);
        });
        break;
      case Phase::norm:
        emit(norm_kernel, tiles_along(l.out, kFeatures), 0, common(), l, i_, k_, p.from,
             span.segments);
        count_ = {l.batches, span.segments};
        break;
      case Phase::head:
        emit(penalised ? head_kernel<true> : head_kernel<false>, tiles_along(rows, kWarps), 0,
             common(), l, lower, p.other >= 0, i_, k_, span, take_count());
        break;
      case Phase::backward:
        if (penalised) {
          penalised_backward(p.work, l, lower, span, rows);
          break;
        }
        with_tile<true, false>(rows, l.in, l.out, [&](auto tile) {
          using T = decltype(tile);
          emit(backward_kernel<T, precision>, backward_tiles<T>(l, rows), kBackwardBytes<T>,
               common(), l, lower, i_, k_, p.from, p.segments);
        });
        break;
      case Phase::norm_backward:
        emit(norm_backward_kernel, tiles_along(l.out, kFeatures), 0, common(), l, i_, k_, p.from,
             p.segments, p.trained);
        break;
      case Phase::update:
        if (penalised || (of_g ? job_.g_optimizer : job_.d_optimizer).bounded()) {
          update<true>(p, rows + (penalised ? penalised_ * job_.batch : 0));
        } else {
          update<false>(p, rows);
        }
        break;
      case Phase::squares:
      case Phase::clip:
        clip(p.work, of_g);
        break;
      case Phase::points: {
        const int64_t items = job_.batch * tiles_along(job_.image, 4);
        emit(points_kernel, min_blocks(tiles_along(items, kThreads)), 0, common(), i_, k_);
        break;
      }
      case Phase::slope:
      case Phase::bend:
        penalised_backward(p.work, l, lower, span, penalised_ * job_.batch);
        break;
      case Phase::direction:
        emit(direction_kernel, tiles_along(kPlaces * job_.batch, kWarps), 0, common(), l, i_, k_);
        break;
      case Phase::tangent:
        tangent(l, lower, p.other >= 0);
        break;
      case Phase::norm_sums:  // there is one rank
      case Phase::norm_backward_sums:
      case Phase::moments_sums:
      case Phase::sums:  // no sum is cut, no input has parts and no output heads
      case Phase::bend_sums:
      case Phase::join:
      case Phase::share:
      case Phase::split:
      case Phase::tables:
      case Phase::heads:
      case Phase::moments:
      case Phase::heads_backward:
      case Phase::norm_tangent:  // and no plan has a LayerNorm
      case Phase::norm_bend:
      case Phase::gather:  // or is more than a chain
      case Phase::collect:
      case Phase::slope_collect:
      case Phase::gather_tangent:
      case Phase::collect_bend:
        break;
    }
  }

  // A backward phase, slope or bend of D's update with penalties, which no plan in bf16 has.
  void penalised_backward(Phase::Work work, const Layer& l, const Layer& lower,
                          [[maybe_unused]] const Span& span, int64_t rows) {
    if constexpr (precision != Precision::bf16)
      with_tile<true, false>(rows, l.in, l.out, [&](auto tile) {
        using T = decltype(tile);
        const auto tiles = [&](int64_t of) { return backward_tiles<T>(l, of); };
        emit(penalised_backward_kernel<T, precision>,
             work == Phase::backward ? tiles(rows) : most_due_tiles(job_.batch, penalised_, tiles),
             kBackwardBytes<T>, common(), l, lower, work, i_, k_, span);
      });
  }

  void tangent(const Layer& l, const Layer& lower, bool differentiated) {
    if (&l == &job_.d.layers.back()) {
      emit(head_tangent_kernel, tiles_along(kPlaces * job_.batch, kWarps), 0, common(), l, lower,
           differentiated, i_, k_);
      return;
    }
    if constexpr (precision != Precision::bf16)
      with_tile<true, true>(penalised_ * job_.batch, l.out, l.in, [&](auto tile) {
        using T = decltype(tile);
        emit(tangent_kernel<T, precision>,
             most_due_tiles(job_.batch, penalised_,
                            [&](int64_t rows) { return forward_tiles<T>(l, rows); }),
             kForwardBytes<T>, common(), l, i_, k_);
      });
  }

  // Calls use(layers, whether they are the first) for as many of them at a time as a launch takes;
  // items(layer): the tiles or chunks that it has.
  template <class Items, class Use>
  void each_updated(int from, int to, const Items& items, const Use& use) {
    for (int first = from; first < to; first += kUpdated) {
      Updated u{};
      for (int n = first; n < to && u.count < kUpdated; ++n) {
        u.layers[u.count] = layer(n);
        u.first[u.count + 1] = u.first[u.count] + items(layer(n));
        ++u.count;
      }
      u.statistics = first == from;
      use(u);
    }
  }

  // kGeneral: with penalties or bounds.
  template <bool kGeneral>
  void update(const Phase& p, int64_t rows) {
    // One kind of tile for all, by the largest layer.
    const Layer* largest = &layer(p.layer);
    for (int n = p.layer; n < p.other; ++n)
      if (layer(n).in * layer(n).out > largest->in * largest->out) largest = &layer(n);
    with_tile<false, false>(largest->out, largest->in, rows, [&](auto tile) {
      using T = decltype(tile);
      each_updated(p.layer, p.other, update_tiles<T>, [&](const Updated& u) {
        emit(update_kernel<T, precision, kGeneral>, u.first[u.count] + 1, kUpdateBytes<T>, common(),
             u, i_, k_, Span{p.from, p.segments, p.front});
      });
    });
  }

  // Squares of gradients that wait, or what is then done with them.
  void clip(Phase::Work work, bool of_g) {
    const int g = static_cast<int>(job_.g.layers.size());
    const int from = of_g ? 0 : g, to = of_g ? g : g + static_cast<int>(job_.d.layers.size());
    int64_t chunks = 0;
    for (int n = from; n < to; ++n) chunks += chunks_in(layer(n));
    int64_t before = 0;
    each_updated(from, to, chunks_in, [&](const Updated& u) {
      const int64_t here = u.first[u.count];
      if (work == Phase::squares) {
        emit(squares_kernel, min_blocks(here), 0, common(), u, before);
      } else {
        emit(clip_kernel, min_blocks(here), 0, common(), u, i_, k_, of_g, chunks);
      }
      before += here;
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
  Penalties penalties_;
  int64_t penalised_ = 0;  // segments that may be
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
  return job.d_steps * chain.length(job.d_phases, false) + chain.length(job.g_phases, true) +
         (job.g_steps - 1) * chain.length(job.more_phases, true);
}

}  // namespace fastgan::cuda::step
