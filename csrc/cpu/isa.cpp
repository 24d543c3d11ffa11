#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#  include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace fastgan::cpu {

namespace {

bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  if (!(d & bf16) || !(d & tile)) return false;
  // The tiles' registers are large; Linux hands them out to processes that ask.
  constexpr long request = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}

constexpr Isa all[] = {Isa::amx, Isa::avx512, Isa::avx2, Isa::baseline};  // best first

Isa choose() {
  const char* forced = std::getenv("FASTGAN_ISA");
  if (forced == nullptr || *forced == '\0') {
    for (Isa candidate : all) {
      if (has_isa(candidate)) return candidate;
    }
  }
  std::string available;
  for (Isa candidate : all) {
    if (!has_isa(candidate)) continue;
    if (std::string(forced) == isa_name(candidate)) return candidate;
    available += available.empty() ? "" : ", ";
    available += isa_name(candidate);
  }
  throw std::runtime_error(
      "FASTGAN_ISA is '" + std::string(forced) +
      "', which this processor or this build does not have; set it to one of " + available +
      ", or unset it");
}

}  // namespace

bool has_isa(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx: {
      static const bool amx = has_avx512_bf16() && has_amx();
      return amx;
    }
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    case Isa::baseline:
      return true;
    default:
      return false;
  }
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return has_isa(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace fastgan::cpu
