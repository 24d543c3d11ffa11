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

static_assert(kStaging % 16 == 0);

struct Program {
  Step s;
  Layer layers[kMostLayers];
  Phase phases[2][kMostPhases];  // of D's update, of G's
  bool small[2][kMostPhases];    // tiles of a product
  int counts[2];
  int64_t first[kMostLayers + 1];  // tile of each layer's weight, counted through both networks
  int g_layers, layers_count;
  int64_t steps;
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
__device__ __forceinline__ float* resident_tile(const Program& p, bool of_g, int64_t n,
                                                float* resident) {
  const int64_t d_tiles = p.first[p.layers_count] - p.first[p.g_layers];
  const int64_t before = of_g ? tiles_along(d_tiles, static_cast<int>(gridDim.x)) : 0;
  return resident + (before + n / gridDim.x) * kResidentFloats<ResidentTile>;
}

// Calls use(layer, tile of it, place on chip) for this block's tiles of layers [from, to).
template <class Use>
__device__ void each_own_tile(const Program& p, int from, int to, float* resident, const Use& use) {
  const bool of_g = from < p.g_layers;
  const int64_t start = p.first[from];
  int layer = from;
  for (int64_t n = blockIdx.x;; n += gridDim.x) {
    while (layer < to && n + start >= p.first[layer + 1]) ++layer;
    if (layer == to) return;
    use(p.layers[layer], n + start - p.first[layer], resident_tile(p, of_g, n, resident));
  }
}

// The inputs of the update after (i, k), if this launch has one, by blocks `first` and following.
__device__ void next_inputs(const Program& p, int64_t i, int64_t k, int64_t first) {
  const int64_t update = i * p.s.d_steps + k + 1;
  if (update >= p.steps * p.s.d_steps || blockIdx.x < first) return;
  const int64_t next_k = update % p.s.d_steps;
  inputs(p.s, moment(p.s, update / p.s.d_steps, next_k), next_k, next_k + 1 == p.s.d_steps,
         (blockIdx.x - first) * kThreads + threadIdx.x, (gridDim.x - first) * kThreads);
}

template <Precision precision>
__device__ void carry_out(const Program& p, const Phase& phase, bool small, const Moment& now,
                          int64_t i, int64_t k, unsigned char* shared, float* resident) {
  const Step& s = p.s;
  const Layer& l = p.layers[phase.layer];
  const int segments = phase.segments + (phase.shared && k + 1 == s.d_steps ? 1 : 0);
  const int64_t rows = segments * now.batch;
  switch (phase.work) {
    case Phase::forward:
      if (small) {
        const int64_t tiles = forward_tiles<SmallTile>(l, rows);
        for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x)
          forward_tile<SmallTile, precision>(s, l, now, phase.from, segments, tile, shared);
      } else {
        const int64_t tiles = forward_tiles<MiddleTile>(l, rows);
        for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x)
          forward_tile<MiddleTile, precision>(s, l, now, phase.from, segments, tile, shared);
      }
      break;
    case Phase::head: {
      // The blocks that have no rows make the inputs of the next update.
      const int64_t blocks = min(tiles_along(rows, kWarps), static_cast<int64_t>(gridDim.x));
      if (blockIdx.x < blocks) {
        head_rows(s, l, phase.other < 0 ? nullptr : &p.layers[phase.other], now, phase.from,
                  segments, blockIdx.x * kWarps + threadIdx.x / 32, blocks * kWarps);
      }
      if (phase.from == 0) next_inputs(p, i, k, blocks < gridDim.x ? blocks : 0);
      break;
    }
    case Phase::backward: {
      const Layer& lower = p.layers[phase.other];
      if (small) {
        const int64_t tiles = backward_tiles<SmallTile>(l, rows);
        for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x)
          backward_tile<SmallTile, precision>(s, l, lower, now, phase.from, segments, tile, shared);
      } else {
        const int64_t tiles = backward_tiles<MiddleTile>(l, rows);
        for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x)
          backward_tile<MiddleTile, precision>(s, l, lower, now, phase.from, segments, tile,
                                               shared);
      }
      break;
    }
    case Phase::update:
      each_own_tile(p, phase.layer, phase.other, resident,
                    [&](const Layer& of, int64_t tile, float* kept) {
                      update_tile<ResidentTile, precision>(s, of, now, phase.from, segments, tile,
                                                           shared, kept);
                    });
      if (blockIdx.x == gridDim.x - 1) write_statistics(s, now, l.in_g, shared);
      break;
    default:  // the program has no others
      break;
  }
}

