// The layout of the fused step's working memory.
#include "cuda/step.h"

#include "common/arena.h"

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
}

Optimizer optimizer(const PlannedNetwork<Layer>& n) {
  return {n.beta1, n.beta2, n.eps, n.weight_decay, n.decoupled};
}

}  // namespace

size_t plan_memory(Job& job, int copies, void* base) {
  Arena arena(base, kLine, 0);
  job.copies = copies;
  job.per_epoch = (job.count + job.batch - 1) / job.batch;
  job.d_optimizer = optimizer(job.d);
  job.g_optimizer = optimizer(job.g);
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
  job.barrier = arena.take<uint32_t>(1);
  return arena.used();
}

std::vector<Phase> phases_of(const Job& job, bool of_g) {
  const int g = static_cast<int>(job.g.layers.size()), d = static_cast<int>(job.d.layers.size());
  const auto layer = [&](int n) -> const Layer& {
    return n < g ? job.g.layers[static_cast<size_t>(n)] : job.d.layers[static_cast<size_t>(n - g)];
  };
  const int first = g, last = g + d - 1;  // of D
  const int from = of_g ? 2 : 0, segments = of_g ? 1 : 2;
  std::vector<Phase> phases;
  const auto forward = [&](int n, int start, int count, bool shared) {
    phases.push_back({Phase::forward, n, -1, start, count, shared});
    if (layer(n).norm) phases.push_back({Phase::norm, n, -1, start, count, shared});
  };
  // What follows once the gradient of layer n's activations is there.
  const auto norm_backward = [&](int n) {
    const bool trained = of_g == (n < g);
    if (layer(n).norm)
      phases.push_back(
          {Phase::norm_backward, n, -1, from - (n < g ? 1 : 0), segments, false, trained});
  };
  if (!of_g) {
    phases.push_back({Phase::inputs, 0, -1, 0, 0});
    // G does not change before its own update, so both its batches go through it at once.
    for (int n = 0; n < g; ++n) forward(n, 0, 1, true);
  }
  for (int n = first; n < last; ++n) forward(n, from, segments, false);
  const int lowest = of_g ? 0 : first;  // layer with a gradient
  phases.push_back({Phase::head, last, last > lowest ? last - 1 : -1, from, segments});
  for (int n = last; n > lowest; --n) {
    if (n < last) phases.push_back({Phase::backward, n, n - 1, from - (n < g ? 1 : 0), segments});
    norm_backward(n - 1);
  }
  phases.push_back({Phase::update, of_g ? 0 : first, of_g ? g : last + 1, of_g ? 1 : 0, segments});
  return phases;
}

}  // namespace fastgan::cuda::step
