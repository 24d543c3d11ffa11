// A whole alternating training step of two multilayer perceptrons. No torch here.
//
// Shape of the computation. A network is a chain of layers
//     Linear -> [BatchNorm] -> activation -> [dropout]
// between fields: the latents, what lies between two layers, the images, the logits. A field holds
// up to three batches, its segments: for D's fields and the images 0 real, 1 fake for D's update, 2
// fake for G's update; for G's fields 0 for D's update and 1 for G's. Segments that need nothing of
// each other go through a layer together.
//
// Values and gradients of a field lie in rows, [segment][batch, padded to 32][stride]; weights,
// moments and averages keep torch's own layout [out, in] and are used where they are. Each product
// packs its operands for the processor's kernel (step_products.h) piece by piece in the thread's
// own scratch:
//     forward    rows above           = rows below          * weight, transposed
//     backward   gradient rows below  = gradient rows above * weight
//     update     weight's gradient    = gradient rows above, transposed * rows below
// The gradient of a weight lives in one piece at a time: Adam consumes it there.
//
// Division among threads. What one core has written costs another one a trip between the cores, so
// a thread owns some outputs of each layer: those rows of the weight and of its moments, which lie
// together in memory. Forward and update are divided by outputs; backward, where the outputs are
// what is summed over, by two halves of the sum and by inputs within a half, and a phase of its own
// adds the two partial sums. The halves are those of the layer and not of the threads, so the
// number of threads does not change a bit. A barrier ends each phase.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <optional>
#include <string>
#include <vector>

#include "common/plan.h"
#include "cpu/isa.h"
#include "cpu/team.h"

namespace fastgan::cpu::step {

using fastgan::Activation;
using fastgan::Game;
using fastgan::Parameter;

constexpr int64_t kBlock = 32;
constexpr int kSegments = 3;
constexpr int64_t kRowUnit = 8;  // rows of the batch are shared out in eights

// How products are taken: in float32 on vectors; in bfloat16 on AVX-512's dot products or on AMX
// tiles; in float32 on AMX tiles, as products of bfloat16 parts. Sums and everything else are in
// float32.
enum class Products { fp32, bf16_avx512, bf16_amx, fp32_amx };

// What is packed at a time, and the floats it takes in a thread's scratch.
struct Sizes {
  int64_t batch;  // rows of the batch whose piece of A fits the second-level cache
  int64_t depth;  // terms of the sum. A panel of B may outgrow the first-level cache: the products
                  // leave it time to come, and fewer pieces mean fewer trips of C to memory
  int64_t held_rows, held_columns;  // of a weight's gradient
  int64_t left, right, held;
};
constexpr int64_t kHeldTiles = 8;
constexpr Sizes sizes_of(Products products) {
  // Between the rows of a held gradient, against conflicts in the cache.
  constexpr int64_t gap = 16;
  if (products == Products::fp32) {
    constexpr int64_t depth = 400;
    return {512, depth, 112, 256, kHeldTiles * depth * 16, depth * kBlock, 112 * (256 + gap)};
  }
  // Packed operands, of two bytes, have two places each: one in use, one being filled.
  const bool tiles = products != Products::bf16_avx512;
  const int64_t parts = products == Products::fp32_amx ? 3 : 1;
  const int64_t batch = tiles ? 256 : 512, depth = !tiles ? 512 : parts == 3 ? 128 : 256;
  return {batch, depth, 128, 512, batch * depth * parts, kBlock * depth * parts, 128 * (512 + gap)};
}

struct Field {
  int64_t width = 0;
  int64_t stride = 0;  // of a row; beyond the width, up to a multiple of 32, are zeros
  float* rows = nullptr;
  float* grads = nullptr;  // where nothing below is trained, null
};

struct Layer : PlannedLayer {
  // Set by plan_memory.
  int64_t middle = 0;  // the output at which the second half of sums begins; 0: they are not cut
  Field *below = nullptr, *above = nullptr;
  int lift = 0;              // segment s below becomes segment s + lift above
  float* normed = nullptr;   // normalised values, as rows of `above`, by segments below
  float* inv_std = nullptr;  // [segment][out]
  float *grad_gamma = nullptr, *grad_beta = nullptr;  // [out]
  uint8_t* keep = nullptr;                            // dropout mask [segment][padded batch][out]
};

using Network = PlannedNetwork<Layer>;

// What one call does. Pointers are the caller's.
struct Job {
  Network g, d;
  Field latents, images;
  std::vector<Field> g_fields, d_fields;  // between layers; d_fields ends with the logits

  int64_t batch = 0;  // the largest
  int64_t d_steps = 1;
  Game game = Game::non_saturating;
  double real_label = 1;
  uint64_t seed = 0;

  int64_t first_step = 0, steps = 0;
  int64_t threads = 1;
  Products products = Products::fp32;
  const double* rates = nullptr;  // learning rates of D and G, [steps][2], or [2] for all
  bool rates_vary = false;
  double average_decay = 0;

  // Images [count][width of images], bytes (mapped to [-1, 1]) or floats. With `order`, the
  // permutations of the epochs from that of the first update on; without, the batches of this run
  // lie in `floats` one after another.
  int64_t count = 0;
  const uint8_t* bytes = nullptr;
  const float* floats = nullptr;
  const int64_t* order = nullptr;

  float* losses = nullptr;    // [steps][2]: D, G
  double* profile = nullptr;  // [phases][2]: thread 0's seconds working, waiting; or null

  // Set by plan_memory.
  int64_t blocks = 0, padded = 0, units = 0;  // of the largest batch
  float* halves = nullptr;       // the second halves of sums, rows of whichever field is at hand
  double* loss_parts = nullptr;  // [segment][unit of rows]
  float* scratch = nullptr;      // per thread
  int64_t scratch_stride = 0;
};

// Lays the fields and buffers out from `base`, 64-byte aligned, and returns the bytes they take.
// With base null only the size is computed. The memory must start as zeros.
size_t plan_memory(Job& job, void* base);

// D's last layer is one row of weights: logits, losses and gradients of some rows of the batch need
// only those rows. Whether the gradients below it follow in the same phase: not through batch
// statistics.
bool judges_backward(const Job& job);

// A phase of a step, as the profile counts them. `work`: floating-point operations of its products.
struct Phase {
  std::string name;
  double work;
};
// plan_memory must have been called on this job.
std::vector<Phase> phases(const Job& job);

// Runs job.steps steps. plan_memory must have been called on this job.
void run(Job& job);

// The best ways of this processor, within what FASTGAN_ISA allows; in bfloat16 there may be none.
Products best_fp32();
std::optional<Products> best_bf16();
// Whether it has a way.
bool has_products(Products products);
// The instructions that the products are taken with.
const char* products_name(Products products);

// The variants, one per instruction set; run() calls the one that isa() names.
#if defined(__x86_64__)
namespace avx512 {
void run_thread(void* job, int thread, Barrier& barrier);
}
namespace avx512_bf16 {
void run_thread(void* job, int thread, Barrier& barrier);
}
namespace amx {
void run_thread(void* job, int thread, Barrier& barrier);
}
namespace amx_fp32 {
void run_thread(void* job, int thread, Barrier& barrier);
}
namespace avx2 {
void run_thread(void* job, int thread, Barrier& barrier);
}
#endif
namespace baseline {
void run_thread(void* job, int thread, Barrier& barrier);
}

}  // namespace fastgan::cpu::step
