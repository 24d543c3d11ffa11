// The operators of the fused engine: a plan bound to the networks' own tensors and one block of
// working memory in, steps done.
#include <cstring>

#include "ops/checks.h"
#include "cpu/step.h"
#include "plan_reader.h"

namespace fastgan::cpu::step {

namespace {

PlanReading<Job> read(const Tensor& plan, const Tensor& settings,
                      const std::vector<Tensor>* tensors, int64_t threads) {
  PlanReading<Job> reading(plan, settings, tensors, plan);
  Job& job = reading.job;
  const std::optional<Products> products = reading.bf16 ? best_bf16() : best_fp32();
  STD_TORCH_CHECK(products,
                  "plan asks for products in bfloat16, which this processor does not have");
  job.products = *products;
  STD_TORCH_CHECK(threads >= 1 && threads <= 4096, "threads is ", threads, "; expected 1 to 4096");
  job.threads = threads;
  return reading;
}

std::string products_op(bool bf16) {
  const std::optional<Products> products = bf16 ? best_bf16() : best_fp32();
  return products ? products_name(*products) : "none";
}

// One line for each phase: operations, a space, the name.
std::string phases_op(const Tensor& plan, const Tensor& settings) {
  PlanReading<Job> reading = read(plan, settings, nullptr, 1);
  plan_memory(reading.job, nullptr);
  std::string lines;
  for (const Phase& phase : phases(reading.job))
    lines += std::to_string(static_cast<int64_t>(phase.work)) + " " + phase.name + "\n";
  return lines;
}

int64_t memory_op(const Tensor& plan, const Tensor& settings, int64_t threads) {
  PlanReading<Job> reading = read(plan, settings, nullptr, threads);
  return static_cast<int64_t>(plan_memory(reading.job, nullptr));
}

void bind_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
             const Tensor& bound) {
  STD_TORCH_CHECK(bound.scalar_type() == ScalarType::Long && bound.is_contiguous() &&
                      bound.is_cpu() && bound.numel() == plan.numel(),
                  "bound must be a contiguous int64 tensor on the CPU, as long as plan (",
                  plan.numel(), ")");
  int64_t* const out = static_cast<int64_t*>(bound.mutable_data_ptr());
  static_cast<void>(PlanTables(plan, settings));  // plan is a vector of numbers
  std::memcpy(out, plan.const_data_ptr(), static_cast<size_t>(plan.numel()) * sizeof(int64_t));
  static_cast<void>(PlanReading<Job>(plan, settings, &state, plan, out));
}

void run_op(const Tensor& bound, const Tensor& settings, const Tensor& memory, const Tensor& images,
            const std::optional<Tensor>& order, const Tensor& rates, const Tensor& losses,
            const std::optional<Tensor>& profile, int64_t first_step, int64_t threads) {
  PlanReading<Job> reading = read(bound, settings, nullptr, threads);
  STD_TORCH_CHECK(!reading.g_counters.empty() && !reading.d_counters.empty(),
                  "bound must be a plan that fused_bind has bound to tensors");
  Job& job = reading.job;
  job.first_step = first_step;

  STD_TORCH_CHECK(losses.scalar_type() == ScalarType::Float && losses.is_contiguous() &&
                      losses.dim() == 2 && losses.size(1) == 2,
                  "losses must be a contiguous float32 tensor [steps, 2]");
  job.steps = losses.size(0);
  job.losses = static_cast<float*>(losses.mutable_data_ptr());

  STD_TORCH_CHECK(rates.scalar_type() == ScalarType::Double && rates.is_contiguous() &&
                      (rates.numel() == 2 || rates.numel() == 2 * job.steps),
                  "rates must be a contiguous float64 tensor [2] or [steps, 2]");
  job.rates = static_cast<const double*>(rates.const_data_ptr());
  job.rates_vary = rates.dim() == 2;

  STD_TORCH_CHECK(first_step >= 0, "first_step is ", first_step, "; expected 0 or more");
  const int64_t width = job.d.layers.front().in;
  const int64_t per_epoch = (job.count + job.batch - 1) / job.batch;
  const int64_t updates = job.steps * job.d_steps;
  int64_t rows = 0;
  if (order) {
    const int64_t first = first_step * job.d_steps / per_epoch;
    const int64_t last = (first_step * job.d_steps + updates - 1) / per_epoch;
    STD_TORCH_CHECK(order->scalar_type() == ScalarType::Long && order->is_contiguous() &&
                        order->numel() >= (last - first + 1) * job.count,
                    "order must be contiguous int64 and hold the ", last - first + 1,
                    " permutations of these steps");
    job.order = static_cast<const int64_t*>(order->const_data_ptr());
    rows = job.count;
  } else {
    for (int64_t u = first_step * job.d_steps; u < first_step * job.d_steps + updates; ++u) {
      const int64_t left = job.count - u % per_epoch * job.batch;
      rows += left < job.batch ? left : job.batch;
    }
  }
  STD_TORCH_CHECK(images.is_contiguous() && images.numel() >= rows * width,
                  "images must be contiguous and hold ", rows, " of ", width, " values");
  if (images.scalar_type() == ScalarType::Byte) {
    STD_TORCH_CHECK(order, "images fed without an order must be float32");
    job.bytes = static_cast<const uint8_t*>(images.const_data_ptr());
  } else {
    STD_TORCH_CHECK(images.scalar_type() == ScalarType::Float, "images must be uint8 or float32");
    job.floats = static_cast<const float*>(images.const_data_ptr());
  }

  const size_t needed = plan_memory(job, nullptr);
  STD_TORCH_CHECK(
      memory.is_contiguous() && memory.numel() * static_cast<int64_t>(memory.element_size()) >=
                                    static_cast<int64_t>(needed),
      "memory must hold ", needed, " bytes");
  void* const base = memory.mutable_data_ptr();
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(base) % 64 == 0,
                  "memory must be aligned to 64 bytes");
  plan_memory(job, base);
  if (profile) {
    const int64_t count = static_cast<int64_t>(phases(job).size());
    STD_TORCH_CHECK(profile->scalar_type() == ScalarType::Double && profile->is_contiguous() &&
                        profile->numel() == 2 * count,
                    "profile must be a contiguous float64 tensor [", count, ", 2]");
    job.profile = static_cast<double*>(profile->mutable_data_ptr());
  }
  if (job.steps == 0) return;
  run(job);
  for (float* counter : reading.g_counters) *counter += static_cast<float>(job.steps);
  for (float* counter : reading.d_counters) *counter += static_cast<float>(updates);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("fused_products", TORCH_BOX(&products_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) {
  m.impl("fused_memory", TORCH_BOX(&memory_op));
  m.impl("fused_phases", TORCH_BOX(&phases_op));
  m.impl("fused_bind", TORCH_BOX(&bind_op));
  m.impl("fused_run", TORCH_BOX(&run_op));
}

}  // namespace fastgan::cpu::step
