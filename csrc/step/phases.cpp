#include "step/phases.h"

#include "step/passes.h"

namespace fastgan {

int Skeleton::topmost() const {
  int n = last();
  if (!d.chain()) return n;
  while (n >= g_layers && !layers[static_cast<size_t>(n)].curved) --n;
  return n;
}

namespace {

// One way backward through a network: of which layers and nodes, and by which phases.
struct Descent {
  Phase::Work product, sums, collect, norm;
  std::vector<bool> nodes;  // whose gradients are taken
};

class Phases {
 public:
  Phases(const Skeleton& skeleton, bool of_g) : skeleton_(skeleton), of_g_(of_g) {}

  std::vector<Phase> all;

  const Skeleton::Layer& layer(int n) const { return skeleton_.layers[static_cast<size_t>(n)]; }
  // Whether a layer's norm has phases of its own: BatchNorm where the product before it has not
  // whole features, LayerNorm always.
  bool apart(int n) const { return layer(n).row_norm || (layer(n).norm && !skeleton_.joined); }
  bool summed(int n) const { return layer(n).norm && skeleton_.summed; }
  int from() const { return of_g_ ? kFakeForG : kReal; }
  int segments() const { return of_g_ ? 1 : 2; }
  // As a layer counts the segments below it: those of G's layers are one less.
  int below(int n) const { return from() - (n < skeleton_.g_layers ? 1 : 0); }

  // The layer that made a node, if its gradient goes on through that one at once.
  int maker(int n, int node) const {
    if (node > 0) return node <= skeleton_.graph(n).layers() ? skeleton_.first(n) + node - 1 : -1;
    // Between D's input and what G has made may lie a phase of its own.
    return n >= skeleton_.g_layers && of_g_ && !skeleton_.parts ? skeleton_.g_layers - 1 : -1;
  }
  int source(int n) const {
    return skeleton_.graph(n).sources[static_cast<size_t>(n - skeleton_.first(n))];
  }
  // The layer whose gradient a layer's product is, if it is that of one.
  int lower(int n, const Descent& by) const {
    const int node = source(n);
    const bool direct = skeleton_.graph(n).direct(n - skeleton_.first(n));
    return direct && by.nodes[static_cast<size_t>(node)] ? maker(n, node) : -1;
  }

  void gather(Phase::Work work, int n, int start, int count, bool shared) {
    const Graph& graph = skeleton_.graph(n);
    for (size_t j = 0; j < graph.joins.size(); ++j)
      if (graph.joins[j].before == n - skeleton_.first(n))
        all.push_back({work, n, static_cast<int>(j), start, count, shared});
  }

  void forward(int n, int start, int count, bool shared) {
    gather(Phase::gather, n, start, count, shared);
    all.push_back({Phase::forward, n, -1, start, count, shared});
    if (summed(n)) all.push_back({Phase::norm_sums, n, -1, start, count, shared});
    if (apart(n)) all.push_back({Phase::norm, n, -1, start, count, shared});
    if (skeleton_.heads && n == skeleton_.g_layers - 1)
      all.push_back({Phase::heads, n, -1, start, count, shared});
  }

  // What follows once the gradient of layer n's activations is there.
  void norm_backward(Phase::Work work, int n) {
    if (work != Phase::norm_backward) {
      all.push_back({work, n, -1, 0, 0});
      return;
    }
    if (summed(n)) all.push_back({Phase::norm_backward_sums, n, -1, below(n), segments()});
    all.push_back({work, n, -1, below(n), segments(), false, of_g_ == (n < skeleton_.g_layers)});
  }

  // What follows once the gradient of G's output is there, if layer n makes that.
  void heads_backward(int n) {
    if (!skeleton_.heads || n != skeleton_.g_layers - 1) return;
    if (skeleton_.moments && skeleton_.summed)
      all.push_back({Phase::moments_sums, n, -1, below(n), segments()});
    if (skeleton_.moments) all.push_back({Phase::moments, n, -1, below(n), segments()});
    all.push_back({Phase::heads_backward, n, -1, below(n), segments()});
  }

