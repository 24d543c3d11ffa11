// What a generator of a table's rows is made of, for its kernels. No torch here.
#pragma once

#include <stdint.h>

namespace fastgan {

// Heads that stand together: `many` of `size` numbers each.
struct HeadBlock {
  bool softmax;
  int64_t size, many;
};

struct HeadsShape {
  int64_t batch, row, choices;
  const HeadBlock* blocks;
  int64_t count;
  float temperature;
};

// A layer's units over a batch; steps between rows in elements.
struct NormShape {
  int64_t batch, width, x_row, out_row, grad_row;
};

struct SurpriseShape {
  int64_t row;
  float scale;
};

}  // namespace fastgan
