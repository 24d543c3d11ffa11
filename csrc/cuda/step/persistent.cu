// The persistent kernel: one cooperative launch carries out many steps. Every block stays on its
// multiprocessor and goes through all phases; between two phases all blocks wait for each other.
// The weights' tiles are dealt out to the blocks once, and each block keeps its tiles' values and
// moments in shared memory until the launch ends. The values are also written to memory at every
// update, because products of all blocks read them there, through the L2 cache.
#include "cuda/step/backward.cuh"
#include "cuda/step/forward.cuh"
#include "cuda/step/head.cuh"
#include "cuda/step/inputs.cuh"
#include "cuda/step/tiles.cuh"
#include "cuda/step/update.cuh"

namespace fastgan::cuda::step {

namespace {

// What the description of the program has room for in a kernel's parameters.
constexpr int kMostLayers = 16;
constexpr int kMostPhases = 3 * kMostLayers;

// Larger batches keep the chip busy between launches, and the chain has larger tiles.
constexpr int64_t kMostBatch = 512;

// So tall that the larger weight of the reference pair is one round of an H100's multiprocessors.
using ResidentTile = Tile<64, 32, 32, 32, 64, 3>;
constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int kStaging =
    larger(kUpdateBytes<ResidentTile>,
           larger(larger(kForwardBytes<SmallTile>, kBackwardBytes<SmallTile>),
                  larger(kForwardBytes<MiddleTile>, kBackwardBytes<MiddleTile>)));

// A block's copy of the clock, which reads from memory only once.
constexpr int kClockBytes = 64;
static_assert(kStaging % 16 == 0 && sizeof(Clock) <= kClockBytes);

struct Program {
  Step s;
  Layer layers[kMostLayers];
  Phase phases[2][kMostPhases];  // of D's update, of G's
  bool small[2][kMostPhases];    // tiles of a product
  int counts[2];
  unsigned first[kMostLayers + 1];  // tile of each layer's weight, counted through both networks
  int g_layers, layers_count;
  int64_t steps;
  int64_t* stamps;  // see Job
};

// What a block has at hand in every phase.
struct Block {
  const Clock& clock;
  unsigned char* shared;  // for the tile at work
  float* resident;        // its tiles of the weights
};

// All blocks of the launch; `target` counts the arrivals of all barriers so far.
__device__ void wait_for_all(uint32_t* arrivals, uint32_t& target) {
  target += gridDim.x;
  __syncthreads();
  // The release and the acquire speak for the whole block: its barriers before and after order its
  // other threads' accesses with this one's. Fences besides would only take their time twice.
  if (threadIdx.x == 0) {
    add_release(arrivals, 1);
    while (static_cast<int32_t>(load_acquire(arrivals) - target) < 0) spin_wait();
  }
  __syncthreads();
}

// Where a block keeps the n-th tile of a network's weights, D's tiles first.
__device__ __forceinline__ float* resident_tile(const Program& p, bool of_g, unsigned n,
                                                float* resident) {
  const unsigned d_tiles = p.first[p.layers_count] - p.first[p.g_layers];
  const unsigned before = of_g ? (d_tiles + gridDim.x - 1) / gridDim.x : 0;
  return resident + (before + n / gridDim.x) * kResidentFloats<ResidentTile>;
}

// Calls use(layer, tile of it, place on chip) for this block's tiles of layers [from, to).
template <class Use>
__device__ void each_own_tile(const Program& p, int from, int to, float* resident, const Use& use) {
  const bool of_g = from < p.g_layers;
  const unsigned start = p.first[from];
  int layer = from;
  for (unsigned n = blockIdx.x;; n += gridDim.x) {
    while (layer < to && n + start >= p.first[layer + 1]) ++layer;
    if (layer == to) return;
    use(p.layers[layer], n + start - p.first[layer], resident_tile(p, of_g, n, resident));
  }
}

// The inputs of the update after (i, k), if this launch has one, by blocks `first` and following. A
// step has two heads, which leave most blocks without a row: where a step ends, D's makes what
// needs no memory and asks for the images, which G's then finds near by.
__device__ void next_inputs(const Program& p, const Clock& clock, bool of_g, int64_t i, int64_t k,
                            unsigned first) {
  if (blockIdx.x < first) return;
  const bool ends = k + 1 == p.s.d_steps;
  if (ends && i + 1 == p.steps) return;
  const int64_t next_k = ends ? 0 : k + 1;
  const Moment next = moment(p.s, clock, ends ? i + 1 : i, next_k);
  const int64_t item = static_cast<int64_t>(blockIdx.x - first) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x - first) * kThreads;
  if (of_g) {
    images(p.s, clock, next, next_k, item, stride);
    return;
  }
  const bool last = next_k + 1 == p.s.d_steps;
  if (ends) fetch_images(p.s, clock, next, next_k, item, stride);
  constants(p.s, clock, next, next_k, last, item, stride);
  latents(p.s, next, 0, item, stride);
  if (last) latents(p.s, next, 1, item, stride);
  if (!ends) images(p.s, clock, next, next_k, item, stride);
}

__device__ __forceinline__ int segments_of(const Program& p, const Phase& phase, int64_t k) {
  return phase.segments + (phase.shared && k + 1 == p.s.d_steps ? 1 : 0);
}

// Begins to load the weights of this block's first tile of the next phase, before the barrier that
// its other operand waits for. Whether there was something to load.
__device__ bool load_next(const Program& p, const Phase& phase, bool small, const Moment& now,
                          int64_t k, unsigned char* shared) {
  const Layer& l = p.layers[phase.layer];
  const int64_t rows = segments_of(p, phase, k) * now.batch;
  const auto own = [&](int64_t tiles) { return blockIdx.x < static_cast<unsigned>(tiles); };
  if (phase.work == Phase::forward) {
    if (!own(small ? forward_tiles<SmallTile>(l, rows) : forward_tiles<MiddleTile>(l, rows)))
      return false;
    if (small) {
      forward_ahead<SmallTile>(l, rows, blockIdx.x, shared);
    } else {
      forward_ahead<MiddleTile>(l, rows, blockIdx.x, shared);
    }
    return true;
  }
  if (phase.work != Phase::backward ||
      !own(small ? backward_tiles<SmallTile>(l, rows) : backward_tiles<MiddleTile>(l, rows)))
    return false;
  if (small) {
    backward_ahead<SmallTile>(l, rows, blockIdx.x, shared);
  } else {
    backward_ahead<MiddleTile>(l, rows, blockIdx.x, shared);
  }
  return true;
}

template <Precision precision>
__device__ void carry_out(const Program& p, const Phase& phase, bool small, const Moment& now,
                          int64_t i, int64_t k, const Block& block, bool loaded) {
  const Step& s = p.s;
  const Layer& l = p.layers[phase.layer];
  const int segments = segments_of(p, phase, k);
  const int64_t rows = segments * now.batch;
  const auto each_tile = [&](int64_t tiles, const auto& use) {
    for (unsigned tile = blockIdx.x; tile < static_cast<unsigned>(tiles); tile += gridDim.x)
      use(tile, loaded && tile == blockIdx.x);
  };
  switch (phase.work) {
    case Phase::forward:
      if (small) {
        each_tile(forward_tiles<SmallTile>(l, rows), [&](unsigned tile, bool ready) {
          forward_tile<SmallTile, precision>(s, l, now, phase.from, segments, tile, block.shared,
                                             ready);
        });
      } else {
        each_tile(forward_tiles<MiddleTile>(l, rows), [&](unsigned tile, bool ready) {
          forward_tile<MiddleTile, precision>(s, l, now, phase.from, segments, tile, block.shared,
                                              ready);
        });
      }
      break;
    case Phase::head: {
      // The blocks that have no rows make the inputs of the next update.
      const unsigned blocks = min(static_cast<unsigned>(tiles_along(rows, kWarps)), gridDim.x);
      if (blockIdx.x < blocks) {
        head_rows(s, l, p.layers[phase.other < 0 ? phase.layer : phase.other], phase.other >= 0,
                  now, phase.from, segments,
                  static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32),
                  static_cast<int>(blocks) * kWarps);
      }
      next_inputs(p, block.clock, phase.from == kFakeForG, i, k, blocks < gridDim.x ? blocks : 0);
      break;
    }
    case Phase::backward: {
      const Layer& lower = p.layers[phase.other];
      if (small) {
        each_tile(backward_tiles<SmallTile>(l, rows), [&](unsigned tile, bool ready) {
          backward_tile<SmallTile, precision>(s, l, lower, now, phase.from, segments, tile,
                                              block.shared, ready);
        });
      } else {
        each_tile(backward_tiles<MiddleTile>(l, rows), [&](unsigned tile, bool ready) {
          backward_tile<MiddleTile, precision>(s, l, lower, now, phase.from, segments, tile,
                                               block.shared, ready);
        });
      }
      break;
    }
    case Phase::update:
      each_own_tile(p, phase.layer, phase.other, block.resident,
                    [&](const Layer& of, unsigned tile, float* kept) {
                      update_tile<ResidentTile, precision, true>(s, of, now, phase.from, segments,
                                                                 tile, block.shared, kept);
                    });
      if (blockIdx.x == gridDim.x - 1) write_statistics(s, now, l.in_g, block.shared);
      break;
    default:  // the program has no others
      break;
  }
}

