// The register peak of the cores: multiply-adds with no memory in sight, per instruction set and
// precision, GFLOP/s.
//
// It is what a perfect kernel could reach, so the harness divides by it. Turbo and neighbours move
// it: it is measured beside every run, never looked up.
//
//   fma_peak CPU [CPU...]      prints {"fp32": {isa: {"one": x, "all": y}}, "bf16": {...}}
//
// "one" is the first cpu alone, "all" the mean of a core when every given cpu works at once. An
// instruction set that this cpu or this compiler lacks is left out.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#  include <pthread.h>
#  include <sched.h>
#endif

#if defined(__x86_64__)
#  include <immintrin.h>
#elif defined(__aarch64__)
#  include <arm_neon.h>
#endif
#if defined(__linux__) && (defined(__aarch64__) || defined(__x86_64__))
#  include <sys/syscall.h>
#  include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#  include <sys/auxv.h>
#endif

namespace {

constexpr int kIterations =
    100000;  // about a millisecond: short enough to fall between two time slices
constexpr int kRepeats = 25;

using Clock = std::chrono::steady_clock;
using Kernel = double (*)(int iterations);  // returns the floating-point operations done

bool pin(int cpu) {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
#else
  (void)cpu;
  return true;
#endif
}

#define REPEAT12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

// Twelve independent chains hide the latency of two or more multiply-add pipes and leave 16
// registers enough room. The empty asm makes every chain's value used and its inputs unknown, so
// nothing folds away and nothing is stored.
#define DECLARE(i) V a##i = one;
#define STEP(i) a##i = a##i * x + y;
#define KEEP(i) asm volatile("" : "+" FASTGAN_VECTOR_REGISTER(a##i));
#define FMA_BODY(LANES)                                                              \
  using V [[gnu::vector_size(LANES * 4)]] = float;                                   \
  V one = {}, x = {}, y = {};                                                        \
  one += 1.0f;                                                                       \
  x += 0.5f;                                                                         \
  y += 0.25f;                                                                        \
  asm volatile("" : "+" FASTGAN_VECTOR_REGISTER(x), "+" FASTGAN_VECTOR_REGISTER(y)); \
  REPEAT12(DECLARE)                                                                  \
  for (int n = 0; n < iterations; ++n) {                                             \
    REPEAT12(STEP)                                                                   \
    REPEAT12(KEEP)                                                                   \
  }                                                                                  \
  return 12.0 * 2 * LANES * iterations;

#if defined(__x86_64__)
#  define FASTGAN_VECTOR_REGISTER "v"

[[gnu::target("avx512f,fma")]] double fp32_avx512(int iterations){FMA_BODY(16)}
#  undef FASTGAN_VECTOR_REGISTER
#  define FASTGAN_VECTOR_REGISTER "x"
[[gnu::target("avx2,fma")]] double fp32_avx2(int iterations) {
  FMA_BODY(8)
}
double fp32_baseline(int iterations){FMA_BODY(4)}
#  if (defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10)
#    define FASTGAN_HAS_BF16 1
#    define DECLARE_BF16(i) __m512 a##i = _mm512_setzero_ps();
#    define STEP_BF16(i)                   \
      a##i = _mm512_dpbf16_ps(a##i, x, y); \
      asm volatile("" : "+v"(a##i));
[[gnu::target("avx512f,avx512bw,avx512vl,avx512bf16")]] double bf16_avx512(int iterations) {
  __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80), y = (__m512bh)_mm512_set1_epi16(0x3000);
  REPEAT12(DECLARE_BF16)
  for (int n = 0; n < iterations; ++n) {
    REPEAT12(STEP_BF16)
  }
  return 12.0 * 2 * 32 * iterations;
}
#  endif

#  if defined(__linux__) && \
      ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#    define FASTGAN_HAS_AMX 1
bool amx_permitted() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

[[gnu::target("amx-tile,amx-bf16")]] double bf16_amx(int iterations) {
  // Palette 1: eight tiles of 16 rows by 64 bytes.
  alignas(64) unsigned char config[64] = {};
  config[0] = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = 64;
    config[48 + tile] = 16;
  }
  alignas(64) static const unsigned char zeros[16 * 64] = {};
  asm volatile(""
               :
               : "r"(config)
               : "memory");  // GCC 12 believes that ldtilecfg reads 8 bytes and drops the rest
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  const int blocks = iterations / 4;
  for (int n = 0; n < blocks; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 2 * 16 * 16 * 32 * blocks;
}
#  endif

#elif defined(__aarch64__)
#  define FASTGAN_VECTOR_REGISTER "w"
// Newer arm64 cores have four pipes of latency four: sixteen chains at least, and 32 registers
// hold 24.
#  define REPEAT24(X) \
    REPEAT12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)
double fp32_neon(int iterations) {
#  define DECLARE_NEON(i) float32x4_t a##i = vdupq_n_f32(1.0f);
#  define STEP_NEON(i)            \
    a##i = vfmaq_f32(a##i, x, y); \
    asm volatile("" : "+w"(a##i));
  float32x4_t x = vdupq_n_f32(0.5f), y = vdupq_n_f32(1e-6f);
  REPEAT24(DECLARE_NEON)
  for (int n = 0; n < iterations; ++n) {
    REPEAT24(STEP_NEON)
  }
  return 24.0 * 2 * 4 * iterations;
}

#  if defined(__linux__) && \
      ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 10))
#    define FASTGAN_HAS_BF16 1
#    define STEP_BFMMLA(i)                                             \
      asm volatile(".arch armv8.6-a+bf16\n bfmmla %0.4s, %1.8h, %2.8h" \
                   : "+w"(a##i)                                        \
                   : "w"(x), "w"(y));
double bf16_neon(int iterations) {
  float32x4_t x = vdupq_n_f32(0.0f), y = vdupq_n_f32(0.0f);
  REPEAT24(DECLARE_NEON)
  for (int n = 0; n < iterations; ++n) {
    REPEAT24(STEP_BFMMLA)
  }
  return 24.0 * 2 * 16 * iterations;
}
bool has_bfmmla() {
  constexpr unsigned long kHwcap2Bf16 = 1ul << 14;
  return getauxval(AT_HWCAP2) & kHwcap2Bf16;
}
#  endif

#else
#  define FASTGAN_VECTOR_REGISTER "m"
double fp32_baseline(int iterations) { FMA_BODY(4) }
#endif

double best_of(Kernel kernel) {
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto start = Clock::now();
    const double work = kernel(kIterations);
    best = std::max(best, work / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best / 1e9;
}

struct Peak {
  double one, all;
};

Peak measure(Kernel kernel, const std::vector<int>& cpus) {
  Peak peak{0, 0};
  std::thread([&] {
    pin(cpus[0]);
    peak.one = best_of(kernel);
  }).join();
  std::atomic<size_t> ready{0};
  std::vector<double> rates(cpus.size());
  std::vector<std::thread> team;
  for (size_t i = 0; i < cpus.size(); ++i) {
    team.emplace_back([&, i] {
      pin(cpus[i]);
      ++ready;
      while (ready < cpus.size()) std::this_thread::yield();
      rates[i] = best_of(kernel);
    });
  }
  for (auto& member : team) member.join();
  for (double rate : rates) peak.all += rate / cpus.size();
  return peak;
}

void add(std::string& group, const char* isa, const Peak& peak) {
  char text[128];
  std::snprintf(text, sizeof text, "%s\"%s\": {\"one\": %.1f, \"all\": %.1f}",
                group.empty() ? "" : ", ", isa, peak.one, peak.all);
  group += text;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> cpus;
  for (int i = 1; i < argc; ++i) cpus.push_back(std::atoi(argv[i]));
  if (cpus.empty()) {
    std::fprintf(stderr, "usage: fma_peak CPU [CPU...]\n");
    return 2;
  }
  std::string fp32, bf16;
#if defined(__x86_64__)
  add(fp32, "baseline", measure(fp32_baseline, cpus));
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    add(fp32, "avx2", measure(fp32_avx2, cpus));
  if (__builtin_cpu_supports("avx512f")) add(fp32, "avx512", measure(fp32_avx512, cpus));
#  ifdef FASTGAN_HAS_BF16
  if (__builtin_cpu_supports("avx512bf16")) add(bf16, "avx512_bf16", measure(bf16_avx512, cpus));
#  endif
#  ifdef FASTGAN_HAS_AMX
  // CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE.
  unsigned a = 7, b = 0, c = 0, d = 0;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if ((d >> 22 & 1) && (d >> 24 & 1) && amx_permitted())
    add(bf16, "amx_bf16", measure(bf16_amx, cpus));
#  endif
#elif defined(__aarch64__)
  add(fp32, "neon", measure(fp32_neon, cpus));
#  ifdef FASTGAN_HAS_BF16
  if (has_bfmmla()) add(bf16, "neon_bf16", measure(bf16_neon, cpus));
#  endif
#else
  add(fp32, "baseline", measure(fp32_baseline, cpus));
#endif
  std::printf("{\"fp32\": {%s}, \"bf16\": {%s}}\n", fp32.c_str(), bf16.c_str());
}
