// The layout of the fused step's working memory.
#include "common/arena.h"
#include "cuda/step/job.h"
#include "step/rows.h"

namespace fastgan::cuda::step {

namespace {

constexpr int64_t kLine = 256;

struct Field {
  int64_t width = 0, stride = 0, copy = 0;
  float *values = nullptr, *grads = nullptr;
};

Field take_field(Arena& arena, int64_t width, int64_t rows, bool grads, int copies) {
  Field field;
  field.width = width;
  field.stride = round_up(width, 4);
  // Copies keep the alignment of the first.
  field.copy = round_up(rows * field.stride, kLine / 4);
  field.values = arena.take<float>(copies * field.copy);
  if (grads) field.grads = arena.take<float>(rows * field.stride);
  if (copies == 1) field.copy = 0;
  return field;
}

void connect(Arena& arena, Layer& layer, const Field& below, const Field& above, int64_t rows) {
  layer.x = below.values;
  layer.grad_x = below.grads;
  layer.x_stride = below.stride;
  layer.x_copy = below.copy;
  layer.y = above.values;
  layer.grad_y = above.grads;
  layer.y_stride = above.stride;
  layer.y_copy = above.copy;
  if (layer.norm) {
    layer.normed = arena.take<float>(rows * above.stride);
    layer.inv_std = arena.take<float>(kSegments * layer.out);
  }
  if (layer.activation == Activation::elu) layer.slopes = arena.take<float>(rows * above.stride);
}

}  // namespace

size_t plan_memory(Job& job, int copies, void* base) {
  Arena arena(base, kLine, 0);
  job.copies = copies;
  job.per_epoch = batches_per_epoch(job.count, job.batch);
  job.d_optimizer = job.d.optimizer;
  job.g_optimizer = job.g.optimizer;
  const Skeleton skeleton = skeleton_of(job.g, job.d, false, [](const Layer&) { return false; });
  job.d_phases = phases_of(skeleton, false);
  job.g_phases = phases_of(skeleton, true);
  const int64_t g_rows = 2 * job.batch, d_rows = kSegments * job.batch;

  Field below = take_field(arena, job.g.layers.front().in, g_rows, false, copies);
  job.latent = below.width;
  job.latent_stride = below.stride;
  job.latents = below.values;
  job.latent_copy = below.copy;
  const Field images = take_field(arena, job.d.layers.front().in, d_rows, true, copies);
  job.image = images.width;
  job.image_stride = images.stride;
  job.images = images.values;
  job.image_copy = images.copy;
  for (Layer& layer : job.g.layers) {
    const bool last = &layer == &job.g.layers.back();
    const Field above = last ? images : take_field(arena, layer.out, g_rows, true, 1);
    layer.in_g = true;
    layer.lift = last ? 1 : 0;
    connect(arena, layer, below, above, d_rows);
    below = above;
  }
  below = images;
  for (Layer& layer : job.d.layers) {
    const Field above = take_field(arena, layer.out, d_rows, true, 1);
    connect(arena, layer, below, above, d_rows);
    below = above;
  }
  job.adam = arena.take<Adam<float>>(2 * copies);
  job.loss_rows = arena.take<float>(kSegments * job.batch);
  job.score_rows = arena.take<float>(kSegments * job.batch);
  job.barrier = arena.take<uint32_t>(1);
  return arena.used();
}

}  // namespace fastgan::cuda::step
