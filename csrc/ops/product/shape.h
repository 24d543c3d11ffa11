// What a product of matrices looks like to its kernels. No torch here.
#pragma once

#include <stdint.h>

namespace fastgan {

// out[i] [rows, columns] (+)= a[i] [rows, depth] b[i] [depth, columns] for i < many, or with `sum`
// one such out of their sum. Steps are in elements; out's columns lie together, and of b either
// the columns or the terms (b_column or b_term is 1).
struct ProductShape {
  int64_t many, rows, depth, columns;
  bool sum, add;
  int64_t a_many, a_row, a_term, b_many, b_term, b_column, out_many, out_row;
};

}  // namespace fastgan
