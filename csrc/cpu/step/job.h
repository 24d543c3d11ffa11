// A whole alternating training step of two multilayer perceptrons on the CPU. No torch here.
// step/plan.h says what a network is, step/passes.h what the segments of its fields are, and
// step/phases.h what a step is made of.
//
// Values and gradients of a field lie in rows, [segment][rows, padded to 32][stride], a row for
// each sample of a batch, or of D's fields for each pack of them; weights, moments and averages
// keep torch's own layout [out, in] and are used where they are. Each product packs its operands
// for the processor's kernel (products_*.h) piece by piece in the thread's own scratch:
//     forward    rows above           = rows below          * weight, transposed
//     backward   gradient rows below  = gradient rows above * weight
//     update     weight's gradient    = gradient rows above, transposed * rows below
// The gradient of a weight lives in one piece at a time: Adam consumes it there. Segments that need
// nothing of each other go through a layer together.
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

#include <vector>

#include "cpu/isa.h"
#include "cpu/step/nodes.h"
#include "cpu/team.h"
#include "step/passes.h"
#include "step/phases.h"
#include "step/plan.h"

namespace fastgan::cpu::step {

using fastgan::Activation;
using fastgan::Loss;
using fastgan::Parameter;

constexpr int64_t kBlock = 32;
constexpr int64_t kRowUnit = 8;  // rows of the batch are shared out in eights

constexpr int64_t kGradChunk = 1024;  // numbers whose squares are summed in one piece

// What products are taken with; sums and everything else are in float32.
//     fp32           vectors
//     bf16_emulated  the same, on operands rounded to bfloat16
//     bf16_avx512    AVX-512's dot products of bfloat16
//     bf16_amx       AMX tiles of bfloat16
//     fp32_amx       AMX tiles, each operand as a sum of bfloat16 parts
enum class Instructions { fp32, bf16_emulated, bf16_avx512, bf16_amx, fp32_amx };
constexpr bool on_vectors(Instructions i) {
  return i == Instructions::fp32 || i == Instructions::bf16_emulated;
}

// What is packed at a time, and the floats it takes in a thread's scratch.
struct Sizes {
  int64_t batch;  // rows of the batch whose piece of A fits the second-level cache
  int64_t depth;  // terms of the sum. A panel of B may outgrow the first-level cache: the products
                  // leave it time to come, and fewer pieces mean fewer trips of C to memory
  int64_t held_rows, held_columns;  // of a weight's gradient
  int64_t left, right, held;
};
constexpr int64_t kHeldTiles = 8;
constexpr Sizes sizes_of(Instructions instructions) {
  // Between the rows of a held gradient, against conflicts in the cache.
  constexpr int64_t gap = 16;
  if (on_vectors(instructions)) {
    constexpr int64_t depth = 400;
    return {512, depth, 112, 256, kHeldTiles * depth * 16, depth * kBlock, 112 * (256 + gap)};
  }
  // Packed operands, of two bytes, have two places each: one in use, one being filled.
  const bool tiles = instructions != Instructions::bf16_avx512;
  const int64_t parts = instructions == Instructions::fp32_amx ? 3 : 1;
  const int64_t batch = tiles ? 256 : 512, depth = !tiles ? 512 : parts == 3 ? 128 : 256;
  return {batch, depth, 128, 512, batch * depth * parts, kBlock * depth * parts, 128 * (512 + gap)};
}

constexpr int64_t kMoments = 4;  // two sums of each feature, of two segments

struct Field {
  int64_t width = 0;
  int64_t stride = 0;  // of a row; beyond the width, up to a multiple of 32, are zeros
  int64_t padded = 0;  // rows of a segment
  float* rows = nullptr;
  float* grads = nullptr;  // where nothing below is trained, null
  // What products take of them: the same, or with bf16_emulated copies that are rounded.
  float *row_factors = nullptr, *grad_factors = nullptr;
  // Of a penalty, see penalty.h: the derivative of the rows in its direction, and the gradients
  // that curved activations make of it. Segments from kBetween to kFake; null where none are made.
  float *tangents = nullptr, *bends = nullptr;
};

struct Layer : PlannedLayer {
  // Set by plan_memory.
  int64_t middle = 0;  // the output at which the second half of sums begins; 0: they are not cut
  Field *below = nullptr, *above = nullptr;
  bool direct = true;        // its product is the gradient of its input or of one other layer's
  int lift = 0;              // segment s below becomes segment s + lift above
  float* normed = nullptr;   // normalised values, as rows of `above`, by segments below
  float* slopes = nullptr;   // derivatives of activations that keep them, likewise
  float* inv_std = nullptr;  // [segment][out]
  float *grad_gamma = nullptr, *grad_beta = nullptr;  // [out]
  // Of a LayerNorm: [segment][padded batch], the gradients of what it makes; with penalties the
  // bends of that, and what row_norm.h names. Rows as those of `normed`.
  float *row_std = nullptr, *norm_grads = nullptr;
  float *norm_bends = nullptr, *warps = nullptr, *turned = nullptr;
  uint8_t* keep = nullptr;  // dropout mask [segment][padded batch][out]
  // With penalties: whether no activation from here up is curved, and whether this is the last
  // that is.
  bool straight = false, topmost = false;
  // Of a curved one: gradients before its derivative, then what its second derivative makes of
  // them. Rows of `above`, segments as those of its tangents.
  float* curves = nullptr;
  float* second = nullptr;  // second derivatives of those that keep them, likewise
};

using Network = PlannedNetwork<Layer>;

// Of the columns of G's output: its means; by how much these, and deviations over themselves, are
// from those of the real ones; sums of the squares of both differences, [panel][2].
struct OutputMoments {
  float *mean = nullptr, *of_mean = nullptr, *of_deviation = nullptr;
  double* squares = nullptr;
};

// What is done of the steps: all; or of one update what comes before several processes add their
// gradients up, or what comes after.
enum class Part { steps, gradients, move };

// What one call does. Pointers are the caller's.
struct Job : PlannedStep, ImageSource {
  Network g, d;
  ConditionSource condition;
  // D's input, which G's last layer writes; where that is not all of it, `made` instead.
  Field latents, images, made;
  std::vector<Field> g_fields, d_fields;  // between layers; d_fields ends with the scores
  // Of nodes that are made of others, and of the gradients of layers that share a node with one
  // before them: their rows are the node's.
  std::vector<Field> g_joined, d_joined, g_shared, d_shared;
  std::vector<PlannedPenalty> penalties;

