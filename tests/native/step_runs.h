// Whole runs of the plain double-precision step, and what step_main.cpp feeds both with.
#pragma once

#include <algorithm>

#include "step_reference.h"

// --- Runs

struct Run {
  std::vector<LayerState> g, d;
  std::vector<float> statistics;  // [steps][kStatistics]
  std::vector<double> sums;       // [kSums], of the last step
};

std::vector<LayerState> make_state(int64_t in, const std::vector<LayerPlan>& layers, bool last_bias,
                                   uint64_t& state, const std::vector<PartPlan>& parts = {},
                                   const std::vector<JoinPlan>& joins = {}, int64_t pack = 1) {
  for (const PartPlan& part : parts) in += part.width;
  in *= pack;
  const Shape shape{layers, joins, in};
  std::vector<LayerState> all;
  for (const LayerPlan& l : layers) {
    in = shape.width(shape.source(all.size()));
    LayerState s;
    s.width = l.out;
    s.weight.fill(l.out * in, std::sqrt(3.0 / static_cast<double>(in)), 0, state);
    if ((!l.norm || l.out % 2) && (last_bias || l.out > 1)) s.bias.fill(l.out, 0.1, 0, state);
    if (l.norm || l.row_norm) {
      s.gamma.fill(l.out, 0.3, 1, state);
      s.beta.fill(l.out, 0.1, 0, state);
    }
    if (l.norm) {
      s.running_mean.assign(l.out, 0);
      s.running_var.assign(l.out, 1);
      s.exact_mean.assign(l.out, 0);
      s.exact_var.assign(l.out, 1);
      s.average_mean.assign(l.out, 0);
      s.average_var.assign(l.out, 1);
    }
    all.push_back(s);
  }
  for (const PartPlan& part : parts) {
    if (part.of != PartOf::embedding) continue;
    all.emplace_back();
    all.back().weight.fill(kClasses * part.width, 1, 0, state);
  }
  return all;
}

struct Images {
  std::vector<uint8_t> bytes;
  std::vector<int64_t> order;
};
Images make_images(const Pair& plan, int64_t epochs) {
  Images images;
  uint64_t state = 7;
  images.bytes.resize(plan.count * plan.image);
  for (uint8_t& b : images.bytes) b = static_cast<uint8_t>(256 * draw(state));
  for (int64_t e = 0; e < epochs; ++e)
    for (int64_t i = 0; i < plan.count; ++i) images.order.push_back((i * 7 + e) % plan.count);
  return images;
}

