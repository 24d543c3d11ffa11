// The persistent kernel: one cooperative launch carries out many steps, of one job or of several.
// A job has a gang of blocks. Every block stays on its multiprocessor and goes through all phases;
// between two phases all blocks of a gang wait for each other, and for none of another. The
// weights' tiles are dealt out to the blocks once, and each block keeps its tiles' values and
// moments in shared memory until the launch ends. The values are also written to memory at every
// update, because products of all blocks read them there, through the L2 cache.
//
// How many blocks there are decides who does what and in tiles of which size, but no order of a
// sum: both kinds of tile cut sums alike. So a job has the same bits in every company.
#include "cuda/step/backward.cuh"
#include "cuda/step/forward.cuh"
#include "cuda/step/head.cuh"
#include "cuda/step/inputs.cuh"
#include "cuda/step/program.cuh"
#include "cuda/step/tiles.cuh"
#include "cuda/step/update.cuh"

namespace fastgan::cuda::step {

namespace {

// Larger batches keep the chip busy between launches, and the chain has larger tiles.
constexpr int64_t kMostBatch = 512;

// So tall that the larger weight of the reference pair is one round of an H100's multiprocessors.
using ResidentTile = Tile<64, 32, 32, 32, 64, 3>;
static_assert(SmallTile::Depth == MiddleTile::Depth && SmallTile::Groups == MiddleTile::Groups);
constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int kStaging =
    larger(kUpdateBytes<ResidentTile>,
           larger(larger(kForwardBytes<SmallTile>, kBackwardBytes<SmallTile>),
                  larger(kForwardBytes<MiddleTile>, kBackwardBytes<MiddleTile>)));

// Shared memory has the tile at work, the block, its copy of the program, its tiles of weights.
constexpr int kBlockBytes = 128, kFixedBytes = kStaging + kBlockBytes;
static_assert(kStaging % 16 == 0 && sizeof(Layer) % 16 == 0 && sizeof(Block) <= kBlockBytes);

// Where a block keeps the n-th tile of a network's weights, D's tiles first.
__device__ __forceinline__ float* resident_tile(const Program& p, bool of_g, unsigned n,
                                                const Block& block, unsigned char* shared) {
  const unsigned d_tiles = p.first[p.layers_count] - p.first[p.g_layers];
  const unsigned before = of_g ? (d_tiles + block.count - 1) / block.count : 0;
  return reinterpret_cast<float*>(shared + block.resident) +
         (before + n / block.count) * kResidentFloats<ResidentTile>;
}

// Calls use(layer, tile of it, place on chip) for this block's tiles of layers [from, to).
template <class Use>
__device__ void each_own_tile(const Program& p, int from, int to, const Block& block,
                              unsigned char* shared, const Use& use) {
  const bool of_g = from < p.g_layers;
  const unsigned start = p.first[from];
  int layer = from;
  for (unsigned n = block.index;; n += block.count) {
    while (layer < to && n + start >= p.first[layer + 1]) ++layer;
    if (layer == to) return;
    use(p.layers[layer], n + start - p.first[layer], resident_tile(p, of_g, n, block, shared));
  }
}

// The inputs of the update after (i, k), if this launch has one, by blocks `first` and following. A
// step has two heads, which leave most blocks without a row: where a step ends, D's makes what
// needs no memory and asks for the images, which G's then finds near by.
__device__ void next_inputs(const Step& s, int64_t steps, const Block& block, bool of_g, int64_t i,
                            int64_t k, unsigned first) {
  if (block.index < first) return;
  const bool ends = k + 1 == s.d_steps;
  if (ends && i + 1 == steps) return;
  const int64_t next_k = ends ? 0 : k + 1;
  const Clock& clock = block.clock;
  const Moment next = moment(s, clock, ends ? i + 1 : i, next_k);
  const int64_t item = static_cast<int64_t>(block.index - first) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(block.count - first) * kThreads;
  if (of_g) {
    images(s, clock, next, next_k, item, stride);
    return;
  }
  const bool last = next_k + 1 == s.d_steps;
  if (ends) fetch_images(s, clock, next, next_k, item, stride);
  constants(s, clock, next, next_k, last, item, stride);
  latents(s, next, 0, item, stride);
  if (last) latents(s, next, 1, item, stride);
  if (!ends) images(s, clock, next, next_k, item, stride);
}

__device__ __forceinline__ int segments_of(const Program& p, const Phase& phase, int64_t k) {
  return phase.segments + (phase.shared && k + 1 == p.s.d_steps ? 1 : 0);
}

// Begins to load the weights of this block's first tile of the next phase, before the barrier that
// its other operand waits for. Whether there was something to load.
__device__ bool load_next(const Program& p, const Entry& entry, int64_t k, const Block& block,
                          unsigned char* shared) {
  const Phase phase = phase_of(entry);
  const bool small = entry.small;
  const Layer& l = p.layers[phase.layer];
  const int64_t rows = segments_of(p, phase, k) * block.now.batch;
  const auto own = [&](int64_t tiles) { return block.index < static_cast<unsigned>(tiles); };
  if (phase.work == Phase::forward) {
    if (!own(small ? forward_tiles<SmallTile>(l, rows) : forward_tiles<MiddleTile>(l, rows)))
      return false;
    if (small) {
      forward_ahead<SmallTile>(l, rows, block.index, shared);
    } else {
      forward_ahead<MiddleTile>(l, rows, block.index, shared);
    }
    return true;
  }
  if (phase.work != Phase::backward ||
      !own(small ? backward_tiles<SmallTile>(l, rows) : backward_tiles<MiddleTile>(l, rows)))
    return false;
  if (small) {
    backward_ahead<SmallTile>(l, rows, block.index, shared);
  } else {
    backward_ahead<MiddleTile>(l, rows, block.index, shared);
  }
  return true;
}

template <Precision precision>
__device__ void carry_out(const Program& p, const Entry& entry, int64_t i, int64_t k,
                          const Block& block, unsigned char* shared, bool loaded) {
  const Moment& now = block.now;
  const Phase phase = phase_of(entry);
  const bool small = entry.small;
  const Step s = told(p.s);
  const Layer l = told(p.layers[phase.layer]);
  const int segments = segments_of(p, phase, k);
  const int64_t rows = segments * now.batch;
  const auto each_tile = [&](int64_t tiles, const auto& use) {
    for (unsigned tile = block.index; tile < static_cast<unsigned>(tiles); tile += block.count)
      use(tile, loaded && tile == block.index);
  };
  switch (phase.work) {
    case Phase::forward:
      if (small) {
        each_tile(forward_tiles<SmallTile>(l, rows), [&](unsigned tile, bool ready) {
          forward_tile<SmallTile, precision>(s, l, now, phase.from, segments, tile, shared, ready);
        });
      } else {
        each_tile(forward_tiles<MiddleTile>(l, rows), [&](unsigned tile, bool ready) {
          forward_tile<MiddleTile, precision>(s, l, now, phase.from, segments, tile, shared, ready);
        });
      }
      break;
    case Phase::head: {
      // The blocks that have no rows make the inputs of the next update.
      const unsigned blocks = min(static_cast<unsigned>(tiles_along(rows, kWarps)), block.count);
      if (block.index < blocks) {
        const Layer lower = told(p.layers[phase.other < 0 ? phase.layer : phase.other]);
        head_rows(s, l, lower, phase.other >= 0, now, phase.from, segments,
                  static_cast<int>(block.index * kWarps + threadIdx.x / 32),
                  static_cast<int>(blocks) * kWarps);
      }
      next_inputs(s, p.steps, block, phase.from == kFakeForG, i, k,
                  blocks < block.count ? blocks : 0);
      break;
    }
    case Phase::backward: {
      const Layer lower = told(p.layers[phase.other]);
      if (small) {
        each_tile(backward_tiles<SmallTile>(l, rows), [&](unsigned tile, bool ready) {
          backward_tile<SmallTile, precision>(s, l, lower, now, phase.from, segments, tile, shared,
                                              ready);
        });
      } else {
        each_tile(backward_tiles<MiddleTile>(l, rows), [&](unsigned tile, bool ready) {
          backward_tile<MiddleTile, precision>(s, l, lower, now, phase.from, segments, tile, shared,
                                               ready);
        });
      }
      break;
    }
    case Phase::update:
      each_own_tile(p, phase.layer, phase.other, block, shared,
                    [&](const Layer& of, unsigned tile, float* kept) {
                      update_tile<ResidentTile, precision, true>(s, told(of), now, phase.from,
                                                                 segments, tile, shared, kept);
                    });
      if (block.index == block.count - 1) write_statistics(s, now, l.in_g, shared);
      break;
    default:  // the program has no others
      break;
  }
}

template <Precision precision>
__global__ void __launch_bounds__(kThreads, 1) persistent_kernel(FASTGAN_PARAMETER(Gangs, gangs)) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const unsigned blocks = gridDim.x / gangs.count, gang = blockIdx.x / blocks;
  Posted& posted = *gangs.of[gang];
  const unsigned bytes = posted.program.bytes;
  for (unsigned n = threadIdx.x; n < bytes / sizeof(uint4); n += kThreads)
    reinterpret_cast<uint4*>(shared + kFixedBytes)[n] =
        reinterpret_cast<const uint4*>(&posted.program)[n];
  const Program& p = *reinterpret_cast<const Program*>(shared + kFixedBytes);
  Block& block = *reinterpret_cast<Block*>(shared + kStaging);
  __syncthreads();
  if (threadIdx.x == 0) {
    block.clock = *p.s.clock;
    block.stamp = nullptr;
    block.arrivals = &posted.arrivals;
    block.expected = 0;
    block.index = blockIdx.x - gang * blocks;
    block.count = blocks;
    block.resident = kFixedBytes + bytes;
  }
  __syncthreads();
  constexpr int kEach = kResidentEach<ResidentTile>;
  const int ends[3] = {0, p.g_layers, p.layers_count};
  for (int network = 0; network < 2; ++network) {
    each_own_tile(p, ends[network], ends[network + 1], block, shared,
                  [&](const Layer& l, unsigned tile, float* kept) {
                    each_resident<ResidentTile>(told(l), tile,
                                                [&](int n, float* value, float* m, float* v) {
                                                  kept[n] = *value;
                                                  kept[n + kEach] = *m;
                                                  kept[n + 2 * kEach] = *v;
                                                });
                  });
  }
  // The first update's; all others are made one update ahead.
  const Step s = told(p.s);
  inputs(s, block.clock, moment(s, block.clock, 0, 0), 0, s.d_steps == 1,
         static_cast<int64_t>(block.index) * kThreads + threadIdx.x,
         static_cast<int64_t>(block.count) * kThreads);
  wait_for_all(block);
  if (p.stamps && block.index == 0 && threadIdx.x == 0) {
    p.stamps[0] = nanoseconds();
    p.stamps[1] = clock64();
    block.stamp = p.stamps + 2;
  }
  for (int64_t i = 0; i < p.steps; ++i) {
    for (int64_t k = 0; k < p.s.d_steps; ++k) {
      if (threadIdx.x == 0) block.now = moment(p.s, block.clock, i, k);
      __syncthreads();
      const int networks = k + 1 == p.s.d_steps ? 2 : 1;
      for (int network = 0; network < networks; ++network) {
        bool loaded = false;
        for (int n = 0; n < p.counts[network]; ++n) {
          carry_out<precision>(p, p.phases[network][n], i, k, block, shared, loaded);
          // An update, which writes weights, is a network's last phase.
          loaded =
              n + 1 < p.counts[network] && load_next(p, p.phases[network][n + 1], k, block, shared);
          wait_for_all(block);
        }
      }
    }
  }
  if (threadIdx.x == 0 && block.stamp) *block.stamp = nanoseconds();
  // All blocks have read it, before the first barrier.
  if (block.index == 0 && threadIdx.x == 0)
    p.s.clock->step = wrapped_sum(block.clock.step, p.steps);
  for (int network = 0; network < 2; ++network) {
    each_own_tile(p, ends[network], ends[network + 1], block, shared,
                  [&](const Layer& l, unsigned tile, float* kept) {
                    each_resident<ResidentTile>(told(l), tile,
                                                [&](int n, float*, float* m, float* v) {
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

unsigned bytes_of(const Job& job) {
  const size_t layers = job.g.layers.size() + job.d.layers.size();
  return static_cast<unsigned>(sizeof(Program) - (kMostLayers - layers) * sizeof(Layer));
}

// Of each block, where the job has so many.
int64_t shared_bytes(const Job& job, int blocks) {
  const int64_t held =
      tiles_along(own_tiles(job.d.layers), blocks) + tiles_along(own_tiles(job.g.layers), blocks);
  return kFixedBytes + bytes_of(job) +
         held * kResidentFloats<ResidentTile> * static_cast<int64_t>(sizeof(float));
}

Program program_of(const Job& job, int blocks) {
  Program program{};
  program.bytes = bytes_of(job);
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
      program.phases[network][n] = {
          static_cast<uint8_t>(phase.work),
          static_cast<uint8_t>(phase.layer),
          static_cast<uint8_t>(phase.segments),
          static_cast<int8_t>(phase.other),
          static_cast<int8_t>(phase.from),
          phase.shared,
          tile_cycles<SmallTile>(rows, columns, depth, blocks, job.precision) <=
              tile_cycles<MiddleTile>(rows, columns, depth, blocks, job.precision)};
    }
  }
  return program;
}

template <Precision precision>
cudaError_t launch_gangs(const Gangs& gangs, unsigned blocks, const Device& device, int64_t bytes,
                         cudaStream_t stream) {
  // All that there is, not what these jobs need: another thread's may need more.
  cudaError_t error = cudaFuncSetAttribute(persistent_kernel<precision>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(device.shared_bytes));
  if (error != cudaSuccess) return error;
  int resident = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, persistent_kernel<precision>,
                                                        kThreads, static_cast<size_t>(bytes));
  if (error != cudaSuccess) return error;
  if (resident < 1) return cudaErrorCooperativeLaunchTooLarge;
  return launch_cooperative(persistent_kernel<precision>, dim3(gangs.count * blocks),
                            dim3(kThreads), static_cast<size_t>(bytes), stream, gangs);
}

}  // namespace

size_t program_bytes() { return sizeof(Posted); }

const char* why_not_persistent(const Job& job, const Device& device) {
  if (!job.penalties.empty()) return "it takes no penalties";
  if (job.g_steps > 1) return "it does one update of G in a step";
  for (const PlannedNetwork<Layer>* network : {&job.g, &job.d}) {
    if (network->optimizer.bounded()) return "it bounds no gradients or weights";
    for (const Layer& l : network->layers)
      if (l.norm) return "it has no BatchNorm1d";
  }
  if (job.g.layers.size() + job.d.layers.size() > kMostLayers) return "there are too many layers";
  if (job.batch > kMostBatch) return "a batch of more than 512 keeps the GPU busy without it";
  if (shared_bytes(job, device.multiprocessors) > static_cast<int64_t>(device.shared_bytes))
    return "the weights and their moments do not fit into the shared memory of all multiprocessors";
  return nullptr;
}

int most_at_once(const Job& job, const Device& device) {
  if (why_not_persistent(job, device)) return 0;
  int most = device.multiprocessors < kMostGangs ? device.multiprocessors : kMostGangs;
  while (shared_bytes(job, device.multiprocessors / most) >
         static_cast<int64_t>(device.shared_bytes))
    --most;
  return most;
}

// The inputs are made during the update before.
bool in_persistent(const Phase& phase) { return phase.work != Phase::inputs; }

cudaError_t run_persistent(const std::vector<Job>& jobs, const Device& device,
                           cudaStream_t stream) {
  const int blocks = device.multiprocessors / static_cast<int>(jobs.size());
  Gangs gangs{};
  int64_t bytes = 0;
  for (const Job& job : jobs) {
    const int64_t own = shared_bytes(job, blocks);
    if (own > bytes) bytes = own;
    // From pageable memory, which is read before the call returns.
    const Posted posted{program_of(job, blocks), 0};
    const cudaError_t error =
        cudaMemcpyAsync(job.program, &posted, sizeof posted, cudaMemcpyHostToDevice, stream);
    if (error != cudaSuccess) return error;
    gangs.of[gangs.count++] = static_cast<Posted*>(job.program);
  }
  const unsigned each = static_cast<unsigned>(blocks);
  switch (jobs.front().precision) {
    case Precision::tf32:
      return launch_gangs<Precision::tf32>(gangs, each, device, bytes, stream);
    case Precision::bf16:
      return launch_gangs<Precision::bf16>(gangs, each, device, bytes, stream);
    default:
      return launch_gangs<Precision::fp32>(gangs, each, device, bytes, stream);
  }
}

}  // namespace fastgan::cuda::step
