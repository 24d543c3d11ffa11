// Reads the plan of a fused step: two tables of numbers, and the networks' own tensors, which the
// first table names by their places in a list. fastgan/engines/fused writes them, in the order of
// decode.cpp.
#pragma once

#include "ops/checks.h"
#include "step/arguments.h"
#include "step/plan.h"

namespace fastgan {

// What becomes of each number, for the bounds in decode.cpp.
constexpr int64_t kMostFeatures = int64_t{1} << 24;  // of a layer, and images of a batch
constexpr int64_t kMostValues = int64_t{1} << 34;    // of a field's batch: a draw has 2**34 words
constexpr int64_t kMostDSteps = int64_t{1} << 20;
constexpr int64_t kMostGSteps = int64_t{1} << 12;
constexpr int64_t kMostImages = int64_t{1} << 38;
constexpr int64_t kMostLayers = 1024;             // of a network
constexpr int64_t kMostParts = 64;                // of an input
constexpr int64_t kMostHeads = int64_t{1} << 13;  // modules of a network
constexpr int64_t kMostJoins = 1024;              // of a network
constexpr int64_t kMostJoined = 64;               // nodes in a join
constexpr int64_t kMostDropouts = int64_t{1} << 20;

struct DecodedPlan : Plan {
  std::vector<float*> g_counters, d_counters;  // the step counters on the CPU
};

// With `state`, the list of tensors, which must be on the device of `like`; they are written down
// in `apart`. Without, only sizes are wanted and every pointer is null.
DecodedPlan decode(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* state,
                   const Tensor& like, Apart* apart);

}  // namespace fastgan
