// The chain: a step as a sequence of kernels, one a phase, for any plan. A captured graph of it
// serves every step, because the kernels read the clock.
#include "cuda/step_phases.cuh"

namespace fastgan::cuda::step {

namespace {

// --- Kernels

__global__ void __launch_bounds__(kThreads)
    inputs_kernel(FASTGAN_PARAMETER(Step, s), int64_t i, int64_t k) {
  const Moment now = moment(s, i, k);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  inputs(s, now, k, k + 1 == s.d_steps, first, static_cast<int64_t>(gridDim.x) * kThreads);
}

// A BatchNorm's count of batches is moved on by the kernel after it, when nothing reads it.
struct Count {
  int64_t* batches;
  int by;
};
__device__ __forceinline__ void add(const Count& count) {
  if (count.batches && blockIdx.x == 0 && threadIdx.x == 0) *count.batches += count.by;
}

template <class T, Math math>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i, int64_t k,
                   int from, int segments, Count count) {
  FASTGAN_DYNAMIC_SHARED(shared);
  add(count);
  const Moment now = moment(s, i, k);
  if (blockIdx.x >= forward_tiles<T>(l, segments * now.batch)) return;
  forward_tile<T, math>(s, l, now, from, segments, blockIdx.x, shared);
}

__global__ void __launch_bounds__(kThreads)
    head_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                FASTGAN_PARAMETER(Layer, lower), bool differentiated, int64_t i, int64_t k,
                int from, int segments, Count count) {
  add(count);
  const Moment now = moment(s, i, k);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  head_rows(s, l, differentiated ? &lower : nullptr, now, from, segments, warp,
            static_cast<int64_t>(gridDim.x) * kWarps);
}

template <class T, Math math>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l),
                    FASTGAN_PARAMETER(Layer, lower), int64_t i, int64_t k, int from, int segments) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const Moment now = moment(s, i, k);
  if (blockIdx.x >= backward_tiles<T>(l, segments * now.batch)) return;
  backward_tile<T, math>(s, l, lower, now, from, segments, blockIdx.x, shared);
}

// As many layers as their descriptions fit into 4 KiB of parameters.
constexpr int kUpdated = 8;
struct Updated {
  Layer layers[kUpdated];
  int64_t first[kUpdated + 1];  // tile of each layer
  int count;
  bool losses;  // whether the last block has the losses' means to take
};
static_assert(sizeof(Updated) + sizeof(Step) <= 4000);