  int64_t first_step = 0, steps = 0;
  int64_t threads = 1;
  Part part = Part::steps;
  int64_t update = 0;           // of those of its step, D's before G's: of which a part is done
  int64_t rank = 0, ranks = 1;  // whose rows of each batch
  // Of a part: its update's phases, with which it begins, and where it has ended, 0 at their end.
  const Phase* phases = nullptr;
  int64_t phase_count = 0, phase = 0, next = 0;
  // Sums of BatchNorms and of G's output of all ranks, [ranks][kMoments][moments_stride].
  double* moments = nullptr;
  int64_t moments_stride = 0;
  Instructions instructions = Instructions::fp32;
  const double* rates = nullptr;  // learning rates of D and G, [steps][2], or [2] for all
  bool rates_vary = false;

  // The permutations in `order` begin with that of the first update.
  float* statistics = nullptr;  // [steps][kStatistics]
  float* gradients = nullptr;   // of a part: of the update's network, parameter after parameter
  double* sums =
      nullptr;  // [kSums + terms], of the last step, if it is measured; of a part, its own
  double* profile = nullptr;  // [phases][2]: thread 0's seconds working, waiting; or null

  // Set by plan_memory.
  std::vector<Node> g_nodes, d_nodes;
  std::vector<Join> g_joins, d_joins;
  std::vector<Phase> d_phases, g_phases;  // of an update of D, and of G
  std::vector<Phase> more_phases;         // of G's others in a step, if there are any
  bool lerped = false;      // D's first layer makes the products at points between from the others
  int64_t units = 0;        // of the largest batch, of eight rows
  float* halves = nullptr;  // the second halves of sums, rows of whichever field is at hand
  double* loss_parts = nullptr;   // [segment][unit of rows]
  double* score_parts = nullptr;  // likewise
  double* right_parts = nullptr;  // of a measured step, likewise: scores on the right side
  double* square_parts = nullptr;
  double* gauges = nullptr;       // likewise: [thread][D, G][kNetworkSums]
  float* coefficients = nullptr;  // of penalised real and fake rows: the loss's slope by the score
  float* shares = nullptr;        // of G's hard heads, as rows of its output, for its own update
  OutputMoments output;
  // Of each row of G's update: the cross-entropy of the class that was asked for, the number of the
  // head that has it (another part of an update has its own heads), and the slope by its logits.
  double* surprises = nullptr;
  int64_t* asked = nullptr;
  float* asked_grads = nullptr;
  int64_t asked_stride = 0;
  float* mixes = nullptr;     // of points between: the share of the real sample
  double* squares = nullptr;  // sums of chunks of a clipped gradient's
  float* scratch = nullptr;   // per thread
  int64_t scratch_stride = 0;

