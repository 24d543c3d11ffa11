// A whole alternating training step of two multilayer perceptrons on a GPU. No torch here.
// step/plan.h says what a network is, step/passes.h what the segments of its fields are, and
// step/phases.h what a step is made of.
//
// A field's rows are those of its segments one after another. A batch that is smaller than the
// others leaves no gap, so segments that go through a layer together are one matrix of consecutive
// rows. A phase is a set of tiles, or of rows. Masks and latents are drawn where they are needed,
// from the number of the step, so a phase takes nothing from the host but its place in the step. No
// sum is split between blocks.
//
// Two programs run the phases: the chain (a kernel a phase, any plan) and the persistent kernel
// (one kernel for many steps, and for several jobs).
//
// With penalties (cpu/step/penalty.h has the mathematics), a penalty that is due at some updates
// has its kernels launched at all of them: whether it is due is a number in memory, like the step.
// The gradient of a weight is grads^T rows + deltas^T tangents. Of rows that are penalised, `grads`
// are first those of the scores themselves, as the backward phases leave them; the phase that ends
// with what penalties add moves these to `deltas` and puts there what the whole loss has.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "common/adam.h"
#include "step/passes.h"
#include "step/penalty.h"
#include "step/phases.h"
#include "step/plan.h"

namespace fastgan::cuda::step {

// Where a run stands; in device memory, because a captured graph reads it anew at each replay.
struct Clock {
  int64_t step;       // the engine's, at the start of the next launch
  int64_t first;      // the step that row 0 of the statistics and of the rates belongs to
  int64_t epoch;      // the epoch of the first permutation in `order`
  int64_t d_updates;  // done by each optimiser before step `first`
  int64_t g_updates;
};

// Numbers of a gradient whose squares are summed in one piece.
constexpr int64_t kGradChunk = 1024;
FASTGAN_HD int64_t chunks_of(int64_t numbers) { return (numbers + kGradChunk - 1) / kGradChunk; }

struct alignas(16) Layer : PlannedLayer {
  // Set by plan_memory. A row of a field is its width rounded up to 4 long.
  float *x = nullptr, *y = nullptr;            // the fields below and above
  float *grad_x = nullptr, *grad_y = nullptr;  // null where nothing below is trained
  int64_t x_stride = 0, y_stride = 0;
  int64_t x_copy = 0, y_copy = 0;  // distance of the field's second copy; see Step::copies
  int lift = 0;                    // segment s below becomes segment s + lift above
  bool in_g = false;
  float* normed = nullptr;   // [rows][y_stride]: normalised values
  float* slopes = nullptr;   // derivatives of activations that keep them, as rows of y
  float* inv_std = nullptr;  // [segment][out]
  // With penalties, rows as those of x or y: derivatives in a penalty's direction, and gradients of
  // scores alone; see above.
  float *x_tangents = nullptr, *tangents = nullptr, *deltas = nullptr;
  // Of a curved activation: gradients before its derivative, then what its second one makes of
  // them.
  float* curves = nullptr;
  // Whether no activation from here up is curved, and whether this is the last that is.
  bool straight = false, topmost = false;
};

// What every phase knows. Images fed without an order: the batches of one step, each of them
// `batch` rows after the one before.
struct Step : PlannedStep, ImageSource {
  Optimizer d_optimizer, g_optimizer;
  int64_t per_epoch = 0;

  Clock* clock = nullptr;
  int64_t rows = 0, last_step = 0;  // of the tables; what the clock may say
  uint64_t permutations = 0;        // whole ones, of `ordered` entries
  int64_t ordered = 0;
  const double* rates = nullptr;  // learning rates of D and G, [rows][2]
  float* statistics = nullptr;    // [rows][kStatistics]

  // Set by plan_memory. With two copies of the inputs and of Adam's constants, those of the next
  // update can be made while one is under way.
  int copies = 1;
  int64_t latent = 0, latent_stride = 0, image = 0, image_stride = 0;
  float *latents = nullptr, *images = nullptr;
  int64_t latent_copy = 0, image_copy = 0;
  Adam<float>* adam = nullptr;                        // [copy][2]: D, G
  float *loss_rows = nullptr, *score_rows = nullptr;  // [segment][batch]
  // With penalties; null without.
  SlopeWeights* slopes = nullptr;  // of the update at hand, by segments from kBetween on
  float* coefficients = nullptr;  // [segments from kBetween on][batch]: the loss's slope by a score
  float* mixes = nullptr;         // [batch]: of points between, the share of the real sample
  double* squares = nullptr;      // where a norm is bounded: sums of chunks of a gradient's
};

// What one call does. Pointers are the caller's.
struct Job : Step {
  PlannedNetwork<Layer> g, d;
  std::vector<PlannedPenalty> penalties;
  Precision precision = Precision::fp32;
  int64_t steps = 0;
  std::vector<Phase> d_phases, g_phases;  // of an update of D, and of G; set by plan_memory
  std::vector<Phase> more_phases;         // of G's others in a step, if there are any
  // Of the persistent kernel. Where its description of the job stands in memory; where the job's
  // first block writes its clock, if anywhere: nanoseconds(), clock64() at the start and after
  // every phase, nanoseconds() again.
  void* program = nullptr;
  int64_t* stamps = nullptr;

  const Layer& layer(int n) const {
    const size_t at = static_cast<size_t>(n), count = g.layers.size();
    return at < count ? g.layers[at] : d.layers[at - count];
  }
};

struct Device {
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // that a block may have
};
cudaError_t device_properties(Device& device);

// What decides the job's phases.
Skeleton skeleton_of(const Job& job);

// Lays the fields and buffers out from `base`, 256-byte aligned, and returns the bytes they take.
// With base null only the size is computed.
size_t plan_memory(Job& job, int copies, void* base);

// Launches job.steps steps, one kernel a phase; plan_memory must have been called. Safe in stream
// capture: the steps follow job.clock, which a last kernel moves on.
cudaError_t run_chain(const Job& job, const Device& device, cudaStream_t stream);
// Kernels that one step takes; plan_memory must have been called.
int64_t chain_length(const Job& job);

// Why the persistent kernel cannot take the job, in a user's words; null if it can.
const char* why_not_persistent(const Job& job, const Device& device);
// Whether a phase is one of that kernel's, with a barrier after it.
bool in_persistent(const Phase& phase);
// How many jobs like this one launch of it takes; 0 where it takes none.
int most_at_once(const Job& job, const Device& device);
// Bytes of its description of a job.
size_t program_bytes();
// The same steps in one cooperative launch, of jobs that each take so many at once, are planned
// with two copies and have one precision.
cudaError_t run_persistent(const std::vector<Job>& jobs, const Device& device, cudaStream_t stream);

// Moves the clock on by `steps`.
cudaError_t advance(Clock* clock, int64_t steps, cudaStream_t stream);

}  // namespace fastgan::cuda::step
