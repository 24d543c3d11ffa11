#include "step/phases.h"

#include "step/passes.h"

namespace fastgan {

std::vector<Phase> phases_of(const Skeleton& skeleton, bool of_g) {
  const int g = skeleton.g_layers, last = static_cast<int>(skeleton.layers.size()) - 1;
  const auto layer = [&](int n) -> const Skeleton::Layer& {
    return skeleton.layers[static_cast<size_t>(n)];
  };
  const int from = of_g ? kFakeForG : kReal, segments = of_g ? 1 : 2;
  // As a layer counts the segments below it: those of G's layers are one less.
  const auto below = [&](int n) { return from - (n < g ? 1 : 0); };
  std::vector<Phase> phases;
  const auto forward = [&](int n, int start, int count, bool shared) {
    phases.push_back({Phase::forward, n, -1, start, count, shared});
    if (layer(n).norm && !skeleton.joined)
      phases.push_back({Phase::norm, n, -1, start, count, shared});
  };
  // What follows once the gradient of layer n's activations is there.
  const auto norm_backward = [&](int n) {
    if (layer(n).norm)
      phases.push_back({Phase::norm_backward, n, -1, below(n), segments, false, of_g == (n < g)});
  };
  if (!of_g) {
    phases.push_back({Phase::inputs, 0, -1, 0, 0});
    // G does not change before its own update, so both its batches go through it at once.
    for (int n = 0; n < g; ++n) forward(n, 0, 1, true);
  }
  for (int n = g; n < last; ++n) forward(n, from, segments, false);
  const int lowest = of_g ? 0 : g;  // layer with a gradient
  phases.push_back({Phase::head, last, last > lowest ? last - 1 : -1, from, segments});
  // The head goes by rows, and statistics need whole features.
  if (last > lowest) norm_backward(last - 1);
  for (int n = last - 1; n > lowest; --n) {
    phases.push_back({Phase::backward, n, n - 1, below(n), segments});
    if (layer(n).halved) phases.push_back({Phase::sums, n, n - 1, below(n), segments});
    if (!skeleton.joined) norm_backward(n - 1);
  }
  phases.push_back({Phase::update, of_g ? 0 : g, of_g ? g : last + 1, of_g ? 1 : 0, segments});
  return phases;
}

PhaseReport report(const Skeleton& skeleton, const Phase& phase, bool of_g, int64_t batch) {
  const bool in_g = phase.layer < skeleton.g_layers;
  const int segments = phase.segments + (phase.shared ? 1 : 0);
  const auto work = [&](int n) {
    const Skeleton::Layer& l = skeleton.layers[static_cast<size_t>(n)];
    return 2.0 * static_cast<double>(batch) * segments * static_cast<double>(l.in) *
           static_cast<double>(l.out);
  };
  const std::string update = of_g ? "G's update: " : "D's update: ";
  const std::string number = std::to_string(phase.layer - (in_g ? 0 : skeleton.g_layers));
  const std::string network = in_g ? "G" : "D";
  switch (phase.work) {
    case Phase::inputs:
      return {"inputs", 0};
    case Phase::forward:
      return {(phase.shared ? "both: " : update) + network + " forward " + number,
              work(phase.layer)};
    case Phase::norm:
      return {(phase.shared ? "both: " : update) + network + " norm " + number, 0};
    case Phase::head:
      return {update + network + " forward " + number +
                  (phase.other < 0 ? ", loss" : ", loss and back"),
              work(phase.layer) * (phase.other < 0 ? 1 : 2)};
    case Phase::backward:
      return {update + network + " backward " + number, work(phase.layer)};
    case Phase::sums:
      return {update + network + " backward " + number + ", sums", 0};
    case Phase::norm_backward:
      return {update + network + " norm backward " + number, 0};
    case Phase::update:
      break;
  }
  PhaseReport all{update + "weights of " + network, 0};
  for (int n = phase.layer; n < phase.other; ++n) all.work += work(n);
  return all;
}

}  // namespace fastgan
