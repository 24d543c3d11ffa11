// The operators of the fused engine: the plan, the networks' own tensors and one block of working
// memory in, steps done. fastgan/plan.py writes the plan; the order of its numbers is that of
// read().
#include "checks.h"
#include "cpu/step.h"

namespace fastgan::cpu::step {

namespace {

// Reads the plan's two tables from front to back.
class Reader {
 public:
  Reader(const Tensor& integers, const Tensor& reals)
      : integers_(table<int64_t>(integers, "plan", ScalarType::Long)),
        reals_(table<double>(reals, "settings", ScalarType::Double)),
        integers_left_(integers.numel()),
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
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() == 1 && t.is_contiguous(), name,
                    " must be a contiguous vector, int64 for plan and float64 for settings");
    return static_cast<const T*>(t.const_data_ptr());
  }

  const int64_t* integers_;
  const double* reals_;
  int64_t integers_left_, reals_left_;
};

// The tensors a plan points into by number; -1 is none. Without tensors (when only sizes are asked
// for) every pointer is null.
class State {
 public:
  explicit State(const std::vector<Tensor>* tensors) : tensors_(tensors) {}

  template <class T>
  T* take(Reader& reader, int64_t count, ScalarType dtype) const {
    const int64_t limit = tensors_ ? static_cast<int64_t>(tensors_->size()) - 1 : INT64_MAX;
    const int64_t index = reader.integer(-1, limit);
    if (index < 0 || tensors_ == nullptr) return nullptr;
    const Tensor& t = (*tensors_)[static_cast<size_t>(index)];
    STD_TORCH_CHECK(
        t.scalar_type() == dtype && t.numel() == count && t.is_contiguous() && t.is_cpu(), "state[",
        index, "] must be a contiguous CPU tensor of ", count,
        " elements, float32 (a counter: int64)");
    return static_cast<T*>(t.mutable_data_ptr());
  }

  // The step counters of an optimiser, one for each parameter: the plan has the first and the
  // number. They count the updates done so far, and must agree.
  int64_t updates(Reader& reader, std::vector<float*>& counters) const {
    const int64_t first = reader.integer(0, INT32_MAX), number = reader.integer(1, INT32_MAX);
    if (tensors_ == nullptr) return 0;
    const float* const one = counter(first);
    for (int64_t i = 0; i < number; ++i) {
      counters.push_back(counter(first + i));
      STD_TORCH_CHECK(*counters.back() == *one,
                      "the parameters of one optimizer have taken different numbers of steps");
    }
    STD_TORCH_CHECK(*one >= 0, "an optimizer's step counter is negative");
    return static_cast<int64_t>(*one);
  }

  Parameter parameter(Reader& reader, int64_t count) const {
    Parameter p;
    p.value = take<float>(reader, count, ScalarType::Float);
    p.exp_avg = take<float>(reader, count, ScalarType::Float);
    p.exp_avg_sq = take<float>(reader, count, ScalarType::Float);
    p.average = take<float>(reader, count, ScalarType::Float);
    STD_TORCH_CHECK(!p.value || (p.exp_avg && p.exp_avg_sq),
                    "plan names a parameter without its moments");
    return p;
  }

 private:
  float* counter(int64_t index) const {
    STD_TORCH_CHECK(index < static_cast<int64_t>(tensors_->size()), "plan names state[", index,
                    "], which is missing");
    const Tensor& t = (*tensors_)[static_cast<size_t>(index)];
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.numel() == 1 && t.is_cpu(), "state[",
                    index, "] must be a float32 step counter on the CPU");
    return static_cast<float*>(t.mutable_data_ptr());
  }

  const std::vector<Tensor>* tensors_;
};

constexpr int64_t kWidest = int64_t{1} << 24;

void read_network(Reader& reader, const State& state, int64_t in, Network& network,
                  std::vector<float*>& counters) {
  network.beta1 = reader.real();
  network.beta2 = reader.real();
  network.eps = reader.real();
  network.weight_decay = reader.real();
  network.decoupled = reader.integer(0, 1) != 0;
  network.updates = state.updates(reader, counters);
  network.layers.resize(static_cast<size_t>(reader.integer(1, 1024)));
  for (Layer& layer : network.layers) {
    layer.in = in;
    layer.out = in = reader.integer(1, kWidest);
    layer.activation = static_cast<Activation>(reader.integer(0, 4));
    layer.norm = reader.integer(0, 1) != 0;
    layer.drop = reader.integer(0, 1) != 0;
    layer.drop_threshold = static_cast<uint32_t>(reader.integer(0, 65536));
    layer.drop_stream = static_cast<uint32_t>(reader.integer(0, INT32_MAX));
    layer.slope = static_cast<float>(reader.real());
    layer.norm_eps = reader.real();
    layer.norm_momentum = reader.real();
    layer.weight = state.parameter(reader, layer.in * layer.out);
    layer.bias = state.parameter(reader, layer.out);
    layer.gamma = state.parameter(reader, layer.out);
    layer.beta = state.parameter(reader, layer.out);
    layer.running_mean = state.take<float>(reader, layer.out, ScalarType::Float);
    layer.running_var = state.take<float>(reader, layer.out, ScalarType::Float);
    layer.batches = state.take<int64_t>(reader, 1, ScalarType::Long);
    layer.average_mean = state.take<float>(reader, layer.out, ScalarType::Float);
    layer.average_var = state.take<float>(reader, layer.out, ScalarType::Float);
    layer.average_batches = state.take<int64_t>(reader, 1, ScalarType::Long);
  }
}