  // The gradients of what layer n takes, and of the nodes that were made since the layer before it.
  void descend(int n, const Descent& by) {
    const Graph& graph = skeleton_.graph(n);
    const int first = skeleton_.first(n);
    const bool of_penalty = by.product != Phase::backward;
    const int start = of_penalty ? 0 : below(n), count = of_penalty ? 0 : segments();
    if (n < skeleton_.last() && by.nodes[static_cast<size_t>(source(n))]) {
      const int under = lower(n, by);
      all.push_back({by.product, n, under, start, count});
      if (under >= 0) {
        if (layer(n).halved) all.push_back({by.sums, n, under, start, count});
        if (of_penalty ? layer(under).row_norm : apart(under)) norm_backward(by.norm, under);
        heads_backward(under);
      }
    }
    const auto collect = [&](int node) {
      if (!by.nodes[static_cast<size_t>(node)] || graph.nodes[static_cast<size_t>(node)].alone())
        return;
      all.push_back({by.collect, n, node, start, count});
      const int made = maker(n, node);
      if (made >= 0 && (of_penalty ? layer(made).row_norm : apart(made)))
        norm_backward(by.norm, made);
      heads_backward(made);
    };
    for (int j = static_cast<int>(graph.joins.size()) - 1; j >= 0; --j)
      if (graph.joins[static_cast<size_t>(j)].before == n - first) collect(graph.join_node(j));
    collect(n - first);
  }

