// The layout of the step's working memory, and its phases.
#include <algorithm>

#include "common/arena.h"
#include "cpu/step/job.h"

namespace fastgan::cpu::step {

namespace {

// Whole vectors are read past the end of a row, so two lines are left free after each piece.
constexpr int64_t kLine = 64, kGap = 2 * kLine;

// Segments from kBetween on, if there are any, then `segments`; the address is that of the first of
// these.
template <class T>
T* take_segments(Arena& arena, int64_t padded, int segments, bool before, int64_t row) {
  const int64_t one = padded * row;
  T* const at = arena.take<T>((segments + (before ? 1 : 0)) * one);
  return at && before ? at + one : at;
}

bool any(const Job& job, Place place) {
  for (const PlannedPenalty& p : job.penalties)
    if (p.at == place) return true;
  return false;
}

void plan_field(Arena& arena, const Job& job, Field& field, int64_t padded, int segments,
                bool grads, bool before = false) {
  field.padded = padded;
  // An odd number of cache lines: rows a power of two apart would fall into few sets of the cache.
  field.stride = round_up(field.width, kBlock) | 16;
  const auto take = [&] {
    return take_segments<float>(arena, field.padded, segments, before, field.stride);
  };
  const bool rounded = job.instructions == Instructions::bf16_emulated;
  field.rows = field.row_factors = take();
  if (rounded) field.row_factors = take();
  if (!grads) return;
  field.grads = field.grad_factors = take();
  if (rounded) field.grad_factors = take();
}

void plan_layer(Arena& arena, Layer& layer, bool before) {
  const int64_t padded = layer.above->padded;
  const int64_t values = kSegments * padded * layer.above->stride;
  if (layer.norm) {
    layer.normed = arena.take<float>(values);
    layer.inv_std = arena.take<float>(kSegments * layer.out);
    layer.grad_gamma = arena.take<float>(round_up(layer.out, kBlock));
    layer.grad_beta = arena.take<float>(round_up(layer.out, kBlock));
  }
  if (layer.row_norm) {
    const auto take = [&](int64_t row) {
      return take_segments<float>(arena, padded, kSegments, before, row);
    };
    layer.normed = take(layer.above->stride);
    layer.norm_grads = take(layer.above->stride);
    layer.row_std = take(1);
  }
  if (keeps_slope(layer.activation))
    layer.slopes = take_segments<float>(arena, padded, kSegments, before, layer.above->stride);
  if (layer.drop) {
    layer.keep = take_segments<uint8_t>(arena, padded, kSegments, before, layer.out);
    arena.take<uint8_t>(kBlock);
  }
}

// Calls use(parameter, its numbers) for each.
template <class Net, class Use>
void each_parameter(Net& network, Use use) {
  for (auto& l : network.layers) {
    use(l.weight, l.in * l.out);
    use(l.bias, l.out);
    if (!l.norm && !l.row_norm) continue;
    use(l.gamma, l.out);
    use(l.beta, l.out);
  }
  for (auto& part : network.parts)
    if (part.embeds) use(part.table, part.classes * part.width);
}

// Where the gradients of a network wait, if they do: for their norm, or for those of other ranks.
void plan_grads(Arena& arena, const Job& job, Network& network) {
  if (job.part == Part::steps) {
    if (network.optimizer.longest_grad == INFINITY) return;
    each_parameter(network, [&](Parameter& p, int64_t n) { p.grad = arena.take<float>(n); });
  } else if (&network == (job.of_g() ? &job.g : &job.d)) {
    float* at = job.gradients;
    each_parameter(network, [&](Parameter& p, int64_t n) {
      if (!p.value) return;
      p.grad = at;
      at += n;
    });
  }
}

// In which the squares of gradients are summed; at most.
int64_t chunks_of(const Network& network) {
  int64_t chunks = 0;
  each_parameter(network,
                 [&](const Parameter&, int64_t n) { chunks += (n + kGradChunk - 1) / kGradChunk; });
  return chunks;
}

void plan_penalties(Arena& arena, Job& job, bool between, int topmost) {
  const int64_t padded = job.padded(job.d);
  const auto take = [&](int64_t stride) {
    return take_segments<float>(arena, padded, kFake + 1, between, stride);
  };
  job.images.tangents = job.images.grads;
  for (Field& field : job.d_joined) {
    field.tangents = take(field.stride);
    field.bends = take(field.stride);
  }
  for (size_t i = 0; i < job.d.layers.size(); ++i) {
    Layer& layer = job.d.layers[i];
    const int n = static_cast<int>(job.g.layers.size() + i);
    layer.straight = n > topmost;
    layer.topmost = n == topmost;
    Field& above = *layer.above;
    above.tangents = take(above.stride);
    if (layer.straight) continue;
    above.bends = take(above.stride);
    if (curved(layer.activation)) layer.curves = take(above.stride);
    if (keeps_bend(layer.activation)) layer.second = take(above.stride);
    if (!layer.row_norm) continue;
    layer.norm_bends = take(above.stride);
    layer.warps = take(above.stride);
    layer.turned = take(above.stride);
  }
  for (size_t i = 0; i < job.d.layers.size(); ++i) {
    Field& shared = job.d_shared[i];
    if (job.d.layers[i].below != &shared) continue;
    shared.tangents = job.d_nodes[static_cast<size_t>(job.d.layers[i].source)].field->tangents;
    shared.bends = take(shared.stride);
  }
  job.coefficients = arena.take<float>((kFake + 1) * padded);
  job.mixes = arena.take<float>(padded);
}

// Segments as the network's input has them.
void plan_parts(Arena& arena, const Job& job, Network& network, bool between) {
  const bool of_d = &network == &job.d;
  for (PlannedPart& part : network.parts) {
    if (!part.embeds) continue;
    part.stride = round_up(part.width, kBlock) | 16;
    part.grads = take_segments<float>(arena, job.padded(network), of_d ? kSegments : 2,
                                      of_d && between, part.stride);
    part.sums = arena.take<float>(part.classes * part.width);
  }
}

void plan_terms(Arena& arena, Job& job) {
  const int64_t width = job.g.layers.back().out, padded = job.padded(job.g);
  if (job.g.hardens()) job.shares = arena.take<float>(padded * job.g.layers.back().above->stride);
  if (job.g.term(TermOf::moments)) {
    for (float** moment : {&job.output.mean, &job.output.of_mean, &job.output.of_deviation})
      *moment = arena.take<float>(round_up(width, kBlock));
    job.output.squares = arena.take<double>(2 * round_up(width, kBlock) / kBlock);
  }
  if (job.g.term(TermOf::conditional)) {
    job.surprises = arena.take<double>(padded);
    job.asked = arena.take<int64_t>(padded);
    job.asked_stride = round_up(job.g.most_asked(), 16);
    job.asked_grads = arena.take<float>(padded * job.asked_stride);
  }
}

// Fields of a network's nodes, layers between them. Of layers that take the same node the first has
// its gradients, and the others their own.
void connect(Job& job, Network& network) {
  const bool of_g = &network == &job.g;
  const Graph graph = graph_of(network);
  std::vector<Field>& between = of_g ? job.g_fields : job.d_fields;
  std::vector<Field>& joined = of_g ? job.g_joined : job.d_joined;
  std::vector<Field>& shared = of_g ? job.g_shared : job.d_shared;
  std::vector<Node>& nodes = of_g ? job.g_nodes : job.d_nodes;
  std::vector<Join>& joins = of_g ? job.g_joins : job.d_joins;
  const size_t count = network.layers.size();
  between.resize(of_g ? count - 1 : count);
  joined.resize(network.joins.size());
  shared.resize(count);
  Field& input = of_g ? job.latents : job.images;
  input.width = network.in;
  // The gradient of D's input goes on to G, through `split` where that is not all of it.
  nodes = {{&input, of_g || job.joined() ? nullptr : &job.g.layers.back(), false, {}}};
  for (size_t i = 0; i < count; ++i) {
    Layer& layer = network.layers[i];
    const bool last = of_g && i + 1 == count;
    layer.above = !last ? &between[i] : job.joined() ? &job.made : &job.images;
    layer.lift = last ? 1 : 0;
    if (!last || job.joined()) layer.above->width = layer.out;
    nodes.push_back({layer.above, &layer, false, {}});
  }
  joins.clear();
  for (size_t j = 0; j < joined.size(); ++j) {
    const PlannedJoin& join = network.joins[j];
    joined[j].width = join.width;
    joins.push_back({&joined[j], join.of == JoinOf::add, {}});
    for (const int64_t node : join.nodes)
      joins.back().of.push_back(nodes[static_cast<size_t>(node)].field);
    nodes.push_back({&joined[j], nullptr, false, {}});
  }
  for (size_t i = 0; i < count; ++i) {
    Layer& layer = network.layers[i];
    layer.source = graph.sources[i];
    Node& node = nodes[static_cast<size_t>(layer.source)];
    layer.below = node.kept ? &shared[i] : node.field;
    if (node.kept) node.shares.push_back({&shared[i], 0});
    node.kept = true;
    // A sum that is not cut is whole in one phase.
    layer.direct = graph.direct(static_cast<int>(i));
    layer.middle = layer.direct ? (layer.out + kBlock - 1) / kBlock / 2 * kBlock : 0;
  }
  for (size_t j = 0; j < joined.size(); ++j) {
    int64_t at = 0;
    for (const int64_t node : network.joins[j].nodes) {
      nodes[static_cast<size_t>(node)].shares.push_back({&joined[j], at});
      if (!joins[j].adds) at += nodes[static_cast<size_t>(node)].field->width;
    }
  }
}

// Rows of the nodes that they share are theirs, too.
void plan_shared(Arena& arena, const Job& job, Network& network, bool before) {
  const bool of_g = &network == &job.g;
  for (Layer& layer : network.layers) {
    const Field& node =
        *(of_g ? job.g_nodes : job.d_nodes)[static_cast<size_t>(layer.source)].field;
    if (layer.below == &node) continue;
    *layer.below = node;
    layer.below->grads = layer.below->grad_factors =
        take_segments<float>(arena, node.padded, of_g ? 2 : kSegments, before, node.stride);
  }
}

Skeleton skeleton(const Job& job) {
  Skeleton made =
      skeleton_of(job.g, job.d, !job.summed(), [](const Layer& l) { return l.middle > 0; });
  made.summed = job.summed();
  made.penalised = !job.penalties.empty();
  // The gradients of a part wait for those of other ranks first.
  if (job.part != Part::steps) made.g_clipped = made.d_clipped = false;
  made.between = any(job, Place::between);
  made.lerped = job.lerped;
  made.shared_fakes = job.shared_fakes;
  made.moments = job.g.term(TermOf::moments) != nullptr;
  return made;
}

}  // namespace

size_t plan_memory(Job& job, void* base) {
  Arena arena(base, kLine, kGap);
  const int64_t of_g = job.padded(job.g), of_d = job.padded(job.d);
  job.units = of_d / kRowUnit;
  for (Network* network : {&job.g, &job.d}) connect(job, *network);
  job.lerped = !job.joined() && graph_of(job.d).chain();
  const Skeleton made = skeleton(job);
  job.d_phases = phases_of(made, false);
  job.g_phases = phases_of(made, true);
  if (job.g_steps > 1) job.more_phases = phases_of(made, true, true);
  const std::vector<Phase>& of_part = !job.of_g()                ? job.d_phases
                                      : job.update > job.d_steps ? job.more_phases
                                                                 : job.g_phases;
  job.phases = of_part.data();
  job.phase_count = static_cast<int64_t>(of_part.size());

  // First: in the same place whatever the ranks, so that a move spares what G's update still needs.
  job.squares = arena.take<double>(std::max(chunks_of(job.g), chunks_of(job.d)));
  plan_field(arena, job, job.latents, of_g, 2, false);
  plan_field(arena, job, job.images, of_d, kSegments, true, made.between);
  if (job.joined()) plan_field(arena, job, job.made, of_g, kSegments, true);
  for (std::vector<Field>* fields : {&job.g_fields, &job.g_joined})
    for (Field& field : *fields) plan_field(arena, job, field, of_g, 2, true);
  for (std::vector<Field>* fields : {&job.d_fields, &job.d_joined})
    for (Field& field : *fields) plan_field(arena, job, field, of_d, kSegments, true, made.between);
  plan_shared(arena, job, job.g, false);
  plan_shared(arena, job, job.d, made.between);
  int64_t largest = 0;  // of the inputs of layers whose sums are cut, a segment
  for (Network* network : {&job.g, &job.d})
    for (Layer& layer : network->layers) {
      plan_layer(arena, layer, made.between && network == &job.d);
      if (layer.middle) largest = std::max(largest, layer.below->padded * layer.below->stride);
    }
  for (Network* network : {&job.g, &job.d}) plan_parts(arena, job, *network, made.between);
  if (made.penalised) plan_penalties(arena, job, made.between, made.topmost());
  plan_terms(arena, job);
  job.halves = arena.take<float>((made.between ? 3 : 2) * largest);
  for (Network* network : {&job.g, &job.d}) plan_grads(arena, job, *network);
  job.loss_parts = arena.take<double>(kSegments * job.units);
  job.score_parts = arena.take<double>(kSegments * job.units);
  job.right_parts = arena.take<double>(kSegments * job.units);
  job.square_parts = arena.take<double>(kSegments * job.units);
  job.gauges = arena.take<double>(job.threads * 2 * kNetworkSums);
  // The scratch also takes a block of latents or some rows of choices, and the number before them.
  const Sizes sizes = sizes_of(job.instructions);
  const int64_t drawn = std::max(kBlock * job.latents.width, kRowUnit * job.g.choices()) + 1;
  const int64_t most = std::max(sizes.left + sizes.right + sizes.held, drawn);
  job.scratch_stride = round_up(most, 16) + 16;
  job.scratch = arena.take<float>(job.threads * job.scratch_stride);
  return arena.used();
}

int64_t widest_moments(const Job& job) {
  int64_t most = job.g.term(TermOf::moments) ? job.g.layers.back().out : 0;
  for (const Network* network : {&job.g, &job.d})
    for (const Layer& l : network->layers)
      if (l.norm) most = std::max(most, l.out);
  return most;
}

int64_t gradients_of(const Network& network) {
  int64_t numbers = 0;
  each_parameter(network, [&](const Parameter& p, int64_t n) { numbers += p.value ? n : 0; });
  return numbers;
}

std::vector<PhaseReport> report(const Job& job) {
  std::vector<PhaseReport> reports;
  for (const bool of_g : {false, true})
    for (const Phase& phase : of_g ? job.g_phases : job.d_phases)
      reports.push_back(report(skeleton(job), phase, of_g, job.batch));
  for (const Phase& phase : job.more_phases)
    reports.push_back(report(skeleton(job), phase, true, job.batch, true));
  return reports;
}

}  // namespace fastgan::cpu::step