// Left to itself, ptxas spills the small tile's registers for blocks that shared memory rules out.
template <class T, Math math>
__global__ void __launch_bounds__(kThreads, 2)
    update_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Updated, u), int64_t i, int64_t k,
                  int from, int segments) {
  FASTGAN_DYNAMIC_SHARED(shared);
  const Moment now = moment(s, i, k);
  if (blockIdx.x == u.first[u.count]) {
    if (u.losses) mean_losses(s, now, u.layers[0].in_g, shared);
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
  update_tile<T, math>(s, u.layers[n], now, from, segments, blockIdx.x - u.first[n], shared,
                       nullptr);
}

__global__ void advance_kernel(Clock* clock, int64_t steps) { clock->step += steps; }

// --- BatchNorm: a block has a few features over all rows

constexpr int kFeatures = 8, kLines = kThreads / kFeatures;

// The sums over the block's lines, each feature's in all of its threads.
__device__ double sum_lines(double mine, double (*parts)[kFeatures], int line, int feature) {
  __syncthreads();
  parts[line][feature] = mine;
  __syncthreads();
  for (int half = kLines / 2; half > 0; half /= 2) {
    if (line < half) parts[line][feature] += parts[line + half][feature];
    __syncthreads();
  }
  return parts[0][feature];
}

// Statistics of each segment of the field above, normalised values, and what forward_tile leaves
// undone.
__global__ void __launch_bounds__(kThreads)
    norm_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i, int64_t k,
                int from, int segments) {
  FASTGAN_SHARED(double, parts, [kLines][kFeatures]);
  const Moment now = moment(s, i, k);
  const int feature = static_cast<int>(threadIdx.x) % kFeatures;
  const int line = static_cast<int>(threadIdx.x) / kFeatures;
  const int64_t f = static_cast<int64_t>(blockIdx.x) * kFeatures + feature;
  const bool real = f < l.out;
  const double n = static_cast<double>(now.batch);
  for (int part = 0; part < segments; ++part) {
    const int segment = from + part;
    float* const y = field_y(l, now) + (segment + l.lift) * now.batch * l.y_stride + f;
    float* const normed = l.normed + segment * now.batch * l.y_stride + f;
    double sum = 0;
    for (int64_t r = line; real && r < now.batch; r += kLines) sum += y[r * l.y_stride];
    const double mean = sum_lines(sum, parts, line, feature) / n;
    const float centre = static_cast<float>(mean);
    double squares = 0;
    for (int64_t r = line; real && r < now.batch; r += kLines) {
      const float d = y[r * l.y_stride] - centre;
      squares += d * d;
    }
    const double variance = sum_lines(squares, parts, line, feature) / n;
    const float inv_std = static_cast<float>(1.0 / ::sqrt(variance + l.norm_eps));
    if (!real) continue;
    const float scale = l.gamma.value ? l.gamma.value[f] : 1.f;
    const float shift = l.beta.value ? l.beta.value[f] : 0.f;
    const Philox mask = mask_of(s, l, segment, now);
    const float kept_scale = keep_scale(l.drop_threshold);
    for (int64_t r = line; r < now.batch; r += kLines) {
      const float x = (y[r * l.y_stride] - centre) * inv_std;
      normed[r * l.y_stride] = x;
      float out = activate(l.activation, x * scale + shift, l.slope);
      if (l.drop)
        out = kept_bits<1>(mask, r * l.out + f, l.drop_threshold) ? out * kept_scale : 0.f;
      y[r * l.y_stride] = out;
    }
    if (line > 0) continue;
    l.inv_std[segment * l.out + f] = inv_std;
    if (l.running_mean) {
      const double share =
          l.norm_momentum < 0 ? 1.0 / static_cast<double>(*l.batches + part + 1) : l.norm_momentum;
      l.running_mean[f] = static_cast<float>((1 - share) * l.running_mean[f] + share * mean);
      l.running_var[f] =
          static_cast<float>((1 - share) * l.running_var[f] + share * (variance * n / (n - 1)));
    }
  }
}

__device__ void update_one(const Adam<float>& adam, const Parameter& p, int64_t at, float grad,
                           float average_share) {
  float value = p.value[at];
  adam_update(adam, grad, value, p.exp_avg[at], p.exp_avg_sq[at]);
  p.value[at] = value;
  if (p.average) p.average[at] += average_share * (value - p.average[at]);
}

// From the gradient of the normalised, scaled values to that of the products; with `trained`
// BatchNorm's own weight and bias are updated.
__global__ void __launch_bounds__(kThreads)
    norm_backward_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Layer, l), int64_t i,
                         int64_t k, int from, int segments, bool trained) {
  FASTGAN_SHARED(double, parts, [kLines][kFeatures]);
  const Moment now = moment(s, i, k);
  const int feature = static_cast<int>(threadIdx.x) % kFeatures;
  const int line = static_cast<int>(threadIdx.x) / kFeatures;
  const int64_t f = static_cast<int64_t>(blockIdx.x) * kFeatures + feature;
  const bool real = f < l.out;
  const float scale = real && l.gamma.value ? l.gamma.value[f] : 1.f;
  float grad_beta = 0, grad_gamma = 0;
  for (int segment = from; segment < from + segments; ++segment) {
    float* const grads = l.grad_y + (segment + l.lift) * now.batch * l.y_stride + f;
    const float* const normed = l.normed + segment * now.batch * l.y_stride + f;
    double sum = 0, product = 0;
    for (int64_t r = line; real && r < now.batch; r += kLines) {
      const double g = grads[r * l.y_stride];
      sum += g;
      product += g * normed[r * l.y_stride];
    }
    sum = sum_lines(sum, parts, line, feature);
    product = sum_lines(product, parts, line, feature);
    if (!real) continue;
    grad_beta += static_cast<float>(sum);
    grad_gamma += static_cast<float>(product);
    const float mean = static_cast<float>(sum / static_cast<double>(now.batch));
    const float slant = static_cast<float>(product / static_cast<double>(now.batch));
    const float by = l.inv_std[segment * l.out + f] * scale;
    for (int64_t r = line; r < now.batch; r += kLines) {
      float& g = grads[r * l.y_stride];
      g = by * (g - mean - normed[r * l.y_stride] * slant);
    }
  }
  // Every thread of the feature has read `scale` before the first of the barriers above.
  if (!trained || !real || line > 0 || l.gamma.value == nullptr) return;
  const Adam<float> adam = s.adam[2 * now.copy + (l.in_g ? 1 : 0)];
  const float average_share = static_cast<float>(1.0 - s.average_decay);
  update_one(adam, l.gamma, f, grad_gamma, average_share);
  update_one(adam, l.beta, f, grad_beta, average_share);
}

