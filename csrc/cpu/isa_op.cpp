// The operator that says which instruction set was chosen.
#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"

namespace fastgan::cpu {

namespace {

std::string isa_op() { return isa_name(isa()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_op));
}

}  // namespace fastgan::cpu