template <Precision precision>
__global__ void __launch_bounds__(kThreads, 1) persistent_kernel(FASTGAN_PARAMETER(Program, p)) {
  FASTGAN_DYNAMIC_SHARED(shared);
  Clock& clock = *reinterpret_cast<Clock*>(shared + kStaging);
  float* const resident = reinterpret_cast<float*>(shared + kStaging + kClockBytes);
  const Block block{clock, shared, resident};
  if (threadIdx.x == 0) clock = *p.s.clock;
  __syncthreads();
  constexpr int kEach = kResidentEach<ResidentTile>;
  const int ends[3] = {0, p.g_layers, p.layers_count};
  for (int network = 0; network < 2; ++network) {
    each_own_tile(p, ends[network], ends[network + 1], resident,
                  [&](const Layer& l, unsigned tile, float* kept) {
                    each_resident<ResidentTile>(l, tile,
                                                [&](int n, float* value, float* m, float* v) {
                                                  kept[n] = *value;
                                                  kept[n + kEach] = *m;
                                                  kept[n + 2 * kEach] = *v;
                                                });
                  });
  }
  // The first update's; all others are made one update ahead.
  inputs(p.s, clock, moment(p.s, clock, 0, 0), 0, p.s.d_steps == 1,
         static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
         static_cast<int64_t>(gridDim.x) * kThreads);
  uint32_t target = 0;
  wait_for_all(p.s.barrier, target);
  int64_t* stamp = blockIdx.x == 0 && threadIdx.x == 0 ? p.stamps : nullptr;
  if (stamp) {
    *stamp++ = nanoseconds();
    *stamp++ = clock64();
  }
  for (int64_t i = 0; i < p.steps; ++i) {
    for (int64_t k = 0; k < p.s.d_steps; ++k) {
      const Moment now = moment(p.s, clock, i, k);
      const int networks = k + 1 == p.s.d_steps ? 2 : 1;
      for (int network = 0; network < networks; ++network) {
        bool loaded = false;
        for (int n = 0; n < p.counts[network]; ++n) {
          carry_out<precision>(p, p.phases[network][n], p.small[network][n], now, i, k, block,
                               loaded);
          // An update, which writes weights, is a network's last phase.
          loaded = n + 1 < p.counts[network] &&
                   load_next(p, p.phases[network][n + 1], p.small[network][n + 1], now, k, shared);
          wait_for_all(p.s.barrier, target);
          if (stamp) *stamp++ = clock64();
        }
      }
    }
  }
  if (stamp) *stamp = nanoseconds();
  for (int network = 0; network < 2; ++network) {
    each_own_tile(p, ends[network], ends[network + 1], resident,
                  [&](const Layer& l, unsigned tile, float* kept) {
                    each_resident<ResidentTile>(l, tile, [&](int n, float*, float* m, float* v) {
                      *m = kept[n + kEach];
                      *v = kept[n + 2 * kEach];
                    });
                  });
  }
}

