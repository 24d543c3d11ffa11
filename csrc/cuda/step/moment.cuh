// The update at hand, and what every phase asks of it.
#pragma once

#include "cuda/step/product.cuh"
#include "step/rows.h"

// A large parameter that a kernel reads where the launch has put it.
#if defined(__CUDACC__)
#  define FASTGAN_PARAMETER(type, name) const __grid_constant__ type name
#else
#  define FASTGAN_PARAMETER(type, name) const type name
#endif

namespace fastgan::cuda::step {

struct Moment {
  int64_t row;     // of the tables
  int64_t step;    // the engine's
  int64_t update;  // of D, over all steps, or the one that an update of G follows
  int64_t of_g;    // the update of G, over all steps, if it is one or one follows
  int64_t more;    // of G in this step before that
  int64_t batch;   // images in it
  int copy;        // of the inputs and of Adam's constants
  bool known;      // the tables have the row; else both are taken as 0
};

__device__ __forceinline__ int64_t wrapped_sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// D's update number k of the i-th step from the clock on; from d_steps on, G's updates but for the
// first, which goes by D's last. Of the clock nothing is known but that it holds five numbers.
__device__ __forceinline__ Moment moment(const Step& s, const Clock& clock, int64_t i, int64_t k) {
  Moment now;
  now.step = wrapped_sum(clock.step, i);
  now.row =
      static_cast<int64_t>(static_cast<uint64_t>(now.step) - static_cast<uint64_t>(clock.first));
  now.known = static_cast<uint64_t>(now.step) <= static_cast<uint64_t>(s.last_step) &&
              static_cast<uint64_t>(now.row) < static_cast<uint64_t>(s.rows);
  if (!now.known) now.step = now.row = 0;
  now.more = k < s.d_steps ? 0 : k - s.d_steps + 1;
  now.update = now.step * s.d_steps + k - now.more;
  now.of_g = now.step * s.g_steps + now.more;
  now.batch = rows_in_update(now.update, s.count, s.batch, s.per_epoch);
  now.copy = s.copies > 1 ? static_cast<int>(now.update & 1) : 0;
  return now;
}

__host__ __device__ __forceinline__ int64_t tiles_along(int64_t n, int tile) {
  return (n + tile - 1) / tile;
}

__device__ __forceinline__ float* field_x(const Layer& l, const Moment& now) {
  return l.x + now.copy * l.x_copy;
}
__device__ __forceinline__ float* field_y(const Layer& l, const Moment& now) {
  return l.y + now.copy * l.y_copy;
}

// Whether a segment's slopes are penalised in D's update at hand; of a plan with penalties.
__device__ __forceinline__ bool due(const Step& s, int segment) {
  return segment <= kFake && s.slopes[segment - kBetween].due;
}

// Some neighbouring segments of a phase. With `front` the first is of points between real and fake
// samples, if there are any in this update.
struct Span {
  int from, segments;
  bool front = false;
};
__device__ __forceinline__ Span at_hand(const Step& s, const Span& planned) {
  const int without = planned.front && !due(s, kBetween) ? 1 : 0;
  return {planned.from + without, planned.segments - without};
}
// The neighbouring ones that are penalised from `from` on; none if there are no more.
__device__ __forceinline__ Span due_from(const Step& s, int from) {
  while (from <= kFake && !due(s, from)) ++from;
  int end = from;
  while (due(s, end)) ++end;
  return {from, end - from};
}

// Segment and row in it of a row counted from the first of `from`'s segments.
__device__ __forceinline__ void locate(int64_t row, int64_t batch, int& segment, int64_t& within) {
  segment = static_cast<int>(row >= batch) + static_cast<int>(row >= 2 * batch);
  within = row - segment * batch;
}

// A warp of the launch, and how many there are.
__device__ __forceinline__ int own_warp() {
  return static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
}
__device__ __forceinline__ int all_warps() { return static_cast<int>(gridDim.x) * kWarps; }

}  // namespace fastgan::cuda::step
