// Who takes what within a network. No torch here.
//
// The nodes of a network of L layers are, by their numbers: 0 its input, 1 to L what its layers
// make, then its joins, sums or concatenations of nodes before them. A layer takes one of them.
//
// Forward, a join is made once what it is of is there. Backward, the gradient of a node that one
// layer alone takes is that layer's product. Of one that several take it is the sum of their
// shares, in the order of the takers: layers, then joins.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace fastgan {

struct Graph {
  struct Node {
    std::vector<int> layers, joins;  // that take it, a join as often as it does
    bool alone() const { return layers.size() == 1 && joins.empty(); }
  };
  struct Join {
    int before;  // layers
    std::vector<int> of;
  };
  std::vector<Node> nodes;
  std::vector<int> sources;  // of the layers
  std::vector<Join> joins;

  int layers() const { return static_cast<int>(sources.size()); }
  int join_node(int join) const { return layers() + 1 + join; }
  const Node& source(int layer) const {
    return nodes[static_cast<size_t>(sources[static_cast<size_t>(layer)])];
  }
  // Whether a layer's product is the gradient of its input or of what another layer makes.
  bool direct(int layer) const {
    return source(layer).alone() && sources[static_cast<size_t>(layer)] <= layers();
  }
  bool chain() const {
    for (int n = 0; n < layers(); ++n)
      if (sources[static_cast<size_t>(n)] != n) return false;
    return true;
  }
  // The nodes whose gradients an update of the network's layers needs; `input`: of its input, too.
  std::vector<bool> needed(bool input) const {
    std::vector<bool> all(nodes.size(), true);
    all[0] = input;
    for (size_t j = 0; j < joins.size(); ++j) {
      bool any = false;
      for (const int node : joins[j].of) any = any || all[static_cast<size_t>(node)];
      all[static_cast<size_t>(join_node(static_cast<int>(j)))] = any;
    }
    return all;
  }
};

template <class Network>
Graph graph_of(const Network& network) {
  Graph graph;
  for (size_t n = 0; n < network.layers.size(); ++n) {
    const int64_t source = network.layers[n].source;
    graph.sources.push_back(static_cast<int>(source < 0 ? static_cast<int64_t>(n) : source));
  }
  for (const auto& join : network.joins)
    graph.joins.push_back({static_cast<int>(join.before), {join.nodes.begin(), join.nodes.end()}});
  graph.nodes.resize(1 + network.layers.size() + network.joins.size());
  for (int n = 0; n < graph.layers(); ++n)
    graph.nodes[static_cast<size_t>(graph.sources[static_cast<size_t>(n)])].layers.push_back(n);
  for (size_t j = 0; j < graph.joins.size(); ++j)
    for (const int node : graph.joins[j].of)
      graph.nodes[static_cast<size_t>(node)].joins.push_back(static_cast<int>(j));
  return graph;
}

}  // namespace fastgan