int64_t own_tiles(const std::vector<Layer>& layers) {
  int64_t tiles = 0;
  for (const Layer& l : layers) tiles += update_tiles<ResidentTile>(l);
  return tiles;
}

int64_t shared_bytes(const Job& job, const Device& device) {
  const int64_t held = tiles_along(own_tiles(job.d.layers), device.multiprocessors) +
                       tiles_along(own_tiles(job.g.layers), device.multiprocessors);
  return kStaging + kClockBytes +
         held * kResidentFloats<ResidentTile> * static_cast<int64_t>(sizeof(float));
}

template <Precision precision>
cudaError_t launch_program(const Program& program, const Device& device, int64_t bytes,
                           cudaStream_t stream) {
  // All that there is, not what this job needs: another thread's job may need more.
  cudaError_t error = cudaFuncSetAttribute(persistent_kernel<precision>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(device.shared_bytes));
  if (error != cudaSuccess) return error;
  int resident = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, persistent_kernel<precision>,
                                                        kThreads, static_cast<size_t>(bytes));
  if (error != cudaSuccess) return error;
  if (resident < 1) return cudaErrorCooperativeLaunchTooLarge;
  return launch_cooperative(persistent_kernel<precision>,
                            dim3(static_cast<unsigned>(device.multiprocessors)), dim3(kThreads),
                            static_cast<size_t>(bytes), stream, program);
}

}  // namespace

