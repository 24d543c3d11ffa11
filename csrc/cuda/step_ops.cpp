// The operators of the fused engine on CUDA: the plan, the networks' own tensors, the tables of a
// run and one block of working memory in, steps launched.
#include "ops/checks.h"
#include "cuda/on_device.h"
#include "cuda/step.h"
#include "plan_reader.h"

namespace fastgan::cuda::step {

namespace {

PlanReading<Job> read(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* state,
                      const Tensor& like, bool tf32) {
  PlanReading<Job> reading(plan, settings, state, like);
  reading.job.math = reading.bf16 ? Math::bf16 : tf32 ? Math::tf32 : Math::fp32;
  return reading;
}

// A contiguous table of `rows` x `columns` or more on the device of `like`.
template <class T>
T* table(const Tensor& t, const char* name, const Tensor& like, ScalarType dtype,
         const char* type_name, int64_t numel) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous() && t.numel() >= numel &&
                      t.device() == like.device(),
                  name, " must be a contiguous ", type_name, " tensor of ", numel,
                  " elements or more on the device of memory; it has ", t.numel());
  return static_cast<T*>(t.mutable_data_ptr());
}

int64_t memory_op(const Tensor& plan, const Tensor& settings, int64_t copies) {
  STD_TORCH_CHECK(copies == 1 || copies == 2, "copies is ", copies, "; expected 1 or 2");
  PlanReading<Job> reading = read(plan, settings, nullptr, plan, false);
  return static_cast<int64_t>(plan_memory(reading.job, static_cast<int>(copies), nullptr));
}

int64_t length_op(const Tensor& plan, const Tensor& settings) {
  return chain_length(read(plan, settings, nullptr, plan, false).job);
}

std::string why_not_persistent_op(const Tensor& plan, const Tensor& settings,
                                  const std::vector<Tensor>& state, const Tensor& memory,
                                  bool tf32) {
  const OnDeviceOf on(memory);
  const PlanReading<Job> reading = read(plan, settings, &state, memory, tf32);
  Device device;
  STD_CUDA_CHECK(device_properties(device));
  const char* const reason = why_not_persistent(reading.job, device);
  return reason ? reason : "";
}

void run_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
            const Tensor& memory, const Tensor& images, const std::optional<Tensor>& order,
            const Tensor& clock, const Tensor& rates, const Tensor& losses, int64_t steps,
            bool tf32, bool persistent) {
  const OnDeviceOf on(memory);
  PlanReading<Job> reading = read(plan, settings, &state, memory, tf32);
  Job& job = reading.job;
  STD_TORCH_CHECK(steps >= 0, "steps is ", steps, "; expected 0 or more");
  job.steps = steps;
  static_assert(sizeof(Clock) == 5 * sizeof(int64_t));
  job.clock = reinterpret_cast<Clock*>(
      table<int64_t>(clock, "clock", memory, ScalarType::Long, "int64", 5));
  job.rates = table<double>(rates, "rates", memory, ScalarType::Double, "float64", 2 * steps);
  job.losses = table<float>(losses, "losses", memory, ScalarType::Float, "float32", 2 * steps);
  const int64_t width = job.d.layers.front().in;
  if (order) {
    job.order = table<int64_t>(*order, "order", memory, ScalarType::Long, "int64", job.count);
  } else {
    STD_TORCH_CHECK(steps <= 1, "without an order one step is fed at a time; steps is ", steps);
  }
  const int64_t pixels = (order ? job.count : job.d_steps * job.batch) * width;
  if (images.scalar_type() == ScalarType::Byte) {
    STD_TORCH_CHECK(order, "images fed without an order must be float32");
    job.bytes = table<uint8_t>(images, "images", memory, ScalarType::Byte, "uint8", pixels);
  } else {
    job.floats = table<float>(images, "images", memory, ScalarType::Float, "float32", pixels);
  }

  const int copies = persistent ? 2 : 1;
  const int64_t needed = static_cast<int64_t>(plan_memory(job, copies, nullptr));
  STD_TORCH_CHECK(memory.scalar_type() == ScalarType::Byte && memory.is_contiguous() &&
                      memory.numel() >= needed,
                  "memory must be a contiguous uint8 tensor of ", needed, " elements");
  void* const base = memory.mutable_data_ptr();
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(base) % 256 == 0,
                  "memory must be aligned to 256 bytes");
  plan_memory(job, copies, base);
  if (steps == 0) return;
  Device device;
  STD_CUDA_CHECK(device_properties(device));
  if (!persistent) {
    STD_CUDA_CHECK(run_chain(job, device, on.stream()));
    return;
  }
  const char* const reason = why_not_persistent(job, device);
  STD_TORCH_CHECK(reason == nullptr, "the persistent kernel cannot run this: ", reason);
  STD_CUDA_CHECK(run_persistent(job, device, on.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("fused_cuda_memory", TORCH_BOX(&memory_op));
  m.impl("fused_cuda_length", TORCH_BOX(&length_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) {
  m.impl("fused_cuda_why_not_persistent", TORCH_BOX(&why_not_persistent_op));
  m.impl("fused_cuda_run", TORCH_BOX(&run_op));
}

}  // namespace fastgan::cuda::step
