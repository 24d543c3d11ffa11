// Which instructions a step is run with.
#include "cpu/step/job.h"

namespace fastgan::cpu::step {

Instructions best_for(Precision precision) {
  if (precision != Precision::bf16)
    return isa() == Isa::amx ? Instructions::fp32_amx : Instructions::fp32;
  for (Instructions best : {Instructions::bf16_amx, Instructions::bf16_avx512})
    if (has_instructions(best)) return best;
  return Instructions::bf16_emulated;
}

bool has_instructions(Instructions instructions) {
  if (on_vectors(instructions)) return true;
  if (instructions == Instructions::bf16_avx512) return isa() >= Isa::avx512 && has_avx512_bf16();
  return isa() == Isa::amx;
}

const char* instructions_name(Instructions instructions) {
  const Isa vectors = isa() == Isa::amx ? Isa::avx512 : isa();
  switch (instructions) {
    case Instructions::fp32:
      return isa_name(vectors);
    case Instructions::bf16_emulated:
      return vectors == Isa::avx512 ? "avx512, bf16 operands emulated"
             : vectors == Isa::avx2 ? "avx2, bf16 operands emulated"
                                    : "baseline, bf16 operands emulated";
    case Instructions::bf16_avx512:
      return "avx512_bf16";
    default:
      return isa_name(Isa::amx);
  }
}

void run(Job& job) {
  const bool emulated = job.instructions == Instructions::bf16_emulated;
  Work work = emulated ? baseline_emulated::run_thread : baseline::run_thread;
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) work = emulated ? avx512_emulated::run_thread : avx512::run_thread;
  if (isa() == Isa::avx2) work = emulated ? avx2_emulated::run_thread : avx2::run_thread;
  if (job.instructions == Instructions::bf16_avx512) work = avx512_bf16::run_thread;
  if (job.instructions == Instructions::bf16_amx) work = amx::run_thread;
  if (job.instructions == Instructions::fp32_amx) work = amx_fp32::run_thread;
#endif
  run_team(static_cast<int>(job.threads), work, &job);
}

}  // namespace fastgan::cpu::step
