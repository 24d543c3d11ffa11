#include "cpu/step.h"

#include <algorithm>

#include "common/arena.h"

namespace fastgan::cpu::step {

namespace {

// Whole vectors are read past the end of a row, so two lines are left free after each piece.
constexpr int64_t kLine = 64, kGap = 2 * kLine;

void plan_field(Arena& arena, const Job& job, Field& field, int segments, bool grads) {
  // An odd number of cache lines: rows a power of two apart would fall into few sets of the cache.
  field.stride = round_up(field.width, kBlock) | 16;
  field.rows = arena.take<float>(segments * job.padded * field.stride);
  if (grads) field.grads = arena.take<float>(segments * job.padded * field.stride);
}

void plan_layer(Arena& arena, const Job& job, Layer& layer) {
  if (layer.norm) {
    layer.normed = arena.take<float>(kSegments * job.padded * layer.above->stride);
    layer.inv_std = arena.take<float>(kSegments * layer.out);
    layer.grad_gamma = arena.take<float>(round_up(layer.out, kBlock));
    layer.grad_beta = arena.take<float>(round_up(layer.out, kBlock));
  }
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
  // The scratch also takes a block of latents.
  const Sizes sizes = sizes_of(job.products);
  const int64_t most = std::max(sizes.left + sizes.right + sizes.held, kBlock * job.latents.width);
  job.scratch_stride = round_up(most, 16) + 16;
  job.scratch = arena.take<float>(job.threads * job.scratch_stride);
  return arena.used();
}

bool judges_backward(const Job& job) {
  const std::vector<Layer>& d = job.d.layers;
  return d.size() > 1 && !d[d.size() - 2].norm;
}

// In the order of Stepper::forward_all and backward_all.
std::vector<Phase> phases(const Job& job) {
  std::vector<Phase> all{{"inputs", 0}};
  const Layer* const judge = &job.d.layers.back();
  const auto work = [&](const Layer& layer, int batches) {
    return 2.0 * static_cast<double>(job.batch) * batches * static_cast<double>(layer.in) *
           static_cast<double>(layer.out);
  };
  const auto forward = [&](const std::string& name, const Network& network, int batches) {
    for (const Layer& layer : network.layers) {
      const std::string number =
          name + " forward " + std::to_string(&layer - network.layers.data());
      if (&layer != judge) {
        all.push_back({number, work(layer, batches)});
        continue;
      }
      const bool back = judges_backward(job);
      all.push_back(
          {number + (back ? ", loss and back" : ", loss"), work(layer, batches) * (back ? 2 : 1)});
    }
  };
  const auto backward = [&](const std::string& name, const Network& network, const Field* stop,
                            int batches) {
    for (size_t l = network.layers.size(); l-- > 0 && network.layers[l].below != stop;) {
      const Layer& layer = network.layers[l];
      if (&layer == judge && judges_backward(job)) continue;
      const std::string number = name + " backward " + std::to_string(l);
      all.push_back({number, work(layer, batches)});
      if (layer.middle) all.push_back({number + ", sums", 0});
    }
  };
  const auto update = [&](const std::string& name, const Network& network, int batches) {
    all.push_back({name, 0});
    for (const Layer& layer : network.layers) all.back().work += work(layer, batches);
  };
  forward("both: G", job.g, 2);
  forward("D's update: D", job.d, 2);
  backward("D's update: D", job.d, &job.images, 2);
  update("D's update: weights of D", job.d, 2);
  forward("G's update: D", job.d, 1);
  backward("G's update: D", job.d, nullptr, 1);
  backward("G's update: G", job.g, &job.latents, 1);
  update("G's update: weights of G", job.g, 1);
  return all;
}

Products best_fp32() { return isa() == Isa::amx ? Products::fp32_amx : Products::fp32; }

std::optional<Products> best_bf16() {
  if (isa() == Isa::amx) return Products::bf16_amx;
  if (isa() == Isa::avx512 && has_avx512_bf16()) return Products::bf16_avx512;
  return std::nullopt;
}

bool has_products(Products products) {
  switch (products) {
    case Products::fp32:
      return true;
    case Products::bf16_avx512:
      return isa() >= Isa::avx512 && has_avx512_bf16();
    default:
      return isa() == Isa::amx;
  }
}

const char* products_name(Products products) {
  switch (products) {
    case Products::fp32:
      return isa_name(isa() == Isa::amx ? Isa::avx512 : isa());
    case Products::bf16_avx512:
      return "avx512_bf16";
    default:
      return isa_name(Isa::amx);
  }
}

void run(Job& job) {
  Work work = baseline::run_thread;
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) work = avx512::run_thread;
  if (isa() == Isa::avx2) work = avx2::run_thread;
  if (job.products == Products::bf16_avx512) work = avx512_bf16::run_thread;
  if (job.products == Products::bf16_amx) work = amx::run_thread;
  if (job.products == Products::fp32_amx) work = amx_fp32::run_thread;
#endif
  run_team(static_cast<int>(job.threads), work, &job);
}

}  // namespace fastgan::cpu::step
