// The nodes of a network in memory; step/graph.h says what they are.
#pragma once

#include <stdint.h>

#include <vector>

namespace fastgan::cpu::step {

struct Field;
struct Layer;

// Where a join is made.
struct Join {
  Field* field;
  bool adds;
  std::vector<const Field*> of;
};

// From column `at` on a field's gradients are a share of those of a node.
struct Share {
  const Field* field;
  int64_t at;
};

struct Node {
  Field* field;
  const Layer* maker;  // the layer that its gradient goes on to
  bool kept;           // a layer's product is in the node's own gradients, as a first share
  std::vector<Share> shares;
};

}  // namespace fastgan::cpu::step
