#include "cpu/step.h"

#if defined(__x86_64__)
#  include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace fastgan::cpu::step {

namespace {

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Hands out pieces of one block of memory, or only measures them.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    // Whole vectors are read past the end of a row, so a line is left free after each piece.
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64)) + 128;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

void plan_field(Arena& arena, const Job& job, Field& field, int64_t width, int segments,
                bool grads) {
  field.width = width;
  // An odd number of cache lines: rows a power of two apart would fall into few sets of the cache.
  // Products in bfloat16 write whole panels of 32.
  const int64_t unit = job.products != Bf16::none ? 32 : 16;
  field.stride = round_up(width, unit) | 16;
  field.block = kBlock * round_up(width, unit);
  field.columns = arena.take<float>(segments * job.blocks * field.block);
  field.rows = arena.take<float>(segments * job.padded * field.stride);
  if (grads) field.grads = arena.take<float>(segments * job.padded * field.stride);
  if (job.products == Bf16::none) return;
  field.depth = round_up(width, 32);
  field.total = segments * job.padded;
  field.column_pairs = arena.take<uint16_t>(segments * job.blocks * field.depth * kBlock);
  field.row_pairs = arena.take<uint16_t>(field.depth * field.total);
  if (!grads) return;
  field.grad_rows = arena.take<uint16_t>(field.total * field.depth);
  field.grad_columns = arena.take<uint16_t>(field.depth * field.total);
}

void plan_layer(Arena& arena, const Job& job, Layer& layer, Field& below, Field& above, int lift) {
  layer.below = &below;
  layer.above = &above;
  layer.lift = lift;
  if (job.products != Bf16::none) {
    layer.weight_rows = arena.take<uint16_t>(round_up(layer.out, 32) * round_up(layer.in, 32));
    layer.weight_pairs = arena.take<uint16_t>(round_up(layer.out, 32) * round_up(layer.in, 32));
  }
  if (layer.norm) {
    layer.normed = arena.take<float>(kSegments * job.padded * above.stride);
    layer.inv_std = arena.take<float>(kSegments * layer.out);
    layer.grad_gamma = arena.take<float>(round_up(layer.out, kBlock));
    layer.grad_beta = arena.take<float>(round_up(layer.out, kBlock));
  }
  if (layer.drop) {
    layer.keep = arena.take<uint8_t>(kSegments * job.padded * layer.out + kBlock);
    layer.keep_columns =
        arena.take<uint32_t>(kSegments * job.blocks * kBlock * (round_up(layer.out, 64) / 4));
  }
}

}  // namespace

size_t plan_memory(Job& job, void* base) {
  Arena arena(base);
  job.blocks = (job.batch + kBlock - 1) / kBlock;
  job.padded = job.blocks * kBlock;
  const size_t g = job.g.layers.size(), d = job.d.layers.size();
  job.g_fields.resize(g - 1);
  job.d_fields.resize(d);
  plan_field(arena, job, job.latents, job.g.layers.front().in, 2, false);
  plan_field(arena, job, job.images, job.d.layers.front().in, kSegments, true);
  for (size_t i = 0; i + 1 < g; ++i)
    plan_field(arena, job, job.g_fields[i], job.g.layers[i].out, 2, true);
  for (size_t i = 0; i < d; ++i)
    plan_field(arena, job, job.d_fields[i], job.d.layers[i].out, kSegments, true);
  for (size_t i = 0; i < g; ++i) {
    const bool last = i + 1 == g;
    plan_layer(arena, job, job.g.layers[i], i ? job.g_fields[i - 1] : job.latents,
               last ? job.images : job.g_fields[i], last ? 1 : 0);
  }
  for (size_t i = 0; i < d; ++i)
    plan_layer(arena, job, job.d.layers[i], i ? job.d_fields[i - 1] : job.images, job.d_fields[i],
               0);
  job.loss_parts = arena.take<double>(kSegments * job.blocks);
  // The scratch also takes a block of latents.
  const int64_t latents = kBlock * job.latents.width;
  job.scratch_stride = round_up(latents > kScratch ? latents : kScratch, 16) + 16;
  job.scratch = arena.take<float>(job.threads * job.scratch_stride);
  return arena.used();
}

int64_t phase_count(const Job& job) {
  const int64_t g = static_cast<int64_t>(job.g.layers.size());
  const int64_t d = static_cast<int64_t>(job.d.layers.size());
  return 1 + (g + d + d - 1 + 1) + (d + d + g - 1 + 1);
}

Bf16 best_bf16() {
#if defined(__x86_64__)
  static const Bf16 kind = [] {
    if (isa() != Isa::avx512 || !has_avx512_bf16()) return Bf16::none;
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
#  if defined(__linux__)
    // The tiles' registers are large; Linux hands them out to processes that ask.
    constexpr long kRequest = 0x1023, kTileData = 18;
    if (amx && syscall(SYS_arch_prctl, kRequest, kTileData) == 0) return Bf16::amx;
#  endif
    return Bf16::avx512;
  }();
  return kind;
#else
  return Bf16::none;
#endif
}

bool has_bf16(Bf16 kind) { return static_cast<int>(kind) <= static_cast<int>(best_bf16()); }

const char* bf16_name(Bf16 kind) {
  return kind == Bf16::amx ? "amx" : kind == Bf16::avx512 ? "avx512_bf16" : "none";
}

void run(Job& job) {
  Work work = baseline::run_thread;
#if defined(__x86_64__)
  if (isa() == Isa::avx512) work = avx512::run_thread;
  if (isa() == Isa::avx2) work = avx2::run_thread;
  if (job.products == Bf16::avx512) work = avx512_bf16::run_thread;
  if (job.products == Bf16::amx) work = amx::run_thread;
#endif
  run_team(static_cast<int>(job.threads), work, &job);
}

}  // namespace fastgan::cpu::step
