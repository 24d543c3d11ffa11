// What is done with gradients that have waited: clipped by the norm of all of a network's, and
// used.
#pragma once

#include "cuda/step/update.cuh"

namespace fastgan::cuda::step {

__host__ __device__ __forceinline__ int64_t chunks_in(const Layer& l) {
  return chunks_of(l.in * l.out) + (l.bias.value ? chunks_of(l.out) : 0) +
         (l.gamma.value ? 2 * chunks_of(l.out) : 0);
}

// Calls use(parameter, first element, past the last) for one chunk of a layer.
template <class Use>
__device__ void with_chunk(const Layer& l, int64_t chunk, const Use& use) {
  const auto here = [&](const Parameter& p, int64_t numbers) {
    const int64_t chunks = p.value ? chunks_of(numbers) : 0;
    if (chunk >= 0 && chunk < chunks) {
      const int64_t from = chunk * kGradChunk, left = numbers - from;
      use(p, from, from + (left < kGradChunk ? left : kGradChunk));
    }
    chunk -= chunks;
  };
  here(l.weight, l.in * l.out);
  here(l.bias, l.out);
  here(l.gamma, l.out);
  here(l.beta, l.out);
}

// The sum of the squares of one chunk, by one block.
__device__ inline void squares_of(const Layer& l, int64_t chunk, double* to,
                                  unsigned char* shared) {
  double sum = 0;
  with_chunk(l, chunk, [&](const Parameter& p, int64_t from, int64_t end) {
    for (int64_t at = from + threadIdx.x; at < end; at += kThreads)
      sum += static_cast<double>(p.grad[at]) * static_cast<double>(p.grad[at]);
  });
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) *to = sum;
}

// What gradients are multiplied with, in all threads of a block. As
// torch.nn.utils.clip_grad_norm_: a norm that is no number leaves none.
__device__ inline float clip_factor(const double* squares, int64_t chunks, double longest,
                                    unsigned char* shared) {
  double sum = 0;
  for (int64_t n = threadIdx.x; n < chunks; n += kThreads) sum += squares[n];
  const double share = longest / (math::sqrt(sum_of_block(sum, shared)) + 1e-6);
  return static_cast<float>(share > 1 ? 1 : share);
}

__device__ inline void clipped_update(const Move& move, const Layer& l, int64_t chunk,
                                      float factor) {
  with_chunk(l, chunk, [&](const Parameter& p, int64_t from, int64_t end) {
    for (int64_t at = from + threadIdx.x; at < end; at += kThreads)
      apply(move, p, at, factor * p.grad[at]);
  });
}

// Calls use(layer, chunk of it, number of the chunk) for the chunks of this block.
template <class Use>
__device__ void each_own_chunk(const Updated& u, const Use& use) {
  int n = 0;
  for (int64_t chunk = blockIdx.x; chunk < u.first[u.count]; chunk += gridDim.x) {
    while (chunk >= u.first[n + 1]) ++n;
    use(u.layers[n], chunk - u.first[n], chunk);
  }
}

// `first`: the number of the first layer's first chunk among all of the network.
__global__ void __launch_bounds__(kThreads)
    squares_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Updated, u), int64_t first) {
  FASTGAN_SHARED(double, parts, [kThreads]);
  each_own_chunk(u, [&](const Layer& l, int64_t chunk, int64_t number) {
    squares_of(l, chunk, s.squares + first + number, reinterpret_cast<unsigned char*>(parts));
  });
}

__global__ void __launch_bounds__(kThreads)
    clip_kernel(FASTGAN_PARAMETER(Step, s), FASTGAN_PARAMETER(Updated, u), int64_t i, int64_t k,
                bool of_g, int64_t chunks) {
  FASTGAN_SHARED(double, parts, [kThreads]);
  const Moment now = moment(s, *s.clock, i, k);
  const Move move = move_of(s, now, of_g);
  const float factor =
      clip_factor(s.squares, chunks, (of_g ? s.g_optimizer : s.d_optimizer).longest_grad,
                  reinterpret_cast<unsigned char*>(parts));
  each_own_chunk(
      u, [&](const Layer& l, int64_t chunk, int64_t) { clipped_update(move, l, chunk, factor); });
}

}  // namespace fastgan::cuda::step