// --- Launches

// Goes through the phases of a step in order; launches them, or only counts.
template <Math math>
class Chain {
 public:
  Chain(const Job& job, const Device& device, cudaStream_t stream, bool launching)
      : job_(job), device_(device), stream_(stream), launching_(launching) {}

  cudaError_t run() {
    const std::vector<Phase> d = phases_of(job_, false), g = phases_of(job_, true);
    for (i_ = 0; i_ < job_.steps && error_ == cudaSuccess; ++i_) {
      for (k_ = 0; k_ < job_.d_steps; ++k_)
        for (const Phase& phase : d) carry_out(phase);
      k_ = job_.d_steps - 1;
      for (const Phase& phase : g) carry_out(phase);
    }
    return error_ == cudaSuccess && launching_ ? advance(job_.clock, job_.steps, stream_) : error_;
  }
  int64_t length() const { return length_; }

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
                 ? tile_cycles<T>(rows, columns, depth, device_.multiprocessors, math)
                 : INT64_MAX;
    };
    const int64_t small = cycles(SmallTile{}), middle = cycles(MiddleTile{}),
                  large = cycles(LargeTile{});
    if (large < small && large < middle) {
      use(LargeTile{});
    } else if (middle < small) {
      use(MiddleTile{});
    } else {
      use(SmallTile{});
    }
  }

  const Layer& layer(int n) const {
    const size_t at = static_cast<size_t>(n), g = job_.g.layers.size();
    return at < g ? job_.g.layers[at] : job_.d.layers[at - g];
  }

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
          emit(forward_kernel<T, math>, forward_tiles<T>(l, rows), kForwardBytes<T>, common(), l,
               i_, k_, p.from, segments, take_count());
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
          emit(backward_kernel<T, math>, backward_tiles<T>(l, rows), kBackwardBytes<T>, common(), l,
               layer(p.other), i_, k_, p.from, segments);
        });
        break;
      case Phase::norm_backward:
        emit(norm_backward_kernel, tiles_along(l.out, kFeatures), 0, common(), l, i_, k_, p.from,
             segments, p.trained);
        break;
      case Phase::update:
        update(p, rows);
        break;
    }
  }

  void update(const Phase& p, int64_t rows) {
    // One kind of tile for all, by the largest layer.
    const Layer* largest = &layer(p.layer);
    for (int n = p.layer; n < p.other; ++n)
      if (layer(n).in * layer(n).out > largest->in * largest->out) largest = &layer(n);
    with_tile<false, false>(largest->out, update_columns(*largest), rows, [&](auto tile) {
      using T = decltype(tile);
      for (int first = p.layer; first < p.other; first += kUpdated) {
        Updated u{};
        for (int n = first; n < p.other && u.count < kUpdated; ++n) {
          u.layers[u.count] = layer(n);
          u.first[u.count + 1] = u.first[u.count] + update_tiles<T>(layer(n));
          ++u.count;
        }
        u.losses = first == p.layer;
        emit(update_kernel<T, math>, u.first[u.count] + 1, kUpdateBytes<T>, common(), u, i_, k_,
             p.from, p.segments);
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
  switch (job.math) {
    case Math::tf32:
      return Chain<Math::tf32>(job, device, stream, true).run();
    case Math::bf16:
      return Chain<Math::bf16>(job, device, stream, true).run();
    default:
      return Chain<Math::fp32>(job, device, stream, true).run();
  }
}

int64_t chain_length(const Job& job) {
  Job one = job;
  one.steps = 1;
  Device device;
  device.multiprocessors = 1;
  Chain<Math::fp32> chain(one, device, nullptr, false);
  chain.run();
  return chain.length();
}

}  // namespace fastgan::cuda::step