 private:
  const Skeleton& skeleton_;
  const bool of_g_;
};

// What penalties add to D's update between its backward phases and that of its weights. `done`: the
// nodes whose gradients there are.
void add_penalty(const Skeleton& skeleton, Phases& phases, const std::vector<bool>& done) {
  const int g = skeleton.g_layers, last = skeleton.last(), topmost = skeleton.topmost();
  const auto add = [&](Phase::Work work, int n, int other) {
    phases.all.push_back({work, n, other, 0, 0});
  };
  const auto row_norm = [&](int n) { return phases.layer(n).row_norm; };
  Descent slope{Phase::slope, Phase::slope, Phase::slope_collect, Phase::norm_bend, done};
  slope.nodes.flip();
  for (int n = last; n >= g; --n) phases.descend(n, slope);
  add(Phase::direction, g, -1);
  for (int n = g; n < last; ++n) {
    phases.gather(Phase::gather_tangent, n, 0, 0, false);
    add(Phase::tangent, n, -1);
    if (row_norm(n)) add(Phase::norm_tangent, n, -1);
  }
  const Descent bend{Phase::bend, Phase::bend_sums, Phase::collect_bend, Phase::norm_bend, done};
  if (topmost == last) {
    const int lower = phases.lower(last, bend);
    phases.gather(Phase::gather_tangent, last, 0, 0, false);
    add(Phase::tangent, last, lower);
    if (lower >= 0 && row_norm(lower)) add(Phase::norm_bend, lower, -1);
  }
  for (int n = topmost; n > g; --n) phases.descend(n, bend);
}

}  // namespace

std::vector<Phase> phases_of(const Skeleton& skeleton, bool of_g, bool more) {
  const int g = skeleton.g_layers, last = skeleton.last();
  Phases phases(skeleton, of_g);
  const int from = phases.from(), segments = phases.segments();
  const auto add = [&](const Phase& phase) { phases.all.push_back(phase); };
  if (more) {
    add({Phase::inputs, 0, -1, 0, 0});
    for (int n = 0; n < g; ++n) phases.forward(n, 1, 1, false);
  }
  if (!of_g) {
    add({Phase::inputs, 0, -1, 0, 0});
    // G does not change before its own update, so both its batches go through it at once.
    for (int n = 0; n < g; ++n) phases.forward(n, 0, 1, true);
    // Products of the first layer lie between others, as the points do.
    if (skeleton.parts)
      add({Phase::join, g, -1, kFake, 1});
    else if (skeleton.shared_fakes)
      add({Phase::share, g, -1, kFake, 1});
    if (skeleton.between && (!skeleton.lerped || last == g || skeleton.topmost() >= g))
      add({Phase::points, g, -1, 0, 0});
  }
  // After the update of D, whose embeddings have moved.
  if (of_g && skeleton.parts) add({Phase::join, g, -1, kFakeForG, 1});
  const size_t of_d = phases.all.size();
  for (int n = g; n < last; ++n) phases.forward(n, from, segments, false);
  phases.gather(Phase::gather, last, from, segments, false);

  Descent back{Phase::backward, Phase::sums, Phase::collect, Phase::norm_backward,
               skeleton.d.needed(of_g)};
  const int lower = phases.lower(last, back);
  add({Phase::head, last, lower, from, segments});
  // The head goes by rows, and statistics need whole features.
  if (lower >= 0 && (phases.layer(lower).norm || phases.layer(lower).row_norm))
    phases.norm_backward(Phase::norm_backward, lower);
  phases.heads_backward(lower);
  for (int n = last; n >= g; --n) phases.descend(n, back);
  const std::vector<bool> done = back.nodes;
  if (of_g) {
    if (skeleton.parts) {
      add({Phase::split, g, g - 1, from, segments});
      if (phases.apart(g - 1)) phases.norm_backward(Phase::norm_backward, g - 1);
      phases.heads_backward(g - 1);
    }
    back.nodes = skeleton.g.needed(false);
    for (int n = g - 1; n >= 0; --n) phases.descend(n, back);
  }
  const size_t there = phases.all.size();
  if (!of_g && skeleton.penalised) add_penalty(skeleton, phases, done);
  const bool tables = of_g ? skeleton.g_embedded > 0 : skeleton.d_embedded > 0;
  if (tables) add({Phase::tables, of_g ? 0 : g, -1, of_g ? 1 : 0, segments});
  add({Phase::update, of_g ? 0 : g, of_g ? g : last + 1, of_g ? 1 : 0, segments});
  for (size_t i = of_d; !of_g && i < phases.all.size(); ++i)
    phases.all[i].front =
        skeleton.between && (i < there || i + (tables ? 2 : 1) >= phases.all.size());
  if (of_g ? skeleton.g_clipped : skeleton.d_clipped)
    for (const Phase::Work work : {Phase::squares, Phase::clip})
      add({work, of_g ? 0 : g, -1, 0, 0});
  return phases.all;
}

PhaseReport report(const Skeleton& skeleton, const Phase& phase, bool of_g, int64_t batch,
                   bool again) {
  const bool in_g = phase.layer < skeleton.g_layers;
  const bool lerped =
      skeleton.lerped && phase.work == Phase::forward && phase.layer == skeleton.g_layers;
  const int more =
      (phase.shared && !skeleton.shared_fakes ? 1 : 0) + (phase.front && !lerped ? 1 : 0);
  const int segments = phase.of_penalty() ? 1 : phase.segments + more;
  const auto work = [&](int n) {
    const Skeleton::Layer& l = skeleton.layers[static_cast<size_t>(n)];
    const int64_t rows = n < skeleton.g_layers ? batch : batch / skeleton.pack;
    return 2.0 * static_cast<double>(rows) * segments * static_cast<double>(l.in) *
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
    case Phase::heads:
      return {(phase.shared ? "both: " : update) + "G heads", 0};
    case Phase::moments_sums:
      return {update + "G moments, sums", 0};
    case Phase::moments:
      return {update + "G moments", 0};
    case Phase::heads_backward:
      return {update + "G heads backward", 0};
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
    case Phase::share:
      return {update + "G's samples", 0};
    case Phase::split:
      return {update + "G's gradient", 0};
    case Phase::tables:
      return {update + network + " embeddings",
              2.0 * static_cast<double>(batch) * segments *
                  static_cast<double>(skeleton.layers[static_cast<size_t>(phase.layer)].out) *
                  static_cast<double>(in_g ? skeleton.g_embedded : skeleton.d_embedded)};
    case Phase::gather:
    case Phase::gather_tangent:
      return {(phase.shared ? "both: " : update) + network + " join " +
                  std::to_string(phase.other) + (phase.work == Phase::gather ? "" : ", tangents"),
              0};
    case Phase::collect:
    case Phase::slope_collect:
    case Phase::collect_bend:
      return {update + network + " node " + std::to_string(phase.other) +
                  (phase.work == Phase::collect         ? ", gradients"
                   : phase.work == Phase::slope_collect ? ", slope"
                                                        : ", bend"),
              0};
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
