// Which instruction set the CPU kernels use. Decided once, at the first call.
#pragma once

namespace fastgan::cpu {

// Each has what those before it have. amx: AVX-512 with its bfloat16 dot product and AMX's bfloat16
// tiles.
enum class Isa { baseline, avx2, avx512, amx };

// The best set that this processor has and this build contains, or the one that the environment
// variable FASTGAN_ISA (baseline, avx2, avx512, amx) names. Throws std::runtime_error if
// FASTGAN_ISA names an unknown or missing one.
Isa isa();

// Whether this processor and this build offer a set.
bool has_isa(Isa isa);

// avx512 with the bfloat16 dot product (vdpbf16ps).
bool has_avx512_bf16();

const char* isa_name(Isa isa);

}  // namespace fastgan::cpu
