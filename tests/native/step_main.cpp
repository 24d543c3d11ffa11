// Runs the training step of csrc/cpu on small plans and compares it with a plain one in double
// precision (step_reference.h). It needs no torch, so it can be built with the sanitizers in
// seconds; CONTRIBUTING.md has the commands.
//
// FASTGAN_ISA=baseline|avx2|avx512 chooses the instruction set. With an argument, `time`, it times
// the reference pair instead: step_main time [batch] [threads] [bf16]; `no-fork` leaves the forked
// child out.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "cpu/clock.h"
#include "cpu/team.h"
#include "step/rows.h"
#include "step_runs.h"

namespace {

// --- A plan on the engine and on the reference ---

void describe(Network& network, int64_t in, const std::vector<LayerPlan>& layers,
              std::vector<LayerState>& state, const Pair& plan,
              const std::vector<PartPlan>& parts = {}, int64_t pack = 1) {
  for (const PartPlan& part : parts) in += part.width;
  const Shape shape{layers, plan.joins(layers), in * pack};
  network.in = in * pack;
  network.pack = pack;
  for (size_t j = 0; j < shape.joins.size(); ++j)
    network.joins.push_back({shape.joins[j].of, shape.joins[j].before,
                             shape.width(layers.size() + 1 + j), shape.joins[j].nodes});
  uint32_t dropouts = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    Layer l;
    l.source = layers[i].source;
    l.in = shape.width(shape.source(i));
    l.out = layers[i].out;
    l.activation = layers[i].activation;
    l.slope = static_cast<float>(kSlope);
    l.weight = state[i].weight.parameter();
    l.bias = state[i].bias.parameter();
    if (layers[i].norm) {
      l.norm = true;
      l.norm_eps = kNormEps;
      l.norm_momentum = kMomentum;
      l.gamma = state[i].gamma.parameter();
      l.beta = state[i].beta.parameter();
      l.running_mean = state[i].running_mean.data();
      l.running_var = state[i].running_var.data();
      l.batches = &state[i].batches;
      l.average_mean = state[i].average_mean.data();
      l.average_var = state[i].average_var.data();
      l.average_batches = &state[i].average_batches;
    }
    if (layers[i].row_norm) {
      l.row_norm = true;
      l.norm_eps = kNormEps;
      l.gamma = state[i].gamma.parameter();
      l.beta = state[i].beta.parameter();
    }
    if (layers[i].drop > 0) {
      l.drop = true;
      l.drop_threshold = static_cast<uint32_t>(std::nearbyint((1 - layers[i].drop) * 65536));
      l.drop_index = dropouts++;
    }
    network.layers.push_back(l);
  }
  // Parts before the own columns, these, and those behind.
  size_t table = layers.size();
  int64_t at = 0;
  std::vector<PlannedPart> placed(parts.size());
  for (const bool before : {true, false}) {
    if (!before) {
      network.own_at = at;
      at = in;
      for (const PartPlan& part : parts) at -= part.before ? 0 : part.width;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].before != before) continue;
      placed[i].of = parts[i].of;
      placed[i].at = at;
      placed[i].width = parts[i].width;
      placed[i].classes = kClasses;
      at += parts[i].width;
    }
  }
  for (PlannedPart& part : placed) {
    part.embeds = part.of == PartOf::embedding;
    if (part.embeds) part.table = state[table++].weight.parameter();
  }
  network.parts = placed;
  network.optimizer = {kBeta1, kBeta2, kEps, plan.weight_decay, plan.rule};
}

// Memory that starts as zeros, aligned for vectors.
struct Memory {
  explicit Memory(size_t bytes)
      : data(std::aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) >> 21 << 21)) {
    std::memset(data, 0, bytes);
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  void* data;
};

// What all of a plan's jobs are told.
Job job_of(const Pair& plan, Run& r, int64_t first_step, int threads, Instructions instructions) {
  static const double rates[2] = {kLr, kLr};
  Job job;
  describe(job.g, plan.latent, plan.g, r.g, plan, plan.g_parts);
  describe(job.d, plan.image, plan.d, r.d, plan, plan.d_parts, plan.pack);
  job.g.updates = first_step * plan.g_steps;
  job.d.updates = first_step * plan.d_steps;
  job.batch = plan.batch;
  job.d_steps = plan.d_steps;
  job.g_steps = plan.g_steps;
  job.shared_fakes = plan.shared_fakes;
  job.loss = plan.loss;
  job.real_label = 1 - plan.smoothing;
  job.seed = 0x123456789abcdefu;
  job.penalties = plan.penalties;
  for (Optimizer* o : {&job.g.optimizer, &job.d.optimizer}) {
    o->largest_grad = plan.largest_grad;
    o->longest_grad = plan.longest_grad;
  }
  job.d.optimizer.largest_weight = plan.largest_weight;
  job.first_step = first_step;
  job.threads = threads;
  job.instructions = instructions;
  job.rates = rates;
  job.average_decay = kDecay;
  job.count = plan.count;
  return job;
}