const char* why_not_persistent(const Job& job, const Device& device) {
  if (!job.penalties.empty()) return "it takes no penalties";
  for (const PlannedNetwork<Layer>* network : {&job.g, &job.d}) {
    if (network->optimizer.bounded()) return "it bounds no gradients or weights";
    for (const Layer& l : network->layers)
      if (l.norm) return "it has no BatchNorm1d";
  }
  if (job.g.layers.size() + job.d.layers.size() > kMostLayers) return "there are too many layers";
  if (job.batch > kMostBatch) return "a batch of more than 512 keeps the GPU busy without it";
  if (shared_bytes(job, device) > static_cast<int64_t>(device.shared_bytes))
    return "the weights and their moments do not fit into the shared memory of all multiprocessors";
  return nullptr;
}

// The inputs are made during the update before.
bool in_persistent(const Phase& phase) { return phase.work != Phase::inputs; }

cudaError_t run_persistent(const Job& job, const Device& device, cudaStream_t stream) {
  Program program{};
  program.s = job;
  program.steps = job.steps;
  program.stamps = job.stamps;
  program.g_layers = static_cast<int>(job.g.layers.size());
  for (const PlannedNetwork<Layer>* network : {&job.g, &job.d}) {
    for (const Layer& l : network->layers) {
      const int n = program.layers_count++;
      program.layers[n] = l;
      program.first[n + 1] =
          program.first[n] + static_cast<unsigned>(update_tiles<ResidentTile>(l));
    }
  }
  for (int network = 0; network < 2; ++network) {
    for (const Phase& phase : network ? job.g_phases : job.d_phases) {
      if (!in_persistent(phase)) continue;
      const int n = program.counts[network]++;
      const Layer& l = program.layers[phase.layer];
      const int64_t rows = (phase.segments + (phase.shared ? 1 : 0)) * job.batch;
      const bool forward = phase.work == Phase::forward;
      const int64_t columns = forward ? l.out : l.in, depth = forward ? l.in : l.out;
      const int blocks = device.multiprocessors;
      program.phases[network][n] = phase;
      program.small[network][n] =
          tile_cycles<SmallTile>(rows, columns, depth, blocks, job.precision) <=
          tile_cycles<MiddleTile>(rows, columns, depth, blocks, job.precision);
    }
  }
  cudaError_t error = cudaMemsetAsync(job.barrier, 0, sizeof(uint32_t), stream);
  if (error != cudaSuccess) return error;
  const int64_t bytes = shared_bytes(job, device);
  switch (job.precision) {
    case Precision::tf32:
      error = launch_program<Precision::tf32>(program, device, bytes, stream);
      break;
    case Precision::bf16:
      error = launch_program<Precision::bf16>(program, device, bytes, stream);
      break;
    default:
      error = launch_program<Precision::fp32>(program, device, bytes, stream);
  }
  return error == cudaSuccess ? advance(job.clock, job.steps, stream) : error;
}

}  // namespace fastgan::cuda::step