template <Precision precision>
__global__ void __launch_bounds__(kThreads, 1) persistent_kernel(FASTGAN_PARAMETER(Program, p)) {
  FASTGAN_DYNAMIC_SHARED(shared);
  float* const resident = reinterpret_cast<float*>(shared + kStaging);
  constexpr int kEach = kResidentEach<ResidentTile>;
  const int ends[3] = {0, p.g_layers, p.layers_count};
  for (int network = 0; network < 2; ++network) {
    each_own_tile(p, ends[network], ends[network + 1], resident,
                  [&](const Layer& l, int64_t tile, float* kept) {
                    each_resident<ResidentTile>(l, tile,
                                                [&](int n, float* value, float* m, float* v) {
                                                  kept[n] = *value;
                                                  kept[n + kEach] = *m;
                                                  kept[n + 2 * kEach] = *v;
                                                });
                  });
  }
  // The first update's; all others are made one update ahead.
  inputs(p.s, moment(p.s, 0, 0), 0, p.s.d_steps == 1,
         static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
         static_cast<int64_t>(gridDim.x) * kThreads);
  uint32_t target = 0;
  wait_for_all(p.s.barrier, target);
  for (int64_t i = 0; i < p.steps; ++i) {
    for (int64_t k = 0; k < p.s.d_steps; ++k) {
      const Moment now = moment(p.s, i, k);
      const int networks = k + 1 == p.s.d_steps ? 2 : 1;
      for (int network = 0; network < networks; ++network) {
        for (int n = 0; n < p.counts[network]; ++n) {
          carry_out<precision>(p, p.phases[network][n], p.small[network][n], now, i, k, shared,
                               resident);
          wait_for_all(p.s.barrier, target);
        }
      }
    }
  }
  for (int network = 0; network < 2; ++network) {
    each_own_tile(p, ends[network], ends[network + 1], resident,
                  [&](const Layer& l, int64_t tile, float* kept) {
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
  return kStaging + held * kResidentFloats<ResidentTile> * static_cast<int64_t>(sizeof(float));
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
  for (const PlannedNetwork<Layer>* network : {&job.g, &job.d}) {
    for (const Layer& l : network->layers)
      if (l.norm) return "it has no BatchNorm1d";
  }
  if (job.g.layers.size() + job.d.layers.size() > kMostLayers) return "there are too many layers";
  if (job.batch > kMostBatch) return "a batch of more than 512 keeps the GPU busy without it";
  if (shared_bytes(job, device) > static_cast<int64_t>(device.shared_bytes))
    return "the weights and their moments do not fit into the shared memory of all multiprocessors";
  return nullptr;
}

cudaError_t run_persistent(const Job& job, const Device& device, cudaStream_t stream) {
  Program program{};
  program.s = job;
  program.steps = job.steps;
  program.g_layers = static_cast<int>(job.g.layers.size());
  for (const PlannedNetwork<Layer>* network : {&job.g, &job.d}) {
    for (const Layer& l : network->layers) {
      const int n = program.layers_count++;
      program.layers[n] = l;
      program.first[n + 1] = program.first[n] + update_tiles<ResidentTile>(l);
    }
  }
  for (int network = 0; network < 2; ++network) {
    for (const Phase& phase : network ? job.g_phases : job.d_phases) {
      if (phase.work == Phase::inputs) continue;  // made during the update before
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