// Conditions of samples, and those that the fake ones of some steps have, where all samples'
// follow those of `offset` others.
struct Given {
  std::vector<int64_t> labels, drawn;
  std::vector<float> numbers;
  Given(const Pair& plan, const std::vector<int64_t>& sources, int64_t offset, int64_t first_step,
        int64_t steps) {
    for (const int64_t source : sources) {
      labels.push_back(label_of(source));
      for (int64_t j = 0; j < 4; ++j) numbers.push_back(number_of(source, j));
    }
    for (int64_t t = first_step; plan.drawn && t < first_step + steps; ++t)
      for (int64_t u = 0; u < plan.d_steps + plan.g_steps; ++u)
        for (int64_t row = 0; row < plan.batch; ++row)
          drawn.push_back(offset + drawn_for(plan, t, u, row));
  }
  ConditionSource source() const {
    return {labels.data(), numbers.data(), 4, drawn.empty() ? nullptr : drawn.data()};
  }
};

Run engine(const Pair& plan, const Images& images, int64_t steps, int threads, bool one_by_one,
           Instructions instructions = Instructions::fp32, bool measured = true) {
  uint64_t state = 1;
  Run r;
  r.g = make_state(plan.latent, plan.g, true, state, plan.g_parts, plan.g_joins);
  r.d =
      make_state(plan.image, plan.d, plan.last_bias, state, plan.d_parts, plan.d_joins, plan.pack);
  r.statistics.resize(kStatistics * steps);
  r.sums.resize(kSums);
  std::vector<float> fed;
  const int64_t per_epoch = (plan.count + plan.batch - 1) / plan.batch;
  for (int64_t done = 0; done < steps;) {
    const int64_t n = one_by_one ? 1 : steps;
    Job job = job_of(plan, r, done, threads, instructions);
    job.steps = n;
    std::vector<int64_t> sources;
    if (one_by_one) {  // the caller feeds the batches
      fed.clear();
      for (int64_t u = done * plan.d_steps; u < (done + 1) * plan.d_steps; ++u)
        for (int64_t b = 0; b < plan.batch && u % per_epoch * plan.batch + b < plan.count; ++b) {
          const int64_t row =
              images.order[u / per_epoch * plan.count + u % per_epoch * plan.batch + b];
          sources.push_back(row);
          for (int64_t j = 0; j < plan.image; ++j)
            fed.push_back(static_cast<float>(images.bytes[row * plan.image + j]) *
                              static_cast<float>(2.0 / 255.0) -
                          1.f);
        }
      job.floats = fed.data();
    } else {
      job.bytes = images.bytes.data();
      job.order = images.order.data();
    }
    // Behind those of the fed samples all conditions, for what fake ones draw.
    const int64_t offset = static_cast<int64_t>(sources.size());
    for (int64_t i = 0; i < plan.count; ++i) sources.push_back(i);
    const Given given(plan, sources, offset, done, n);
    job.condition = given.source();
    job.statistics = r.statistics.data() + kStatistics * done;
    if (measured && done + n == steps) job.sums = r.sums.data();
    Memory memory(plan_memory(job, nullptr));
    plan_memory(job, memory.data);
    step::run(job);
    done += n;
  }
  return r;
}

// Norm of the difference over the norm of what is compared with.
double distance(const std::vector<float>& got, const std::vector<double>& exact) {
  double difference = 0, size = 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (got[i] - exact[i]) * (got[i] - exact[i]);
    size += exact[i] * exact[i];
  }
  return std::sqrt(difference / size);
}

// bfloat16 has 8 bits where float32 has 24. Adam's first step is lr times a
// sign, which rounding may flip for gradients near zero; so weights are
// compared by distance, after one step.
constexpr double kLoose = 300;

int failures = 0;
void expect(bool ok, const Pair& plan, const std::string& what, double value) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s: %s %.3g\n", plan.name, what.c_str(), value);
}

