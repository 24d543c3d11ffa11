// Reads the plan of a fused step: two tables of numbers, and the networks' own tensors that they
// point into. fastgan/engines/fused.py writes them; the order of the numbers is that of
// PlanReading's constructor. The first says how the plan points: by the tensors' places in a list,
// or, once they have been checked and the plan is bound to them, by their addresses.
#pragma once

#include "ops/checks.h"
#include "common/plan.h"

namespace fastgan {

// The two tables from front to back.
class PlanTables {
 public:
  PlanTables(const Tensor& integers, const Tensor& reals)
      : integers_(table<int64_t>(integers, "plan", ScalarType::Long)),
        reals_(table<double>(reals, "settings", ScalarType::Double)),
        size_(integers.numel()),
        integers_left_(size_),
        reals_left_(reals.numel()) {}

  int64_t integer() {
    STD_TORCH_CHECK(--integers_left_ >= 0, "plan is too short; make it with fastgan.plan");
    return *integers_++;
  }
  int64_t integer(int64_t low, int64_t high) {
    const int64_t value = integer();
    STD_TORCH_CHECK(low <= value && value <= high, "plan holds ", value, " where a number from ",
                    low, " to ", high, " is expected; make it with fastgan.plan");
    return value;
  }
  // Where the last number was.
  int64_t place() const { return size_ - integers_left_ - 1; }
  double real() {
    STD_TORCH_CHECK(--reals_left_ >= 0, "settings is too short; make it with fastgan.plan");
    return *reals_++;
  }
  void end() const {
    STD_TORCH_CHECK(integers_left_ == 0 && reals_left_ == 0,
                    "plan and settings are longer than the networks they describe");
  }

 private:
  template <class T>
  static const T* table(const Tensor& t, const char* name, ScalarType dtype) {
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() == 1 && t.is_contiguous() && t.is_cpu(),
                    name,
                    " must be a contiguous vector on the CPU, int64 for plan and float64 for "
                    "settings");
    return static_cast<const T*>(t.const_data_ptr());
  }

  const int64_t* integers_;
  const double* reals_;
  int64_t size_, integers_left_, reals_left_;
};

enum class Pointing : int64_t { places, addresses };

// What a plan points into, on the device of `like`: tensors by their places in a list, -1 for none,
// or addresses, 0 for none. When only sizes are asked for, every pointer is null.
class PlanState {
 public:
  PlanState(Pointing pointing, const std::vector<Tensor>* tensors, const Tensor& like,
            int64_t* bound)
      : pointing_(pointing), tensors_(tensors), like_(like), bound_(bound) {}

  template <class T>
  T* take(PlanTables& tables, int64_t count, ScalarType dtype) const {
    const int64_t number = tables.integer();
    if (pointing_ == Pointing::addresses) return at<T>(number);
    if (tensors_ == nullptr) return nullptr;
    const Tensor* const t = find(number);
    STD_TORCH_CHECK(!t || (t->scalar_type() == dtype && t->numel() == count && t->is_contiguous() &&
                           t->device() == like_.device()),
                    "state[", number, "] must be a contiguous ", like_.is_cpu() ? "CPU" : "CUDA",
                    " tensor of ", count, " elements, float32 (a counter: int64)");
    return bind<T>(tables, t);
  }

  // The step counters of an optimiser, one for each parameter. Those on the CPU are read here, and
  // must agree; the others are the caller's business.
  int64_t updates(PlanTables& tables, std::vector<float*>& counters) const {
    for (int64_t left = tables.integer(1, INT32_MAX); left > 0; --left) {
      float* const counter = this->counter(tables);
      if (counter) counters.push_back(counter);
    }
    for (const float* counter : counters)
      STD_TORCH_CHECK(*counter == *counters.front(),
                      "the parameters of one optimizer have taken different numbers of steps");
    if (counters.empty()) return 0;
    STD_TORCH_CHECK(*counters.front() >= 0, "an optimizer's step counter is negative");
    return static_cast<int64_t>(*counters.front());
  }

  Parameter parameter(PlanTables& tables, int64_t count) const {
    Parameter p;
    p.value = take<float>(tables, count, ScalarType::Float);
    p.exp_avg = take<float>(tables, count, ScalarType::Float);
    p.exp_avg_sq = take<float>(tables, count, ScalarType::Float);
    p.average = take<float>(tables, count, ScalarType::Float);
    STD_TORCH_CHECK(!p.value || (p.exp_avg && p.exp_avg_sq),
                    "plan names a parameter without its moments");
    return p;
  }

  bool given() const { return tensors_ != nullptr || pointing_ == Pointing::addresses; }

 private:
  template <class T>
  static T* at(int64_t address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
  }