  bool of_g() const { return update >= d_steps; }
  // Whether D's input is more than what G makes: with conditions, or several rows side by side.
  bool joined() const { return !d.parts.empty() || d.pack > 1; }
  // Rows of a network's fields for the largest batch of this rank, in whole blocks.
  int64_t padded(const Network& network) const {
    const int64_t rows = (batch + ranks - 1) / ranks;
    const int64_t own = (rows + network.pack - 1) / network.pack;
    return (own + kBlock - 1) / kBlock * kBlock;
  }
  // Whether moments are of more rows than this rank's.
  bool summed() const { return ranks > 1; }
  const Layer& layer(int n) const {
    const size_t at = static_cast<size_t>(n), count = g.layers.size();
    return at < count ? g.layers[at] : d.layers[at - count];
  }
};

// Lays the fields and buffers out from `base`, 64-byte aligned, and returns the bytes they take.
// With base null only the size is computed. The memory must start as zeros.
size_t plan_memory(Job& job, void* base);

// Features of the widest of what has moments over the rows: a BatchNorm, or G's output with a term
// of them; 0 without any.
int64_t widest_moments(const Job& job);

// The numbers of a network's gradients.
int64_t gradients_of(const Network& network);

// The phases of a step, as the profile counts them. plan_memory must have been called on this job.
std::vector<PhaseReport> report(const Job& job);

// Runs job.steps steps. plan_memory must have been called on this job.
void run(Job& job);

// The best instructions of this processor for a precision, within what FASTGAN_ISA allows.
Instructions best_for(Precision precision);
// Whether it has them.
bool has_instructions(Instructions instructions);
const char* instructions_name(Instructions instructions);

// The variants, one per instruction set; run() calls the one that isa() names.
#define FASTGAN_DECLARE_VARIANT(name)                       \
  namespace name {                                          \
  void run_thread(void* job, int thread, Barrier& barrier); \
  }
#if defined(__x86_64__)
FASTGAN_DECLARE_VARIANT(avx512)
FASTGAN_DECLARE_VARIANT(avx512_emulated)
FASTGAN_DECLARE_VARIANT(avx512_bf16)
FASTGAN_DECLARE_VARIANT(amx)
FASTGAN_DECLARE_VARIANT(amx_fp32)
FASTGAN_DECLARE_VARIANT(avx2)
FASTGAN_DECLARE_VARIANT(avx2_emulated)
#endif
FASTGAN_DECLARE_VARIANT(baseline)
FASTGAN_DECLARE_VARIANT(baseline_emulated)
#undef FASTGAN_DECLARE_VARIANT

}  // namespace fastgan::cpu::step
