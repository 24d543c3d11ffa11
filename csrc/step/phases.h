// The phases of a step, in order, for both devices. No torch here.
//
// Each phase is work whose parts need nothing of each other:
//     inputs    what an update takes from outside: images, latents, on the CPU masks
//     forward   y = dropout(activation(x weight^T + bias)), for all segments that may share it
//     norm      the norm's statistics and what follows them, where they have a phase of their own
//     norm_sums, norm_backward_sums  where ranks share a batch, before a BatchNorm's phases: the
//               sums of this rank's rows, for which a part of an update ends
//     moments_sums  likewise before `moments`
//     heads     what G's last layer has made becomes its output, where it has heads
//     head      D's last layer, of width 1: scores, losses, their gradients, and the gradient of
//               the field below through the activation and dropout that made it
//     backward  the same gradient for any other layer
//     sums      the second half of a backward sum joins the first
//     norm_backward  from there through BatchNorm
//     moments   of the columns of G's output, for the term of its loss that is of these
//     heads_backward from the gradient of G's output through its heads
//     update    gradients of the weights, consumed by Adam where they stand
//     join      rows of D's input from what G has made and the samples' conditions, where D's input
//               is more than what G makes: with conditions, or several of its rows side by side
//     split     the gradient of what G has made from that of D's input
//     tables    the gradient of columns that embeddings have made
//     gather    what a layer takes from several nodes of its network (graph.h)
//     collect   the gradient of a node that several take, and what made it as in backward
//     squares, clip  where a gradient's norm is bounded, the update leaves its numbers in memory:
//               their squares are summed, and Adam takes them as long as they may be
// With penalties on D's slope (cpu/step/penalty.h has the mathematics), on the samples that have
// one:
//     points    the points between real and fake samples, where D's weights or D's first layer need
//               them themselves
//     slope     the gradient of the images; sums of two halves are joined by the next
//     direction the derivative of the penalty by that slope
//     tangent   the derivative of D in this direction, forward through a layer
//     bend, bend_sums  what curved activations make of it, backward through a layer
//     norm_tangent, norm_bend  both through a LayerNorm
//     slope_collect, gather_tangent, collect_bend  of each of these what gather and collect are of
//               rows and gradients
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "step/graph.h"
#include "step/penalty.h"
#include "step/plan.h"

namespace fastgan {

struct Phase {
  enum Work {
    inputs,
    forward,
    norm,
    heads,
    head,
    backward,
    sums,
    norm_backward,
    moments_sums,
    moments,
    heads_backward,
    norm_sums,
    norm_backward_sums,
    update,
    squares,
    clip,
    join,
    share,
    split,
    tables,
    gather,
    collect,
    points,
    slope,
    direction,
    tangent,
    bend,
    bend_sums,
    norm_tangent,
    norm_bend,
    slope_collect,
    gather_tangent,
    collect_bend
  } work;
  int layer;  // of an update: the first. Layers are counted through both networks, G's first
  int other;  // head, backward, sums: the layer that made the field below, or -1; update: past the
              // last; gather: the join of the layer's network; collect: the node
  int from, segments;    // as the layer counts those of the field below it
  bool shared = false;   // G's update, if this D's update is followed by it, has one segment more
  bool trained = false;  // norm_backward: whether BatchNorm's own weights are updated
  bool front = false;    // where points between are penalised, has one segment more before `from`

  // Of the samples that are penalised; if there are none, it is left out.
  bool of_penalty() const { return work >= points; }
  bool of_nodes() const {
    return work == gather || work == collect || work == slope_collect || work == gather_tangent ||
           work == collect_bend;
  }
  // Whether what follows needs the sums of other ranks.
  bool ends_part() const {
    return work == norm_sums || work == norm_backward_sums || work == moments_sums;
  }
  // Whether a rank without rows has a part in it, too.
  bool of_all_ranks() const {
    return ends_part() || work == norm || work == norm_backward || work == moments;
  }
};

// What decides the phases.
struct Skeleton {
  struct Layer {
    int64_t in, out;
    bool norm;
    bool halved;  // its backward sums are taken in two halves
    bool curved;  // its activation or its norm has a second derivative
    bool row_norm;
  };
  std::vector<Layer> layers;
  Graph g, d;
  int g_layers = 0;
  // BatchNorm takes no phase of its own where the product before it has whole features.
  bool joined = false;
  bool summed = false;  // moments are those of several ranks; BatchNorms are not joined then
  bool g_clipped = false, d_clipped = false;  // gradients are, by their norm
  bool penalised = false, between = false;    // some of D's updates; at points between
  bool lerped = false;   // at these, products of D's first layer are made from those of the others
  bool heads = false;    // G's output has heads
  bool moments = false;  // its loss has a term of its moments
  bool shared_fakes = false;  // G's update has the samples of D's last one
  bool parts = false;         // D's input has columns of conditions, or several rows of G's output
  int64_t pack = 1;           // so many
  int64_t g_embedded = 0, d_embedded = 0;  // columns of embeddings

  int last() const { return static_cast<int>(layers.size()) - 1; }
  const Graph& graph(int layer) const { return layer < g_layers ? g : d; }
  int first(int layer) const { return layer < g_layers ? 0 : g_layers; }
  // D's last layer that is curved, or the one before D; where D is no chain its last.
  int topmost() const;
};

// The phases of an update of D, or of G; `more`: of a later one of G's in a step, for which nothing
// has gone through G yet.
std::vector<Phase> phases_of(const Skeleton& skeleton, bool of_g, bool more = false);

// A phase as the profile tells it: its name, and the floating-point operations of its products.
struct PhaseReport {
  std::string name;
  double work;
};
PhaseReport report(const Skeleton& skeleton, const Phase& phase, bool of_g, int64_t batch,
                   bool more = false);

template <class Layer, class Halved>
Skeleton skeleton_of(const PlannedNetwork<Layer>& g, const PlannedNetwork<Layer>& d, bool joined,
                     const Halved& halved) {
  Skeleton skeleton;
  skeleton.joined = joined;
  skeleton.g_layers = static_cast<int>(g.layers.size());
  skeleton.g = graph_of(g);
  skeleton.d = graph_of(d);
  skeleton.g_clipped = g.optimizer.longest_grad < INFINITY;
  skeleton.d_clipped = d.optimizer.longest_grad < INFINITY;
  skeleton.heads = !g.heads.empty();
  skeleton.parts = !d.parts.empty() || d.pack > 1;
  skeleton.pack = d.pack;
  for (const PlannedPart& part : g.parts) skeleton.g_embedded += part.embeds ? part.width : 0;
  for (const PlannedPart& part : d.parts) skeleton.d_embedded += part.embeds ? part.width : 0;
  for (const PlannedNetwork<Layer>* network : {&g, &d})
    for (const Layer& l : network->layers)
      skeleton.layers.push_back(
          {l.in, l.out, l.norm, halved(l), curved(l.activation) || l.row_norm, l.row_norm});
  return skeleton;
}

}  // namespace fastgan