double mean(const Matrix& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

Run reference(const Pair& plan, const Images& images, int64_t steps) {
  uint64_t state = 1;
  Run r;
  r.g = make_state(plan.latent, plan.g, true, state, plan.g_parts, plan.g_joins);
  r.d =
      make_state(plan.image, plan.d, plan.last_bias, state, plan.d_parts, plan.d_joins, plan.pack);
  Reference ref{plan, 0x123456789abcdefu};
  const int64_t per_epoch = (plan.count + plan.batch - 1) / plan.batch;
  for (int64_t t = 0; t < steps; ++t) {
    int64_t n = 0;
    double d_loss = 0, d_real = 0, d_fake = 0;
    std::vector<Trace> real, fake, made;
    std::vector<int64_t> of_real, of_fake;
    const size_t g_layers = plan.g.size(), d_layers = plan.d.size();
    const auto conditions = [&](int64_t update) {
      of_fake = of_real;
      for (size_t i = 0; plan.drawn && i < of_fake.size(); ++i)
        of_fake[i] = drawn_for(plan, t, update, static_cast<int64_t>(i));
    };
    std::vector<std::vector<uint8_t>> kr, kf, km;
    Matrix grad, image;
    for (int64_t k = 0; k < plan.d_steps; ++k) {
      const int64_t u = t * plan.d_steps + k;
      Matrix x;
      n = 0;
      of_real.clear();
      for (int64_t b = 0; b < plan.batch && u % per_epoch * plan.batch + b < plan.count; ++b, ++n) {
        const int64_t row =
            images.order[u / per_epoch * plan.count + u % per_epoch * plan.batch + b];
        of_real.push_back(row);
        for (int64_t j = 0; j < plan.image; ++j)
          x.push_back(images.bytes[row * plan.image + j] * (2.0 / 255.0) - 1);
      }
      conditions(k);
      const Matrix latents = ref.joined(plan.g_parts, r.g, g_layers, ref.latents(0, u, n), of_fake);
      image = ref.forward(plan.g, r.g, latents, n, 3, u, made, km);
      auto grads = Reference::zeros(r.d);
      const Matrix with_real = ref.joined(plan.d_parts, r.d, d_layers, x, of_real);
      const Matrix with_fake = ref.joined(plan.d_parts, r.d, d_layers, image, of_fake);
      const int64_t packs = n / plan.pack;
      const Matrix on_real = ref.forward(plan.d, r.d, with_real, packs, 0, u, real, kr);
      const Matrix on_fake = ref.forward(plan.d, r.d, with_fake, packs, 1, u, fake, kf);
      d_real = mean(on_real);
      d_fake = mean(on_fake);
      d_loss = ref.loss(0, on_real, grad);
      Reference::parted(plan.d_parts, d_layers,
                        ref.backward(plan.d, r.d, real, kr, grad, packs, &grads), of_real, &grads);
      d_loss += ref.loss(1, on_fake, grad);
      Reference::parted(plan.d_parts, d_layers,
                        ref.backward(plan.d, r.d, fake, kf, grad, packs, &grads), of_fake, &grads);
      if (!plan.penalties.empty()) {
        std::vector<float> normals(n + 4);
        kernels().philox_normal(make_philox(ref.seed, 6, u), 0, n, normals.data());
        Matrix points(x.size());
        for (size_t e = 0; e < x.size(); ++e) {
          const size_t first = e / plan.image / plan.pack * plan.pack;
          const double share = std::erfc(-normals[first] * std::sqrt(0.5)) / 2;
          points[e] = share * x[e] + (1 - share) * image[e];
        }
        points = ref.joined(plan.d_parts, r.d, d_layers, points, of_real);
        ref.penalise(Place::between, 5, r.d, points, packs, u, of_real, grads);
        ref.penalise(Place::real, 0, r.d, with_real, packs, u, of_real, grads);
        ref.penalise(Place::fake, 1, r.d, with_fake, packs, u, of_fake, grads);
      }
      r.sums.assign(kSums, 0);
      int at = 0;
      for (const Matrix* scores : {&on_real, &on_fake}) {
        const double middle = plan.loss == Loss::least_squares ? 0.5 : 0.0, sign = at ? -1 : 1;
        for (const double x : *scores) {
          r.sums[at] += (sign * (x - middle) > 0 ? 1.0 : 0.0) / static_cast<double>(packs);
          r.sums[at + 1] += x / static_cast<double>(packs);
          r.sums[at + 2] += x * x / static_cast<double>(packs);
        }
        if (plan.loss == Loss::wasserstein) r.sums[at] = NAN;
        at = 3;
      }
      ref.adam_all(r.d, grads, u + 1, &r.sums[kScoreSums], plan.largest_weight);
    }
    double g_loss = 0;
    for (int64_t u = t * plan.g_steps; u < (t + 1) * plan.g_steps; ++u) {
      auto grads = Reference::zeros(r.g);
      if (!plan.shared_fakes || u > t * plan.g_steps) {
        conditions(plan.d_steps + u - t * plan.g_steps);
        const Matrix latents =
            ref.joined(plan.g_parts, r.g, g_layers, ref.latents(1, u, n), of_fake);
        image = ref.forward(plan.g, r.g, latents, n, 4, u, made, km);
      }
      const Matrix with = ref.joined(plan.d_parts, r.d, d_layers, image, of_fake);
      const int64_t packs = n / plan.pack;
      const Matrix logits = ref.forward(plan.d, r.d, with, packs, 2, u, fake, kf);
      g_loss = ref.loss(2, logits, grad);
      const Matrix down = Reference::parted(
          plan.d_parts, d_layers, ref.backward(plan.d, r.d, fake, kf, grad, packs, nullptr),
          of_fake, nullptr);
      Reference::parted(plan.g_parts, g_layers,
                        ref.backward(plan.g, r.g, made, km, down, n, &grads), of_fake, &grads);
      double* const sums = &r.sums[kScoreSums + kNetworkSums];
      std::fill(sums, sums + kNetworkSums, 0.0);
      ref.adam_all(r.g, grads, u + 1, sums, INFINITY, u + 1 == (t + 1) * plan.g_steps);
    }
    for (const double value : {d_loss, g_loss, d_real, d_fake})
      r.statistics.push_back(static_cast<float>(value));
  }
  return r;
}
