// The operators of the fused engine on CUDA: the plan, the networks' own tensors, the tables of a
// run and one block of working memory in, steps launched.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "cuda/on_device.h"
#include "cuda/step/job.h"
#include "step/arguments.h"
#include "step/decode.h"
#include "step/graph.h"

namespace fastgan::cuda::step {

namespace {

Job job_of(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* state,
           const Tensor& like, bool tf32, Apart* apart) {
  const DecodedPlan decoded = decode(plan, settings, state, like, apart);
  STD_TORCH_CHECK(decoded.g.parts.empty() && decoded.d.parts.empty(),
                  "plan has parts made of conditions, which the fused step on CUDA does not know");
  STD_TORCH_CHECK(decoded.d.pack == 1, "plan has packs of ", decoded.d.pack,
                  " rows, which the fused step on CUDA does not know");
  STD_TORCH_CHECK(!decoded.shared_fakes,
                  "plan has shared_fakes, which the fused step on CUDA does not know");
  STD_TORCH_CHECK(decoded.g.heads.empty(),
                  "plan has heads, which the fused step on CUDA does not know");
  STD_TORCH_CHECK(
      graph_of(decoded.g).chain() && graph_of(decoded.d).chain(),
      "plan has a network that is no chain, which the fused step on CUDA does not know");
  STD_TORCH_CHECK(decoded.g.average_warmup == INFINITY && decoded.g.uniforms.empty(),
                  "plan has an average that warms up or uniform latents, which the fused step on "
                  "CUDA does not know");
  for (const auto* network : {&decoded.g, &decoded.d}) {
    STD_TORCH_CHECK(network->optimizer.rule <= Rule::adamw,
                    "plan has RMSprop or SGD, which the fused step on CUDA does not know");
    for (const PlannedLayer& l : network->layers)
      STD_TORCH_CHECK(!l.row_norm,
                      "plan has a LayerNorm, which the fused step on CUDA does not know");
  }
  for (const PlannedLayer& l : decoded.d.layers)
    STD_TORCH_CHECK(decoded.penalties.empty() || !keeps_bend(l.activation),
                    "plan has penalties and a GELU, SiLU or Softplus in D, which the fused step on "
                    "CUDA does not know together");
  Job job;
  adopt(decoded, job);
  job.penalties = decoded.penalties;
  job.precision =
      decoded.precision == Precision::fp32 && tf32 ? Precision::tf32 : decoded.precision;
  return job;
}

int64_t memory_op(const Tensor& plan, const Tensor& settings, int64_t copies) {
  STD_TORCH_CHECK(copies == 1 || copies == 2, "copies is ", copies, "; expected 1 or 2");
  Job job = job_of(plan, settings, nullptr, plan, false, nullptr);
  return static_cast<int64_t>(plan_memory(job, static_cast<int>(copies), nullptr));
}

int64_t length_op(const Tensor& plan, const Tensor& settings) {
  Job job = job_of(plan, settings, nullptr, plan, false, nullptr);
  plan_memory(job, 1, nullptr);
  return chain_length(job);
}

// The phases of the persistent kernel: those of D's updates, of which a step has d_steps, then G's.
std::vector<std::pair<const Phase*, bool>> persistent_phases(const Job& job) {
  std::vector<std::pair<const Phase*, bool>> phases;
  for (const bool of_g : {false, true})
    for (const Phase& phase : of_g ? job.g_phases : job.d_phases)
      if (in_persistent(phase)) phases.push_back({&phase, of_g});
  return phases;
}

std::string phases_op(const Tensor& plan, const Tensor& settings) {
  Job job = job_of(plan, settings, nullptr, plan, false, nullptr);
  plan_memory(job, 2, nullptr);
  const Skeleton skeleton = skeleton_of(job);
  std::string lines;
  for (const auto& [phase, of_g] : persistent_phases(job)) {
    const PhaseReport said = report(skeleton, *phase, of_g, job.batch);
    char work[64];
    std::snprintf(work, sizeof work, "%.0f ", said.work);
    lines += work + said.name + "\n";
  }
  return lines;
}

std::string why_not_persistent_op(const Tensor& plan, const Tensor& settings,
                                  const std::vector<Tensor>& state, const Tensor& memory,
                                  bool tf32) {
  check_given(memory, "memory");
  const OnDeviceOf on(memory);
  const Job job = job_of(plan, settings, &state, memory, tf32, nullptr);
  Device device;
  STD_CUDA_CHECK(device_properties(device));
  const char* const reason = why_not_persistent(job, device);
  return reason ? reason : "";
}

int64_t most_at_once_op(const Tensor& plan, const Tensor& settings,
                        const std::vector<Tensor>& state, const Tensor& memory, bool tf32) {
  check_given(memory, "memory");
  const OnDeviceOf on(memory);
  const Job job = job_of(plan, settings, &state, memory, tf32, nullptr);
  Device device;
  STD_CUDA_CHECK(device_properties(device));
  return most_at_once(job, device);
}

// A job with all that a launch needs to know; what it reads and writes is noted in `apart`.
Job whole_job(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
              const Tensor& memory, const Tensor& images, const std::optional<Tensor>& order,
              const Tensor& clock, const Tensor& rates, const Tensor& statistics, int64_t steps,
              bool tf32, int copies, Apart& apart) {
  Job job = job_of(plan, settings, &state, memory, tf32, &apart);
  job.rows = check_statistics(statistics, memory);
  job.statistics = static_cast<float*>(statistics.mutable_data_ptr());
  job.last_step = INT64_MAX / 4 / std::max(job.d_steps, job.g_steps);
  check_steps(0, steps, job.d_steps, job.g_steps);
  STD_TORCH_CHECK(steps <= job.rows, "steps is ", steps, ", and statistics has ", job.rows,
                  " rows; expected as many or more");
  job.steps = steps;
  static_assert(sizeof(Clock) == 5 * sizeof(int64_t));
  check_table(clock, "clock", ScalarType::Long, "int64", memory, "memory");
  check_elements(clock, "clock", 5);
  job.clock = reinterpret_cast<Clock*>(static_cast<int64_t*>(clock.mutable_data_ptr()));
  check_table(rates, "rates", ScalarType::Double, "float64", memory, "memory");
  check_elements(rates, "rates", times(2, job.rows));
  job.rates = static_cast<const double*>(rates.const_data_ptr());
  STD_TORCH_CHECK(order || steps <= 1, "without an order one step is fed at a time; steps is ",
                  steps);
  static_cast<ImageSource&>(job) =
      check_images(images, order ? job.count : times(job.d_steps, job.batch),
                   job.d.layers.front().in, order, job.count, memory);
  if (order) job.ordered = order->numel();
  job.permutations = static_cast<uint64_t>(job.ordered / job.count);

  plan_memory(job, copies, check_memory(memory, plan_memory(job, copies, nullptr), 256));
  apart.written(memory, "memory");
  apart.written(statistics, "statistics");
  apart.written(clock, "clock");
  apart.read(images, "images");
  apart.read(rates, "rates");
  if (order) apart.read(*order, "order");
  return job;
}

void run_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
            const Tensor& memory, const Tensor& images, const std::optional<Tensor>& order,
            const Tensor& clock, const Tensor& rates, const Tensor& statistics,
            const std::optional<Tensor>& stamps, int64_t steps, bool tf32, bool persistent) {
  check_given(memory, "memory");
  const OnDeviceOf on(memory);
  Apart apart;
  Job job = whole_job(plan, settings, state, memory, images, order, clock, rates, statistics, steps,
                      tf32, persistent ? 2 : 1, apart);
  if (stamps) {
    STD_TORCH_CHECK(persistent, "stamps are the persistent kernel's, and persistent is False");
    int64_t count = 0;
    for (const auto& [phase, of_g] : persistent_phases(job)) count += of_g ? 1 : job.d_steps;
    check_table(*stamps, "stamps", ScalarType::Long, "int64", memory, "memory");
    check_elements(*stamps, "stamps", times(steps, count) + 3);
    job.stamps = static_cast<int64_t*>(stamps->mutable_data_ptr());
    apart.written(*stamps, "stamps");
  }
  apart.check();
  if (steps == 0) return;
  Device device;
  STD_CUDA_CHECK(device_properties(device));
  if (!persistent) {
    STD_CUDA_CHECK(run_chain(job, device, on.stream()));
    return;
  }
  const char* const reason = why_not_persistent(job, device);
  STD_TORCH_CHECK(reason == nullptr, "the persistent kernel cannot run this: ", reason);
  STD_CUDA_CHECK(run_persistent({std::move(job)}, device, on.stream()));
}

void run_together_op(const std::vector<Tensor>& plan, const std::vector<Tensor>& settings,
                     const std::vector<Tensor>& state, const std::vector<int64_t>& sizes,
                     const std::vector<Tensor>& memory, const std::vector<Tensor>& images,
                     const std::vector<Tensor>& order, const std::vector<Tensor>& clock,
                     const std::vector<Tensor>& rates, const std::vector<Tensor>& statistics,
                     int64_t steps, bool tf32) {
  const size_t count = plan.size();
  STD_TORCH_CHECK(count > 0, "plan is an empty list; expected one of each job");
  const auto one_each = [&](size_t n, const char* name) {
    STD_TORCH_CHECK(n == count, name, " has ", n, " entries, and plan ", count,
                    "; expected one of each job");
  };
  one_each(sizes.size(), "sizes");
  const std::pair<const std::vector<Tensor>*, const char*> lists[] = {
      {&settings, "settings"}, {&memory, "memory"}, {&images, "images"},        {&order, "order"},
      {&clock, "clock"},       {&rates, "rates"},   {&statistics, "statistics"}};
  for (const auto& [list, name] : lists) one_each(list->size(), name);
  check_given(memory[0], "memory");
  const OnDeviceOf on(memory[0]);
  Device device;
  STD_CUDA_CHECK(device_properties(device));
  Apart apart;
  std::vector<Job> jobs;
  auto next = state.begin();
  for (size_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(sizes[n] >= 0 && sizes[n] <= state.end() - next, "sizes[", n, "] is ", sizes[n],
                    ", and state has ", state.end() - next, " tensors left");
    const std::vector<Tensor> own(next, next + sizes[n]);
    next += sizes[n];
    check_given(memory[n], "memory");
    STD_TORCH_CHECK(memory[n].device() == memory[0].device(), "memory[", n,
                    "] is on another device than memory[0]; jobs of one launch share one");
    check_given(order[n], "order");
    jobs.push_back(whole_job(plan[n], settings[n], own, memory[n], images[n], order[n], clock[n],
                             rates[n], statistics[n], steps, tf32, 2, apart));
    STD_TORCH_CHECK(jobs[n].precision == jobs[0].precision, "plan[", n,
                    "] has another precision than plan[0]; jobs of one launch share one");
    const char* const reason = why_not_persistent(jobs[n], device);
    STD_TORCH_CHECK(reason == nullptr, "the persistent kernel cannot run plan[", n, "]: ", reason);
    const int most = most_at_once(jobs[n], device);
    STD_TORCH_CHECK(count <= static_cast<size_t>(most), "plan has ", count,
                    " jobs, and a launch takes ", most, " like plan[", n, "]; give fewer");
  }
  STD_TORCH_CHECK(next == state.end(), "state has ", state.size(),
                  " tensors, which are more than sizes says");
  apart.check();
  if (steps == 0) return;
  STD_CUDA_CHECK(run_persistent(jobs, device, on.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("fused_cuda_memory", TORCH_BOX(&memory_op));
  m.impl("fused_cuda_length", TORCH_BOX(&length_op));
  m.impl("fused_cuda_phases", TORCH_BOX(&phases_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) {
  m.impl("fused_cuda_why_not_persistent", TORCH_BOX(&why_not_persistent_op));
  m.impl("fused_cuda_most_at_once", TORCH_BOX(&most_at_once_op));
  m.impl("fused_cuda_run", TORCH_BOX(&run_op));
  m.impl("fused_cuda_run_together", TORCH_BOX(&run_together_op));
}

}  // namespace fastgan::cuda::step
