// The sizes of one layer. No torch here.
#pragma once

#include <stdint.h>

namespace fastgan {

// y [batch, out] from x [batch, in] and weight [out, in].
struct LinearShape {
  int64_t batch, in, out;
};

}  // namespace fastgan
