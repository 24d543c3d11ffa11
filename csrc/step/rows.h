// Which images an update takes. Updates of D are counted over all steps; the batches of an epoch
// follow each other in its permutation, the last may be short. Several processes share a batch, as
// World.rows of fastgan/distributed.py has it. No torch here.
#pragma once

#include <stdint.h>

#include "common/macros.h"

namespace fastgan {

FASTGAN_HD int64_t batches_per_epoch(int64_t count, int64_t batch) {
  return (count + batch - 1) / batch;
}

// The first row of an update in its epoch's permutation, and the number of rows.
FASTGAN_HD int64_t first_row(int64_t update, int64_t batch, int64_t per_epoch) {
  return update % per_epoch * batch;
}
FASTGAN_HD int64_t rows_in_update(int64_t update, int64_t count, int64_t batch, int64_t per_epoch) {
  const int64_t left = count - first_row(update, batch, per_epoch);
  return left < batch ? left : batch;
}

// The first row of a batch that is this rank's; that of the next rank is the end of them.
FASTGAN_HD int64_t first_of_rank(int64_t rows, int64_t rank, int64_t ranks) {
  return rank * rows / ranks;
}

}  // namespace fastgan