struct Counters {
  std::vector<float*> g, d;
};

Job read(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* tensors,
         int64_t threads, Counters& counters) {
  Reader reader(plan, settings);
  const State state(tensors);
  Job job;
  const int64_t latent = reader.integer(1, kWidest), image = reader.integer(1, kWidest);
  job.batch = reader.integer(1, kWidest);
  job.d_steps = reader.integer(1, kWidest);
  job.game = static_cast<Game>(reader.integer(0, 4));
  job.seed = static_cast<uint64_t>(reader.integer());
  job.count = reader.integer(1, INT64_MAX / kWidest);
  if (reader.integer(0, 1) != 0) {
    job.products = best_bf16();
    STD_TORCH_CHECK(job.products != Bf16::none,
                    "plan asks for products in bfloat16, which this processor does not have");
  }
  job.real_label = reader.real();
  job.average_decay = reader.real();
  read_network(reader, state, latent, job.g, counters.g);
  read_network(reader, state, image, job.d, counters.d);
  reader.end();
  STD_TORCH_CHECK(job.g.layers.back().out == image && job.d.layers.back().out == 1,
                  "plan does not end in an image and in one logit");
  STD_TORCH_CHECK(threads >= 1 && threads <= 4096, "threads is ", threads, "; expected 1 to 4096");
  job.threads = threads;
  return job;
}

std::string bf16_op() { return bf16_name(best_bf16()); }

int64_t memory_op(const Tensor& plan, const Tensor& settings, int64_t threads) {
  Counters counters;
  Job job = read(plan, settings, nullptr, threads, counters);
  return static_cast<int64_t>(plan_memory(job, nullptr));
}

void run_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
            const Tensor& memory, const Tensor& images, const std::optional<Tensor>& order,
            const Tensor& rates, const Tensor& losses, const std::optional<Tensor>& profile,
            int64_t first_step, int64_t threads, bool fresh) {
  Counters counters;
  Job job = read(plan, settings, &state, threads, counters);
  for (const Network* network : {&job.g, &job.d}) {
    for (const Layer& layer : network->layers) {
      STD_TORCH_CHECK(layer.weight.value, "plan holds a layer without a weight");
    }
  }
  job.first_step = first_step;
  job.fresh = fresh;

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
    STD_TORCH_CHECK(profile->scalar_type() == ScalarType::Double && profile->is_contiguous() &&
                        profile->numel() == 2 * phase_count(job),
                    "profile must be a contiguous float64 tensor [", phase_count(job), ", 2]");
    job.profile = static_cast<double*>(profile->mutable_data_ptr());
  }
  if (job.steps == 0) return;
  run(job);
  for (float* counter : counters.g) *counter += static_cast<float>(job.steps);
  for (float* counter : counters.d) *counter += static_cast<float>(updates);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastgan, m) {
  // The bytes of working memory that fused_run needs.
  m.def("fused_memory(Tensor plan, Tensor settings, int threads) -> int");
  // Does losses.size(0) steps from first_step on. state: parameters, moments, step counters,
  // averages and statistics, as numbered by the plan. images [count, ...] with order, the
  // permutations of the epochs from that of the first step on; or, without order, the batches
  // themselves one after another. rates: of D and G, [2] or [steps, 2]. profile [phases, 2] is
  // added to. fresh: memory is as the last call left it, and no weight has changed since.
  m.def(
      "fused_run(Tensor plan, Tensor settings, Tensor(a!)[] state, Tensor(b!) memory, "
      "Tensor images, Tensor? order, Tensor rates, Tensor(c!) losses, Tensor(d!)? profile, "
      "int first_step, int threads, bool fresh) -> ()");
  // How products are taken in bfloat16 here: none, avx512_bf16 or amx.
  m.def("fused_bf16() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("fused_bf16", TORCH_BOX(&bf16_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) {
  m.impl("fused_memory", TORCH_BOX(&memory_op));
  m.impl("fused_run", TORCH_BOX(&run_op));
}

}  // namespace fastgan::cpu::step
