// What other operators need of those that draw.
#pragma once

#include "ops/random/checks.h"

namespace fastgan::cpu {

// x times its mask and the mask's scale: a new tensor.
Tensor dropped(const Dropout& drop, const Tensor& x);

}  // namespace fastgan::cpu