  const Tensor* find(int64_t number) const {
    STD_TORCH_CHECK(number >= -1 && number < static_cast<int64_t>(tensors_->size()),
                    "plan names state[", number, "], which is missing");
    return number < 0 ? nullptr : &(*tensors_)[static_cast<size_t>(number)];
  }

  template <class T>
  T* bind(const PlanTables& tables, const Tensor* t) const {
    T* const pointer = t ? static_cast<T*>(t->mutable_data_ptr()) : nullptr;
    if (bound_) bound_[tables.place()] = static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
    return pointer;
  }

  float* counter(PlanTables& tables) const {
    const int64_t number = tables.integer();
    if (pointing_ == Pointing::addresses) return at<float>(number);
    if (tensors_ == nullptr || !like_.is_cpu()) return nullptr;
    const Tensor* const t = find(number);
    STD_TORCH_CHECK(t && t->scalar_type() == ScalarType::Float && t->numel() == 1 && t->is_cpu(),
                    "state[", number, "] must be a float32 step counter on the CPU");
    return bind<float>(tables, t);
  }

  Pointing pointing_;
  const std::vector<Tensor>* tensors_;
  const Tensor& like_;
  int64_t* bound_;  // the same plan, pointing by addresses, is written there; or null
};

constexpr int64_t kWidest = int64_t{1} << 24;

// A device's job, filled in from a plan: its networks g and d, and the numbers of the step.
template <class Job>
struct PlanReading {
  Job job;
  bool bf16 = false;
  std::vector<float*> g_counters, d_counters;

  // `like` is a tensor on the device of the job. `bound`: see PlanState.
  PlanReading(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* tensors,
              const Tensor& like, int64_t* bound = nullptr) {
    PlanTables tables(plan, settings);
    const Pointing pointing = static_cast<Pointing>(tables.integer(0, 1));
    STD_TORCH_CHECK(!tensors || pointing == Pointing::places,
                    "plan is bound to tensors already; give the one that fastgan.engines.fused "
                    "wrote");
    if (bound) bound[tables.place()] = static_cast<int64_t>(Pointing::addresses);
    const PlanState state(pointing, tensors, like, bound);
    const int64_t latent = tables.integer(1, kWidest), image = tables.integer(1, kWidest);
    job.batch = tables.integer(1, kWidest);
    job.d_steps = tables.integer(1, kWidest);
    job.game = static_cast<Game>(tables.integer(0, 4));
    job.seed = static_cast<uint64_t>(tables.integer());
    job.count = tables.integer(1, INT64_MAX / kWidest);
    bf16 = tables.integer(0, 1) != 0;
    job.real_label = tables.real();
    job.average_decay = tables.real();
    network(tables, state, latent, job.g, g_counters);
    network(tables, state, image, job.d, d_counters);
    tables.end();
    STD_TORCH_CHECK(job.g.layers.back().out == image && job.d.layers.back().out == 1,
                    "plan does not end in an image and in one logit");
  }

 private:
  template <class Network>
  static void network(PlanTables& tables, const PlanState& state, int64_t in, Network& network,
                      std::vector<float*>& counters) {
    network.beta1 = tables.real();
    network.beta2 = tables.real();
    network.eps = tables.real();
    network.weight_decay = tables.real();
    network.decoupled = tables.integer(0, 1) != 0;
    network.updates = state.updates(tables, counters);
    network.layers.resize(static_cast<size_t>(tables.integer(1, 1024)));
    for (auto& layer : network.layers) {
      layer.in = in;
      layer.out = in = tables.integer(1, kWidest);
      layer.activation = static_cast<Activation>(tables.integer(0, 4));
      layer.norm = tables.integer(0, 1) != 0;
      layer.drop = tables.integer(0, 1) != 0;
      layer.drop_threshold = static_cast<uint32_t>(tables.integer(0, 65536));
      layer.drop_stream = static_cast<uint32_t>(tables.integer(0, INT32_MAX));
      layer.slope = static_cast<float>(tables.real());
      layer.norm_eps = tables.real();
      layer.norm_momentum = tables.real();
      layer.weight = state.parameter(tables, layer.in * layer.out);
      STD_TORCH_CHECK(!state.given() || layer.weight.value, "plan holds a layer without a weight");
      layer.bias = state.parameter(tables, layer.out);
      layer.gamma = state.parameter(tables, layer.out);
      layer.beta = state.parameter(tables, layer.out);
      layer.running_mean = state.take<float>(tables, layer.out, ScalarType::Float);
      layer.running_var = state.take<float>(tables, layer.out, ScalarType::Float);
      layer.batches = state.take<int64_t>(tables, 1, ScalarType::Long);
      layer.average_mean = state.take<float>(tables, layer.out, ScalarType::Float);
      layer.average_var = state.take<float>(tables, layer.out, ScalarType::Float);
      layer.average_batches = state.take<int64_t>(tables, 1, ScalarType::Long);
    }
  }
};

}  // namespace fastgan
