// The layout of the fused step's working memory.
#include <algorithm>

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

// Rows of a field, after `before` others.
float* take_rows(Arena& arena, int64_t rows, int64_t before, int64_t stride) {
  float* const at = arena.take<float>((before + rows) * stride);
  return at ? at + before * stride : at;
}

Field take_field(Arena& arena, int64_t width, int64_t rows, int64_t before, bool grads,
                 int copies) {
  Field field;
  field.width = width;
  field.stride = round_up(width, 4);
  // Copies keep the alignment of the first.
  field.copy = round_up((before + rows) * field.stride, kLine / 4);
  field.values = arena.take<float>(copies * field.copy);
  if (field.values) field.values += before * field.stride;
  if (grads) field.grads = take_rows(arena, rows, before, field.stride);
  if (copies == 1) field.copy = 0;
  return field;
}

void connect(Arena& arena, Layer& layer, const Field& below, const Field& above, int64_t rows,
             int64_t before) {
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
  if (keeps_slope(layer.activation)) layer.slopes = take_rows(arena, rows, before, above.stride);
}

// Parameters of a layer with their numbers.
template <class Use>
void each_parameter(Layer& l, const Use& use) {
  use(l.weight, l.in * l.out);
  use(l.bias, l.out);
  if (!l.norm) return;
  use(l.gamma, l.out);
  use(l.beta, l.out);
}

// Where the gradients of a network wait for their norm, if they do; the chunks in which their
// squares are summed.
int64_t take_grads(Arena& arena, PlannedNetwork<Layer>& network) {
  int64_t chunks = 0;
  if (network.optimizer.longest_grad == INFINITY) return 0;
  for (Layer& l : network.layers)
    each_parameter(l, [&](Parameter& p, int64_t n) {
      p.grad = arena.take<float>(n);
      chunks += chunks_of(n);
    });
  return chunks;
}

void take_penalties(Arena& arena, Job& job, const Skeleton& skeleton) {
  const int64_t before = skeleton.between ? job.batch : 0;
  const auto take = [&](int64_t stride) {
    return take_rows(arena, (kFake + 1) * job.batch, before, stride);
  };
  float* tangents = job.d.layers.front().grad_x;
  int n = skeleton.g_layers;
  for (Layer& layer : job.d.layers) {
    layer.straight = n > skeleton.topmost();
    layer.topmost = n == skeleton.topmost();
    layer.x_tangents = tangents;
    layer.tangents = tangents = n < skeleton.last() ? take(layer.y_stride) : nullptr;
    layer.deltas = take(layer.y_stride);
    if (curved(layer.activation)) layer.curves = take(layer.y_stride);
    ++n;
  }
  job.slopes = arena.take<SlopeWeights>(kPlaces);
  job.coefficients = arena.take<float>(kPlaces * job.batch);
  job.mixes = arena.take<float>(job.batch);
}

}  // namespace

Skeleton skeleton_of(const Job& job) {
  Skeleton made = fastgan::skeleton_of(job.g, job.d, false, [](const Layer&) { return false; });
  made.penalised = !job.penalties.empty();
  for (const PlannedPenalty& p : job.penalties) made.between |= p.at == Place::between;
  return made;
}

size_t plan_memory(Job& job, int copies, void* base) {
  Arena arena(base, kLine, 0);
  job.copies = copies;
  job.per_epoch = batches_per_epoch(job.count, job.batch);
  job.d_optimizer = job.d.optimizer;
  job.g_optimizer = job.g.optimizer;
  const Skeleton skeleton = skeleton_of(job);
  job.d_phases = phases_of(skeleton, false);
  job.g_phases = phases_of(skeleton, true);
  if (job.g_steps > 1) job.more_phases = phases_of(skeleton, true, true);
  const int64_t g_rows = 2 * job.batch, d_rows = kSegments * job.batch;
  const int64_t before = skeleton.between ? job.batch : 0;

  Field below = take_field(arena, job.g.layers.front().in, g_rows, 0, false, copies);
  job.latent = below.width;
  job.latent_stride = below.stride;
  job.latents = below.values;
  job.latent_copy = below.copy;
  const Field images = take_field(arena, job.d.layers.front().in, d_rows, before, true, copies);
  job.image = images.width;
  job.image_stride = images.stride;
  job.images = images.values;
  job.image_copy = images.copy;
  for (Layer& layer : job.g.layers) {
    const bool last = &layer == &job.g.layers.back();
    const Field above = last ? images : take_field(arena, layer.out, g_rows, 0, true, 1);
    layer.in_g = true;
    layer.lift = last ? 1 : 0;
    connect(arena, layer, below, above, d_rows, 0);
    below = above;
  }
  below = images;
  for (Layer& layer : job.d.layers) {
    const Field above = take_field(arena, layer.out, d_rows, before, true, 1);
    connect(arena, layer, below, above, d_rows, before);
    below = above;
  }
  job.adam = arena.take<Adam<float>>(2 * copies);
  job.loss_rows = arena.take<float>(kSegments * job.batch);
  job.score_rows = arena.take<float>(kSegments * job.batch);
  if (copies > 1) job.program = arena.take<unsigned char>(static_cast<int64_t>(program_bytes()));
  if (skeleton.penalised) take_penalties(arena, job, skeleton);
  const int64_t of_g = take_grads(arena, job.g), of_d = take_grads(arena, job.d);
  if (of_g + of_d > 0) job.squares = arena.take<double>(std::max(of_g, of_d));
  return arena.used();
}

}  // namespace fastgan::cuda::step
