#include "step/phases.h"

#include "step/passes.h"

namespace fastgan {

int Skeleton::topmost() const {
  int n = last();
  while (n >= g_layers && !layers[static_cast<size_t>(n)].curved) --n;
  return n;
}

namespace {

// What penalties add to D's update between its backward phases and that of its weights.
void add_penalty(const Skeleton& skeleton, std::vector<Phase>& phases) {
  const int g = skeleton.g_layers, last = skeleton.last(), topmost = skeleton.topmost();
  const auto add = [&](Phase::Work work, int n, int other) {
    phases.push_back({work, n, other, 0, 0});
  };
  const auto row_norm = [&](int n) { return skeleton.layers[static_cast<size_t>(n)].row_norm; };
  if (last > g) add(Phase::slope, g, -1);
  add(Phase::direction, g, -1);
  for (int n = g; n < last; ++n) {
    add(Phase::tangent, n, -1);
    if (row_norm(n)) add(Phase::norm_tangent, n, -1);
  }
  if (topmost == last) {
    add(Phase::tangent, last, last > g ? last - 1 : -1);
    if (last > g && row_norm(last - 1)) add(Phase::norm_bend, last - 1, -1);
  }
  for (int n = topmost < last ? topmost : last - 1; n > g; --n) {
    add(Phase::bend, n, n - 1);
    if (skeleton.layers[static_cast<size_t>(n)].halved) add(Phase::bend_sums, n, n - 1);
    if (row_norm(n - 1)) add(Phase::norm_bend, n - 1, -1);
  }
}

}  // namespace

std::vector<Phase> phases_of(const Skeleton& skeleton, bool of_g, bool more) {
  const int g = skeleton.g_layers, last = skeleton.last();
  const auto layer = [&](int n) -> const Skeleton::Layer& {
    return skeleton.layers[static_cast<size_t>(n)];
  };
  const int from = of_g ? kFakeForG : kReal, segments = of_g ? 1 : 2;
  // As a layer counts the segments below it: those of G's layers are one less.
  const auto below = [&](int n) { return from - (n < g ? 1 : 0); };
  // Whether a layer's norm has phases of its own: BatchNorm where the product before it has not
  // whole features, LayerNorm always.
  const auto apart = [&](int n) {
    return layer(n).row_norm || (layer(n).norm && !skeleton.joined);
  };
  const auto summed = [&](int n) { return layer(n).norm && skeleton.summed; };
  std::vector<Phase> phases;
  const auto forward = [&](int n, int start, int count, bool shared) {
    phases.push_back({Phase::forward, n, -1, start, count, shared});
    if (summed(n)) phases.push_back({Phase::norm_sums, n, -1, start, count, shared});
    if (apart(n)) phases.push_back({Phase::norm, n, -1, start, count, shared});
  };
  // What follows once the gradient of layer n's activations is there.
  const auto norm_backward = [&](int n) {
    if (summed(n)) phases.push_back({Phase::norm_backward_sums, n, -1, below(n), segments});
    if (layer(n).norm || layer(n).row_norm)
      phases.push_back({Phase::norm_backward, n, -1, below(n), segments, false, of_g == (n < g)});
  };
  if (more) {
    phases.push_back({Phase::inputs, 0, -1, 0, 0});
    for (int n = 0; n < g; ++n) forward(n, 1, 1, false);
  }
  if (!of_g) {
    phases.push_back({Phase::inputs, 0, -1, 0, 0});
    // G does not change before its own update, so both its batches go through it at once.
    for (int n = 0; n < g; ++n) forward(n, 0, 1, true);
    // Products of the first layer lie between others, as the points do.
    if (skeleton.parts) phases.push_back({Phase::join, g, -1, kFake, 1});
    if (skeleton.between && (!skeleton.lerped || last == g || skeleton.topmost() >= g))
      phases.push_back({Phase::points, g, -1, 0, 0});
  }
  // After the update of D, whose embeddings have moved.
  if (of_g && skeleton.parts) phases.push_back({Phase::join, g, -1, kFakeForG, 1});
  const size_t of_d = phases.size();
  for (int n = g; n < last; ++n) forward(n, from, segments, false);
  const int lowest = of_g ? 0 : g;  // layer with a gradient
  // Between D's input and what G has made lies a phase of its own.
  const auto split = [&](int n) {
    if (!skeleton.parts || n != g) return false;
    phases.push_back({Phase::split, g, g - 1, from, segments});
    if (apart(g - 1)) norm_backward(g - 1);
    return true;
  };
  const bool cut = skeleton.parts && last == g;
  phases.push_back({Phase::head, last, last > lowest && !cut ? last - 1 : -1, from, segments});
  // The head goes by rows, and statistics need whole features.
  if (last > lowest && !split(last)) norm_backward(last - 1);
  for (int n = last - 1; n > lowest; --n) {
    if (skeleton.parts && n == g) {
      phases.push_back({Phase::backward, n, -1, below(n), segments});
      split(n);
      continue;
    }
    phases.push_back({Phase::backward, n, n - 1, below(n), segments});
    if (layer(n).halved) phases.push_back({Phase::sums, n, n - 1, below(n), segments});
    if (apart(n - 1)) norm_backward(n - 1);
  }
  const size_t there = phases.size();
  if (!of_g && skeleton.penalised) add_penalty(skeleton, phases);
  const bool tables = of_g ? skeleton.g_embedded > 0 : skeleton.d_embedded > 0;
  if (tables) phases.push_back({Phase::tables, of_g ? 0 : g, -1, of_g ? 1 : 0, segments});
  phases.push_back({Phase::update, of_g ? 0 : g, of_g ? g : last + 1, of_g ? 1 : 0, segments});
  for (size_t i = of_d; !of_g && i < phases.size(); ++i)
    phases[i].front = skeleton.between && (i < there || i + (tables ? 2 : 1) >= phases.size());
  if (of_g ? skeleton.g_clipped : skeleton.d_clipped)
    for (const Phase::Work work : {Phase::squares, Phase::clip})
      phases.push_back({work, of_g ? 0 : g, -1, 0, 0});
  return phases;
}

PhaseReport report(const Skeleton& skeleton, const Phase& phase, bool of_g, int64_t batch,
                   bool again) {
  const bool in_g = phase.layer < skeleton.g_layers;
  const bool lerped =
      skeleton.lerped && phase.work == Phase::forward && phase.layer == skeleton.g_layers;
  const int more = (phase.shared ? 1 : 0) + (phase.front && !lerped ? 1 : 0);
  const int segments = phase.of_penalty() ? 1 : phase.segments + more;
  const auto work = [&](int n) {
    const Skeleton::Layer& l = skeleton.layers[static_cast<size_t>(n)];
    return 2.0 * static_cast<double>(batch) * segments * static_cast<double>(l.in) *
           static_cast<double>(l.out);
  };
  const std::string update = again  ? "G's further updates: "
                             : of_g ? "G's update: "
                                    : "D's update: ";
  const std::string number = std::to_string(phase.layer - (in_g ? 0 : skeleton.g_layers));
  const std::string network = in_g ? "G" : "D";
  switch (phase.work) {
    case Phase::inputs:
      return {(again ? update : "") + "inputs", 0};
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
    case Phase::norm_sums:
      return {(phase.shared ? "both: " : update) + network + " norm " + number + ", sums", 0};
    case Phase::norm_backward_sums:
      return {update + network + " norm backward " + number + ", sums", 0};
    case Phase::squares:
      return {update + network + " squares of gradients", 0};
    case Phase::clip:
      return {update + network + " clipped update", 0};
    case Phase::join:
      return {update + "D's input", 0};
    case Phase::split:
      return {update + "G's gradient", 0};
    case Phase::tables:
      return {update + network + " embeddings",
              2.0 * static_cast<double>(batch) * segments *
                  static_cast<double>(skeleton.layers[static_cast<size_t>(phase.layer)].out) *
                  static_cast<double>(in_g ? skeleton.g_embedded : skeleton.d_embedded)};
    case Phase::points:
      return {update + "points between", 0};
    case Phase::slope:
      return {update + network + " slope", work(phase.layer)};
    case Phase::direction:
      return {update + network + " direction", 0};
    case Phase::tangent:
      return {update + network + " tangent " + number,
              work(phase.layer) * (phase.other < 0 ? 1 : 2)};
    case Phase::bend:
      return {update + network + " bend " + number, work(phase.layer)};
    case Phase::bend_sums:
      return {update + network + " bend " + number + ", sums", 0};
    case Phase::norm_tangent:
      return {update + network + " norm tangent " + number, 0};
    case Phase::norm_bend:
      return {update + network + " norm bend " + number, 0};
    case Phase::update:
      break;
  }
  PhaseReport all{update + "weights of " + network, 0};
  for (int n = phase.layer; n < phase.other; ++n) all.work += work(n);
  return all;
}

}  // namespace fastgan
