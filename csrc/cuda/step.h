// A whole alternating training step of two multilayer perceptrons on a GPU. No torch here.
//
// A network is a chain of layers as in cpu/step.h. What lies between two layers is a field: rows
// of up to three batches one after another, its segments: for D's fields and the images 0 real, 1
// fake for D's update, 2 fake for G's update; for G's fields and the latents 0 for D's update and
// 1 for G's. A batch that is smaller than the others leaves no gap, so segments that go through a
// layer together are one matrix of consecutive rows.
//
// A step is a sequence of phases. Each phase is a set of tiles that need nothing of each other:
//     inputs    the latents and the images of an update, and Adam's constants
//     forward   y = dropout(activation(x weight^T + bias)), for all segments that may share it
//     head      D's last layer, of width 1: logits, losses, their gradients, and the gradient of
//               the field below
//     backward  gradient of the field below through the activation and dropout that made it
//     update    gradients of the weights, consumed by Adam where they stand
// Masks and latents are drawn where they are needed, from the number of the step, so a phase takes
// nothing from the host but its place in the step. No sum is split between blocks.
//
// Two programs run the phases: the chain (a kernel a phase, any plan) and the persistent kernel
// (one kernel for many steps).
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "common/adam.h"
#include "common/plan.h"

namespace fastgan::cuda::step {

constexpr int kSegments = 3;

// How products are taken; sums and everything else are in float32.
enum class Math { fp32, tf32, bf16 };

// Where a run stands; in device memory, because a captured graph reads it anew at each replay.
struct Clock {
  int64_t step;       // the engine's, at the start of the next launch
  int64_t first;      // the step that row 0 of the losses and of the rates belongs to
  int64_t epoch;      // the epoch of the first permutation in `order`
  int64_t d_updates;  // done by each optimiser before step `first`
  int64_t g_updates;
};

struct Layer : PlannedLayer {
  // Set by plan_memory. A row of a field is its width rounded up to 4 long.
  float *x = nullptr, *y = nullptr;            // the fields below and above
  float *grad_x = nullptr, *grad_y = nullptr;  // null where nothing below is trained
  int64_t x_stride = 0, y_stride = 0;
  int64_t x_copy = 0, y_copy = 0;  // distance of the field's second copy; see Step::copies
  int lift = 0;                    // segment s below becomes segment s + lift above
  bool in_g = false;
  float* normed = nullptr;   // [rows][y_stride]: normalised values
  float* inv_std = nullptr;  // [segment][out]
};

struct Optimizer {
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
};

// What every phase knows.
struct Step {
  int64_t batch = 0;  // the largest
  int64_t d_steps = 1;
  Game game = Game::non_saturating;
  double real_label = 1;
  uint64_t seed = 0;
  double average_decay = 0;
  Optimizer d_optimizer{}, g_optimizer{};

  // Images [count][width], bytes (mapped to [-1, 1]) or floats. With `order`, the permutations of
  // the epochs from clock->epoch on; without, `floats` has the batches of one step, each of them
  // `batch` rows after the one before.
  int64_t count = 0, per_epoch = 0;
  const uint8_t* bytes = nullptr;
  const float* floats = nullptr;
  const int64_t* order = nullptr;

  Clock* clock = nullptr;
  const double* rates = nullptr;  // learning rates of D and G, [steps][2]
  float* losses = nullptr;        // [steps][2]: D, G

  // Set by plan_memory. With two copies of the inputs and of Adam's constants, those of the next
  // update can be made while one is under way.
  int copies = 1;
  int64_t latent = 0, latent_stride = 0, image = 0, image_stride = 0;
  float *latents = nullptr, *images = nullptr;
  int64_t latent_copy = 0, image_copy = 0;
  Adam<float>* adam = nullptr;  // [copy][2]: D, G
  float* loss_rows = nullptr;   // [segment][batch]
  uint32_t* barrier = nullptr;  // of the persistent kernel
};

// What one call does. Pointers are the caller's.
struct Job : Step {
  PlannedNetwork<Layer> g, d;
  Math math = Math::fp32;
  int64_t steps = 0;
};

// One phase of an update. Layers are counted through both networks, G's first.
struct Phase {
  enum Work { inputs, forward, norm, head, backward, norm_backward, update } work;
  int layer;  // of an update: the first
  int other;  // head, backward: the layer that made the field below, or -1; update: past the last
  int from, segments;    // as the layer counts those of the field below it
  bool shared = false;   // G's update, if this D's update is followed by it, has one segment more
  bool trained = false;  // norm_backward: whether BatchNorm's own weights are updated
};
// The phases of an update of D, or of G, in order.
std::vector<Phase> phases_of(const Job& job, bool of_g);

struct Device {
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // that a block may have
};
cudaError_t device_properties(Device& device);

// Lays the fields and buffers out from `base`, 256-byte aligned, and returns the bytes they take.
// With base null only the size is computed.
size_t plan_memory(Job& job, int copies, void* base);

// Launches job.steps steps, one kernel a phase; plan_memory must have been called. Safe in stream
// capture: the steps follow job.clock, which a last kernel moves on.
cudaError_t run_chain(const Job& job, const Device& device, cudaStream_t stream);
// Kernels that one step takes.
int64_t chain_length(const Job& job);

// Why the persistent kernel cannot take the job, in a user's words; null if it can.
const char* why_not_persistent(const Job& job, const Device& device);
// The same steps in one cooperative launch; needs a job planned with two copies.
cudaError_t run_persistent(const Job& job, const Device& device, cudaStream_t stream);

// Moves the clock on by `steps`.
cudaError_t advance(Clock* clock, int64_t steps, cudaStream_t stream);

}  // namespace fastgan::cuda::step
