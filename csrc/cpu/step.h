// A whole alternating training step of two multilayer perceptrons. No torch here.
//
// Shape of the computation. A network is a chain of layers
//     Linear -> [BatchNorm] -> activation -> [dropout]
// between fields: the latents, what lies between two layers, the images, the logits. A field holds
// up to three batches, its segments: for D's fields and the images 0 real, 1 fake for D's update, 2
// fake for G's update; for G's fields 0 for D's update and 1 for G's. Segments that need nothing of
// each other go through a layer together.
//
// Every field stands in memory twice, in the two forms in which the register tile of microkernel.h
// can read its second operand, so that weights, moments and averages keep torch's own layout
// [out, in] and are used where they are:
//     columns [segment][block][feature][32] the batch runs innermost, in blocks of 32
//     rows    [segment][padded batch][stride]
// A layer's three products and the operands of the tile (A broadcast, B in vectors):
//     forward    columns of the field above = weight (A) * columns of the field below (B)
//     backward   gradient rows below        = gradient rows above (A) * weight (B, copied in
//     panels) update     gradient of the weight     = gradient rows above, transposed (A) * rows
//     below (B)
// The gradient of a weight lives in one tile at a time: Adam consumes it there.
//
// Division among threads. Each product is cut by its outputs, so no sum is ever split and the
// number of threads does not change a bit. A thread computes the same outputs of a layer forward
// and in the update: those rows of the weight and their moments stay in its cache. A barrier ends
// each phase.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "cpu/isa.h"
#include "cpu/team.h"

namespace fastgan::cpu::step {

constexpr int64_t kBlock = 32;
constexpr int kSegments = 3;
// Long sums are taken in pieces of at most kDepth terms, and a weight's gradient is held for at
// most kHeldRows rows at a time, in tiles of at most 16: what a thread's scratch is sized for.
constexpr int64_t kDepth = 208, kHeldRows = 112, kHeldColumns = 256, kHeldTiles = 8;
constexpr int64_t kScratch =
    kHeldRows * (kHeldColumns + 16) + kHeldTiles * kDepth * 16 + kDepth * kBlock;

enum class Activation : int64_t { none, leaky_relu, tanh, sigmoid, elu };
// How products are taken in bfloat16: not, with AVX-512's dot products, or with AMX tiles.
enum class Bf16 { none, avx512, amx };
enum class Game : int64_t { non_saturating, minimax, hinge, least_squares, wasserstein };

// One trained tensor with its optimiser state. `average` is null where no average is kept; all
// are null where the layer has no such parameter.
struct Parameter {
  float* value = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  float* average = nullptr;
};

struct Field {
  int64_t width = 0;
  int64_t stride = 0;  // of a row
  int64_t block = 0;   // values in a column block: the width rounded up to 16, times 32
  float* columns = nullptr;
  float* rows = nullptr;
  float* grads = nullptr;  // as rows; where nothing below is trained, null

  // Operands of bfloat16 products; null in float32. In "pairs" two neighbours along the sum stand
  // side by side, as the instructions want their second operand; sums are padded with zeros to 32.
  uint16_t* column_pairs = nullptr;  // [segment][block][features / 2][32][2]
  uint16_t* row_pairs = nullptr;     // [features / 32][segment, padded batch / 2][32][2]
  uint16_t* grad_rows = nullptr;     // [segment][padded batch][features]
  uint16_t* grad_columns = nullptr;  // [features][segment, padded batch]
  int64_t depth = 0;                 // features rounded up to 32
  int64_t total = 0;                 // segments times padded batch
};

struct Layer {
  int64_t in = 0, out = 0;
  Activation activation = Activation::none;
  float slope = 0;  // LeakyReLU's negative slope, >= 0; ELU's alpha, >= 0
  Parameter weight, bias;

  bool norm = false;
  double norm_eps = 0;
  double norm_momentum = 0;  // negative: cumulative average
  Parameter gamma, beta;
  float *running_mean = nullptr, *running_var = nullptr;  // null: not tracked
  int64_t* batches = nullptr;
  float *average_mean = nullptr, *average_var = nullptr;  // the averaged network's copies
  int64_t* average_batches = nullptr;

  bool drop = false;
  uint32_t drop_threshold = 0;  // see common/dropout.h
  uint32_t drop_stream = 0;     // of the layer; the use is added

  // Copies of the weight as operands of bfloat16 products; see Field.
  uint16_t* weight_rows = nullptr;   // [out, rounded up to 32][in, rounded up to 32]
  uint16_t* weight_pairs = nullptr;  // [in / 32][out / 2][32][2]

  // Set by plan_memory.
  Field *below = nullptr, *above = nullptr;
  int lift = 0;              // segment s below becomes segment s + lift above
  float* normed = nullptr;   // normalised values, as rows of `above`, by segments below
  float* inv_std = nullptr;  // [segment][out]
  float *grad_gamma = nullptr, *grad_beta = nullptr;  // [out]
  uint8_t* keep = nullptr;                            // dropout mask [segment][padded batch][out]
  uint32_t* keep_columns =
      nullptr;  // the same bytes, four features a word: [segment][block][out / 4][32]
};

struct Network {
  std::vector<Layer> layers;
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  bool decoupled = false;
  int64_t updates = 0;  // done before this run: Adam's step counter
};

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
  Bf16 products = Bf16::none;  // with sums and everything else in float32
  bool fresh = false;          // the copies of the weights in bfloat16 are those of the last call
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
  int64_t blocks = 0, padded = 0;  // of the largest batch
  double* loss_parts = nullptr;    // [segment][block]
  float* scratch = nullptr;        // per thread
  int64_t scratch_stride = 0;
};

// Lays the fields and buffers out from `base`, 64-byte aligned, and returns the bytes they take.
// With base null only the size is computed. The memory must start as zeros.
size_t plan_memory(Job& job, void* base);

// Phases of a step as the profile counts them: inputs, then D's update (forward through G, forward
// through D, backward, update), then G's (forward through D, backward through D, backward through
// G, update); each forward and backward counts its layers one by one.
int64_t phase_count(const Job& job);

// Runs job.steps steps. plan_memory must have been called on this job.
void run(Job& job);

// The best way of this processor; FASTGAN_ISA below avx512 leaves none.
Bf16 best_bf16();
// Whether it has a way.
bool has_bf16(Bf16 kind);
const char* bf16_name(Bf16 kind);

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
namespace avx2 {
void run_thread(void* job, int thread, Barrier& barrier);
}
#endif
namespace baseline {
void run_thread(void* job, int thread, Barrier& barrier);
}

}  // namespace fastgan::cpu::step
