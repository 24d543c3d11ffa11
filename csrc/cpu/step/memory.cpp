// The layout of the step's working memory, and its phases.
#include <algorithm>

#include "common/arena.h"
#include "cpu/step/job.h"

namespace fastgan::cpu::step {

namespace {

// Whole vectors are read past the end of a row, so two lines are left free after each piece.
constexpr int64_t kLine = 64, kGap = 2 * kLine;

void plan_field(Arena& arena, const Job& job, Field& field, int segments, bool grads) {
  // An odd number of cache lines: rows a power of two apart would fall into few sets of the cache.
  field.stride = round_up(field.width, kBlock) | 16;
  const int64_t values = segments * job.padded * field.stride;
  const bool rounded = job.instructions == Instructions::bf16_emulated;
  field.rows = field.row_factors = arena.take<float>(values);
  if (rounded) field.row_factors = arena.take<float>(values);
  if (!grads) return;
  field.grads = field.grad_factors = arena.take<float>(values);
  if (rounded) field.grad_factors = arena.take<float>(values);
}

void plan_layer(Arena& arena, const Job& job, Layer& layer) {
  const int64_t values = kSegments * job.padded * layer.above->stride;
  if (layer.norm) {
    layer.normed = arena.take<float>(values);
    layer.inv_std = arena.take<float>(kSegments * layer.out);
    layer.grad_gamma = arena.take<float>(round_up(layer.out, kBlock));
    layer.grad_beta = arena.take<float>(round_up(layer.out, kBlock));
  }
  if (layer.activation == Activation::elu) layer.slopes = arena.take<float>(values);
  if (layer.drop) layer.keep = arena.take<uint8_t>(kSegments * job.padded * layer.out + kBlock);
}

void connect(Layer& layer, Field& below, Field& above, int lift) {
  layer.below = &below;
  layer.above = &above;
  layer.lift = lift;
  layer.middle = (layer.out + kBlock - 1) / kBlock / 2 * kBlock;
  below.width = layer.in;
  above.width = layer.out;
}

Skeleton skeleton(const Job& job) {
  return skeleton_of(job.g, job.d, true, [](const Layer& l) { return l.middle > 0; });
}

}  // namespace

size_t plan_memory(Job& job, void* base) {
  Arena arena(base, kLine, kGap);
  job.blocks = (job.batch + kBlock - 1) / kBlock;
  job.padded = job.blocks * kBlock;
  job.units = job.padded / kRowUnit;
  const size_t g = job.g.layers.size(), d = job.d.layers.size();
  job.g_fields.resize(g - 1);
  job.d_fields.resize(d);
  for (size_t i = 0; i < g; ++i) {
    const bool last = i + 1 == g;
    connect(job.g.layers[i], i ? job.g_fields[i - 1] : job.latents,
            last ? job.images : job.g_fields[i], last ? 1 : 0);
  }
  for (size_t i = 0; i < d; ++i)
    connect(job.d.layers[i], i ? job.d_fields[i - 1] : job.images, job.d_fields[i], 0);
  job.d_phases = phases_of(skeleton(job), false);
  job.g_phases = phases_of(skeleton(job), true);

  plan_field(arena, job, job.latents, 2, false);
  plan_field(arena, job, job.images, kSegments, true);
  for (Field& field : job.g_fields) plan_field(arena, job, field, 2, true);
  for (Field& field : job.d_fields) plan_field(arena, job, field, kSegments, true);
  int64_t widest = 0;
  for (Network* network : {&job.g, &job.d})
    for (Layer& layer : network->layers) {
      plan_layer(arena, job, layer);
      if (layer.middle) widest = std::max(widest, layer.below->stride);
    }
  job.halves = arena.take<float>(2 * job.padded * widest);
  job.loss_parts = arena.take<double>(kSegments * job.units);
  job.score_parts = arena.take<double>(kSegments * job.units);
  // The scratch also takes a block of latents.
  const Sizes sizes = sizes_of(job.instructions);
  const int64_t most = std::max(sizes.left + sizes.right + sizes.held, kBlock * job.latents.width);
  job.scratch_stride = round_up(most, 16) + 16;
  job.scratch = arena.take<float>(job.threads * job.scratch_stride);
  return arena.used();
}

std::vector<PhaseReport> report(const Job& job) {
  std::vector<PhaseReport> reports;
  for (const bool of_g : {false, true})
    for (const Phase& phase : of_g ? job.g_phases : job.d_phases)
      reports.push_back(report(skeleton(job), phase, of_g, job.batch));
  return reports;
}

}  // namespace fastgan::cpu::step