// Tolerances are for float32 instructions; `loose` widens them.
void compare(const Pair& plan, const Run& got, const Run& exact, double loose = 1) {
  double worst = 0;
  for (size_t i = 0; i < exact.statistics.size(); ++i) {
    const double error = std::fabs(got.statistics[i] - exact.statistics[i]) /
                         (0.05 + std::fabs(exact.statistics[i]));
    worst = error > worst ? error : worst;
    expect(error < 1e-4 * loose, plan, "statistic " + std::to_string(i), error);
  }
  for (size_t i = 0; i < exact.sums.size(); ++i) {
    const double x = got.sums[i], y = exact.sums[i];
    if (y != y && x != x) continue;
    // A score near the middle may be on either side.
    const bool share = i % 3 == 0 && i < kScoreSums;
    const double error = std::fabs(x - y) / (share ? 10 : 1e-3 + std::fabs(y));
    expect(error < (share ? 0.01 : 2e-3 * loose), plan, "sum " + std::to_string(i), error);
  }
  const auto both = {std::pair{&got.g, &exact.g}, std::pair{&got.d, &exact.d}};
  for (const auto& [a, b] : both)
    for (size_t l = 0; l < a->size(); ++l) {
      const LayerState &x = (*a)[l], &y = (*b)[l];
      const std::string at = (a == &got.g ? "G" : "D") + std::to_string(l);
      const auto check = [&](const char* name, const std::vector<float>& p,
                             const std::vector<double>& q, double limit) {
        const double error = distance(p, q);
        if (!q.empty()) expect(error < limit * loose, plan, at + "." + name, error);
      };
      const auto tensors = {std::pair{&x.weight, &y.weight}, std::pair{&x.bias, &y.bias},
                            std::pair{&x.gamma, &y.gamma}, std::pair{&x.beta, &y.beta}};
      int which = 0;
      for (const auto& [p, q] : tensors) {
        // A bias before BatchNorm has no gradient but rounding, which Adam
        // makes as large as any.
        const bool noise = which++ == 1 && !x.running_mean.empty();
        if (noise) continue;
        check("value", p->value, q->exact, 2e-4);
        check("exp_avg", p->exp_avg, q->m, 1e-3);
        check("exp_avg_sq", p->exp_avg_sq, q->v, 1e-3);
        if (a == &got.g) check("average", p->average, q->mean, 2e-4);
      }
      check("running_var", x.running_var, y.exact_var, 1e-4);
      if (a == &got.g) check("average_var", x.average_var, y.exact_var, 1e-4);
    }
  std::printf("%-28s worst error of statistics %.1e\n", plan.name, worst);
}

bool same(const Run& a, const Run& b) {
  if (std::memcmp(a.statistics.data(), b.statistics.data(), a.statistics.size() * 4) != 0)
    return false;
  for (const auto& [p, q] : {std::pair{&a.g, &b.g}, std::pair{&a.d, &b.d}})
    for (size_t l = 0; l < p->size(); ++l)
      if ((*p)[l].weight.value != (*q)[l].weight.value ||
          (*p)[l].bias.value != (*q)[l].bias.value ||
          (*p)[l].weight.exp_avg_sq != (*q)[l].weight.exp_avg_sq)
        return false;
  return true;
}

#include "step_ranks.h"

double time_reference_pair(int64_t batch, int threads, Instructions instructions) {
  const Pair plan{"reference pair",
                  100,
                  784,
                  {{256}, {784, kTanh}},
                  {{256, kLeaky, false, 0.3}, {1, kNone}},
                  batch,
                  60000};
  uint64_t state = 1;
  std::vector<LayerState> g = make_state(plan.latent, plan.g, true, state),
                          d = make_state(plan.image, plan.d, plan.last_bias, state);
  const Images images = make_images(plan, 2);
  const double rates[2] = {2e-4, 2e-4};
  const int64_t steps = std::max<int64_t>(4, 640 / batch);
  std::vector<float> statistics(kStatistics * steps);
  Job job;
  describe(job.g, plan.latent, plan.g, g, plan);
  describe(job.d, plan.image, plan.d, d, plan);
  for (Network* network : {&job.g, &job.d})
    for (Layer& l : network->layers) l.weight.average = l.bias.average = nullptr;
  job.batch = batch;
  job.steps = steps;
  job.threads = threads;
  job.rates = rates;
  job.instructions = instructions;
  job.count = plan.count;
  job.bytes = images.bytes.data();
  job.order = images.order.data();
  job.statistics = statistics.data();
  Memory memory(plan_memory(job, nullptr));
  plan_memory(job, memory.data);
  double best = 1e9;
  const std::vector<PhaseReport> names = report(job);
  const size_t numbers = 2 * names.size();
  std::vector<double> profile(numbers), least(numbers, 1e9);
  for (int i = 0; i < 300; ++i) {
    std::fill(profile.begin(), profile.end(), 0.0);
    job.profile = i % 3 == 2 ? profile.data() : nullptr;
    const double start = seconds();
    step::run(job);
    const double took = (seconds() - start) / static_cast<double>(steps);
    if (!job.profile) best = took < best ? took : best;
    for (size_t p = 0; job.profile && p < numbers; ++p) least[p] = std::fmin(least[p], profile[p]);
  }
  std::printf("%s, batch %ld, %d threads: %.3f ms a step\n", instructions_name(instructions),
              static_cast<long>(batch), threads, best * 1e3);
  const double per_step = 1e6 / static_cast<double>(steps);
  for (size_t p = 0; p < names.size(); ++p)
    std::printf("%7.1f us, waiting %5.1f, %6.0f GFLOP/s a core: %s\n", least[2 * p] * per_step,
                least[2 * p + 1] * per_step,
                names[p].work / threads / (least[2 * p] * per_step) * 1e-3, names[p].name.c_str());
  return best;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "time") {
    time_reference_pair(count > 2 ? std::atoi(arguments[2]) : 64,
                        count > 3 ? std::atoi(arguments[3]) : 2,
                        best_for(count > 4 ? Precision::bf16 : Precision::fp32));
    return 0;
  }
  std::printf("instruction set %s\n", isa_name(isa()));
  constexpr int64_t steps = 6;
  for (const Pair& plan : plans) {
    const Images images = make_images(plan, 20);
    const Run exact = reference(plan, images, steps);
    for (Instructions instructions : {Instructions::fp32, Instructions::fp32_amx}) {
      if (!has_instructions(instructions)) continue;
      const Run one = engine(plan, images, steps, 1, false, instructions);
      compare(plan, one, exact);
      for (int threads : {2, 3, 5})
        expect(
            same(one, engine(plan, images, steps, threads, false, instructions)), plan,
            std::string(instructions_name(instructions)) + ": bits differ with threads:", threads);
      expect(same(one, engine(plan, images, steps, 2, false, instructions, false)), plan,
             "bits differ without measuring", 0);
      compare(plan, engine(plan, images, steps, 2, true, instructions), exact);
      for (int64_t ranks : {1, 3, 7})
        if (whole_packs(plan, ranks))
          compare(plan, engine_of_ranks(plan, images, steps, ranks, 2, instructions), exact);
    }
    for (Instructions instructions :
         {Instructions::bf16_emulated, Instructions::bf16_avx512, Instructions::bf16_amx}) {
      if (!has_instructions(instructions) || !plan.penalties.empty()) continue;
      const Run narrow = engine(plan, images, 1, 1, false, instructions);
      Run first = reference(plan, images, 1);
      compare(plan, narrow, first, kLoose);
      const Run all = engine(plan, images, steps, 1, false, instructions);
      for (int threads : {2, 5})
        expect(
            same(all, engine(plan, images, steps, threads, false, instructions)), plan,
            std::string(instructions_name(instructions)) + ": bits differ with threads:", threads);
    }
  }
  const Images images = make_images(plans[1], 20);
  const Run alone = engine(plans[1], images, steps, 2, false);
  std::vector<std::thread> users;
  for (int i = 0; i < 3; ++i)
    users.emplace_back([&] {
      wake_team(3);
      expect(same(alone, engine(plans[1], images, steps, 3, false)), plans[1],
             "bits differ from another thread", 0);
    });
  for (std::thread& user : users) user.join();
  // Every plan at once, a thread each, as the members of an ensemble are.
  std::vector<Run> each;
  for (const Pair& plan : plans)
    each.push_back(engine(plan, make_images(plan, 20), steps, 1, false));
  std::vector<std::thread> members;
  for (const Run& own : each)
    members.emplace_back([&] {
      const Pair& plan = plans[&own - each.data()];
      const Images images = make_images(plan, 20);
      for (bool one_by_one : {false, true})
        expect(same(own, engine(plan, images, steps, 1, one_by_one)), plan,
               "bits differ beside other plans", 0);
    });
  for (std::thread& member : members) member.join();
#if !defined(__SANITIZE_THREAD__)  // which does not follow threads started after a fork
  if (count > 1 && std::string(arguments[1]) == "no-fork") {  // for emulators, which do not either
    std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
    return failures != 0;
  }
  const pid_t child = fork();
  if (child == 0) _exit(same(alone, engine(plans[1], images, steps, 2, false)) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, plans[1], "forked child, status", status);
#endif
  std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
  return failures != 0;
}
