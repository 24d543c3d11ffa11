// The operators of the fused engine on the CPU: a plan, the networks' own tensors and one block of
// working memory in, steps done.
#include <algorithm>
#include <cstdio>

#include "cpu/step/job.h"
#include "cpu/team.h"
#include "step/arguments.h"
#include "step/decode.h"
#include "step/rows.h"

namespace fastgan::cpu::step {

namespace {

constexpr int64_t kMostThreads = 4096;
constexpr int64_t kMostRanks = int64_t{1} << 24;

void check_threads(int64_t threads) {
  STD_TORCH_CHECK(threads >= 1 && threads <= kMostThreads, "threads is ", threads,
                  "; expected 1 to ", kMostThreads);
}

Job job_of(const DecodedPlan& plan, int64_t threads) {
  check_threads(threads);
  Job job;
  adopt(plan, job);
  job.penalties = plan.penalties;
  job.instructions = best_for(plan.precision);
  job.threads = threads;
  return job;
}

Job sized(const Tensor& plan, const Tensor& settings, int64_t threads) {
  return job_of(decode(plan, settings, nullptr, plan, nullptr), threads);
}

std::string products_op(std::string precision) {
  STD_TORCH_CHECK(precision == "fp32" || precision == "bf16", "precision is '", precision,
                  "'; expected 'fp32' or 'bf16'");
  return instructions_name(best_for(precision == "bf16" ? Precision::bf16 : Precision::fp32));
}

// One line for each enum: its name, then name=number of each entry.
std::string enums_op() {
  std::string text;
  int64_t next = 0;
  const auto start = [&](const char* name) {
    text += (text.empty() ? "" : "\n") + std::string(name);
    next = 0;
  };
  const auto entry = [&](const char* name, int64_t number) {
    text += " " + std::string(name) + "=" + std::to_string(number);
    next = number + 1;
  };
#define FASTGAN_ENTRY(name) entry(#name, next);
#define FASTGAN_NUMBERED(name, number) entry(#name, number);
  start("Activation");
  FASTGAN_ACTIVATIONS(FASTGAN_ENTRY)
  start("Norm");
  FASTGAN_NORMS(FASTGAN_ENTRY)
  start("Loss");
  FASTGAN_LOSSES(FASTGAN_ENTRY)
  start("Penalty");
  FASTGAN_PENALTIES(FASTGAN_ENTRY)
  start("Place");
  FASTGAN_PLACES(FASTGAN_ENTRY)
  start("PartOf");
  FASTGAN_PARTS(FASTGAN_ENTRY)
  start("HeadOf");
  FASTGAN_HEADS(FASTGAN_ENTRY)
  start("TermOf");
  FASTGAN_TERMS(FASTGAN_ENTRY)
  start("JoinOf");
  FASTGAN_JOINS(FASTGAN_ENTRY)
  start("Rule");
  FASTGAN_RULES(FASTGAN_ENTRY)
  start("Precision");
  FASTGAN_PRECISIONS(FASTGAN_ENTRY)
  start("Statistic");
  FASTGAN_STATISTICS(FASTGAN_ENTRY)
  start("Sum");
  FASTGAN_SUMS(FASTGAN_ENTRY)
  start("Pass");
  FASTGAN_PASSES(FASTGAN_ENTRY)
  start("Stream");
  FASTGAN_STREAMS(FASTGAN_NUMBERED)
#undef FASTGAN_NUMBERED
#undef FASTGAN_ENTRY
  return text;
}

// One line for each phase: operations, a space, the name.
std::string phases_op(const Tensor& plan, const Tensor& settings) {
  Job job = sized(plan, settings, 1);
  plan_memory(job, nullptr);
  std::string lines;
  for (const PhaseReport& phase : report(job)) {
    char work[64];
    std::snprintf(work, sizeof work, "%.0f ", phase.work);
    lines += work + phase.name + "\n";
  }
  return lines;
}

void wake_op(int64_t threads) {
  check_threads(threads);
  wake_team(static_cast<int>(threads));
}

int64_t memory_op(const Tensor& plan, const Tensor& settings, int64_t threads) {
  Job job = sized(plan, settings, threads);
  return static_cast<int64_t>(plan_memory(job, nullptr));
}

// Where a measured step adds up; null if none is.
double* checked_sums(const Job& job, const std::optional<Tensor>& sums, const Tensor& like,
                     Apart& apart) {
  if (!sums) return nullptr;
  const int64_t numbers = kSums + static_cast<int64_t>(job.g.terms.size());
  check_table(*sums, "sums", ScalarType::Double, "float64", like, "memory");
  STD_TORCH_CHECK(sums->numel() == numbers, "sums has shape ", shape_of(*sums), "; expected [",
                  numbers, "]");
  apart.written(*sums, "sums");
  return static_cast<double*>(sums->mutable_data_ptr());
}

// Where the run's first update begins among the entries of `order`, and where its last one ends:
// batches of an epoch follow each other, and so do the epochs.
struct Entries {
  int64_t first, end, permutations;
};
Entries entries_of(const Job& job, int64_t updates) {
  const int64_t per_epoch = batches_per_epoch(job.count, job.batch);
  const int64_t start = job.first_step * job.d_steps % per_epoch, end = start + updates;
  times(end / per_epoch + 2, job.count);  // so that what follows fits
  const int64_t whole = end / per_epoch * job.count;
  return {start * job.batch, whole + end % per_epoch * job.batch,
          (end + per_epoch - 1) / per_epoch};
}

bool conditioned(const Job& job) { return !job.g.parts.empty() || !job.d.parts.empty(); }

// What belongs to the stored samples, or to those that are fed, and which of it fake ones have;
// what it says is checked by check_drawn() and check_label().
void take_condition(Job& job, const std::optional<Tensor>& condition,
                    const std::optional<Tensor>& drawn, int64_t stored, const Tensor& like,
                    Apart& apart) {
  if (!conditioned(job)) {
    STD_TORCH_CHECK(!condition && !drawn,
                    "condition or drawn is given, and plan has no use for it");
    return;
  }
  STD_TORCH_CHECK(condition.has_value(),
                  "condition is None, and plan has parts that are made of it");
  const bool labels = condition->scalar_type() == ScalarType::Long;
  check_table(*condition, "condition", labels ? ScalarType::Long : ScalarType::Float,
              labels ? "int64" : "float32", like, "memory");
  STD_TORCH_CHECK(condition->dim() == (labels ? 1 : 2) && condition->size(0) == stored,
                  "condition has shape ", shape_of(*condition), "; expected one for each of ",
                  stored, " samples, [n] of labels or [n, numbers]");
  ConditionSource& source = job.condition;
  if (labels) {
    source.labels = static_cast<const int64_t*>(condition->const_data_ptr());
  } else {
    source.numbers = static_cast<const float*>(condition->const_data_ptr());
    source.width = condition->size(1);
  }
  for (const Network* network : {&job.g, &job.d})
    for (const PlannedPart& part : network->parts) {
      const bool numbers = part.of == PartOf::numbers;
      STD_TORCH_CHECK(numbers != labels && (!numbers || part.width == source.width),
                      "condition is not of the kind or the width that plan says");
    }
  apart.read(*condition, "condition");
  if (!drawn) return;
  check_table(*drawn, "drawn", ScalarType::Long, "int64", like, "memory");
  const int64_t entries = times(times(job.steps, job.d_steps + job.g_steps), job.batch);
  STD_TORCH_CHECK(drawn->numel() == entries, "drawn has ", drawn->numel(), " elements; expected ",
                  entries, ", a batch for each update");
  source.drawn = static_cast<const int64_t*>(drawn->const_data_ptr());
  apart.read(*drawn, "drawn");
}

// Labels that every part made of them has, from 0 on.
int64_t classes_of(const Job& job) {
  int64_t classes = INT64_MAX;
  for (const Network* network : {&job.g, &job.d})
    for (const PlannedPart& part : network->parts) classes = std::min(classes, part.classes);
  const int64_t asked = job.g.asked();
  return asked ? std::min(classes, asked) : classes;
}

void check_label(const ConditionSource& source, int64_t i, int64_t classes) {
  STD_TORCH_CHECK(source.labels == nullptr || (0 <= source.labels[i] && source.labels[i] < classes),
                  "condition[", i, "] is ", source.labels[i], "; expected a label of 0 to ",
                  classes - 1);
}

void check_drawn(const ConditionSource& source, int64_t i, int64_t stored) {
  STD_TORCH_CHECK(0 <= source.drawn[i] && source.drawn[i] < stored, "drawn[", i, "] is ",
                  source.drawn[i], "; expected the place of a condition, 0 to ", stored - 1);
}

// All of it, for a run of whole steps.
void check_condition(const Job& job, int64_t stored, int64_t entries) {
  const int64_t classes = classes_of(job);
  for (int64_t i = 0; job.condition.labels && i < stored; ++i)
    check_label(job.condition, i, classes);
  for (int64_t i = 0; job.condition.drawn && i < entries; ++i)
    check_drawn(job.condition, i, stored);
}

// What a part reads of it: of `rows` samples from the one that is `first` of its batch.
// `before`: where those of the batch begin, without an order.
void check_condition_of_part(const Job& job, const int64_t* order, int64_t before, int64_t first,
                             int64_t rows, int64_t stored) {
  const int64_t classes = classes_of(job);
  for (int64_t i = 0; i < rows; ++i)
    check_label(job.condition, order ? order[i] : before + first + i, classes);
  for (int64_t u = 0; job.condition.drawn && u < job.d_steps + job.g_steps; ++u)
    for (int64_t i = u * job.batch + first; i < u * job.batch + first + rows; ++i) {
      check_drawn(job.condition, i, stored);
      check_label(job.condition, job.condition.drawn[i], classes);
    }
}

void run_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
            const Tensor& memory, const Tensor& images, const std::optional<Tensor>& order,
            const Tensor& rates, const Tensor& statistics, const std::optional<Tensor>& profile,
            int64_t first_step, int64_t threads, const std::optional<Tensor>& condition,
            const std::optional<Tensor>& drawn, const std::optional<Tensor>& sums) {
  Apart apart;
  const DecodedPlan decoded = decode(plan, settings, &state, plan, &apart);
  Job job = job_of(decoded, threads);
  job.steps = check_statistics(statistics, plan);
  job.statistics = static_cast<float*>(statistics.mutable_data_ptr());
  check_steps(first_step, job.steps, job.d_steps, job.g_steps);
  job.first_step = first_step;

  check_table(rates, "rates", ScalarType::Double, "float64", plan, "memory");
  job.rates_vary = rates.dim() == 2;
  STD_TORCH_CHECK(rates.numel() == (job.rates_vary ? times(2, job.steps) : 2) &&
                      (!job.rates_vary || rates.size(1) == 2),
                  "rates has shape ", shape_of(rates), "; expected [2] or [steps, 2]");
  job.rates = static_cast<const double*>(rates.const_data_ptr());

  const int64_t updates = times(job.steps, job.d_steps);
  const Entries entries = entries_of(job, updates);
  const int64_t rows = order ? job.count : entries.end - entries.first;
  static_cast<ImageSource&>(job) =
      check_images(images, rows, job.d.own(), order, times(entries.permutations, job.count), plan);
  if (order) check_order(job.order + entries.first, entries.end - entries.first, job.stored);
  const int64_t conditions = order ? job.stored : rows;
  take_condition(job, condition, drawn, conditions, plan, apart);
  check_condition(job, conditions, drawn ? drawn->numel() : 0);

  check_given(memory, "memory");
  STD_TORCH_CHECK(memory.is_cpu(), "memory must be on the CPU");
  plan_memory(job, check_memory(memory, plan_memory(job, nullptr), 64));
  if (profile) {
    const int64_t count =
        static_cast<int64_t>(job.d_phases.size() + job.g_phases.size() + job.more_phases.size());
    check_table(*profile, "profile", ScalarType::Double, "float64", plan, "memory");
    STD_TORCH_CHECK(profile->numel() == 2 * count, "profile has shape ", shape_of(*profile),
                    "; expected [", count, ", 2]");
    job.profile = static_cast<double*>(profile->mutable_data_ptr());
    apart.written(*profile, "profile");
  }
  job.sums = checked_sums(job, sums, plan, apart);
  apart.written(memory, "memory");
  apart.written(statistics, "statistics");
  apart.read(images, "images");
  apart.read(rates, "rates");
  if (order) apart.read(*order, "order");
  apart.check();
  if (job.steps == 0) return;
  run(job);
  for (float* counter : decoded.g_counters) *counter += static_cast<float>(job.steps * job.g_steps);
  for (float* counter : decoded.d_counters) *counter += static_cast<float>(updates);
}

// What both parts of an update are told: the plan, and where the gradients of one network lie.
struct PartOf {
  Apart apart;
  DecodedPlan decoded;
  Job job;

  PartOf(Part part, const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
         const Tensor& gradients, int64_t update, int64_t threads)
      : decoded(decode(plan, settings, &state, plan, &apart)), job(job_of(decoded, threads)) {
    job.part = part;
    const int64_t updates = job.d_steps + job.g_steps;
    STD_TORCH_CHECK(update >= 0 && update < updates, "update is ", update,
                    "; expected one of D's, 0 to ", job.d_steps - 1, ", or of G's, ", job.d_steps,
                    " to ", updates - 1);
    job.update = update;
    check_table(gradients, "gradients", ScalarType::Float, "float32", plan, "memory");
    const int64_t numbers = gradients_of(job.of_g() ? job.g : job.d);
    STD_TORCH_CHECK(gradients.numel() == numbers + kStatistics, "gradients has ", gradients.numel(),
                    " elements; expected ", numbers, " and the ", kStatistics, " statistics");
    job.gradients = static_cast<float*>(gradients.mutable_data_ptr());
    job.statistics = job.gradients + numbers;
    apart.written(gradients, "gradients");
  }

  void place(const Tensor& memory) {
    check_given(memory, "memory");
    STD_TORCH_CHECK(memory.is_cpu(), "memory must be on the CPU");
    plan_memory(job, check_memory(memory, plan_memory(job, nullptr), 64));
    apart.written(memory, "memory");
    apart.check();
  }
};

// Where moments over the rows wait for those of other ranks; refuses what they need and do not get.
void take_moments(Job& job, const std::optional<Tensor>& moments, const Tensor& like,
                  Apart& apart) {
  job.moments_stride = job.summed() ? widest_moments(job) : 0;
  STD_TORCH_CHECK(moments.has_value() == (job.moments_stride > 0),
                  moments ? "moments is given, and nothing of plan needs other ranks' rows"
                          : "moments is None, and plan has a BatchNorm or a term of moments, which "
                            "are of all ranks' rows");
  if (!moments) return;
  check_table(*moments, "moments", ScalarType::Double, "float64", like, "memory");
  const int64_t own = times(kMoments, job.moments_stride);
  STD_TORCH_CHECK(
      moments->dim() == 2 && moments->size(0) == job.ranks && moments->size(1) == own,
      "moments has shape ", shape_of(*moments), "; expected [", job.ranks, ", ", own,
      "], four numbers of each feature of the widest BatchNorm, or of G's output, for each rank");
  job.moments = static_cast<double*>(moments->mutable_data_ptr());
  apart.written(*moments, "moments");
}

int64_t gradients_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
                     const Tensor& memory, const Tensor& images, const std::optional<Tensor>& order,
                     const Tensor& gradients, int64_t step, int64_t update, int64_t rank,
                     int64_t ranks, int64_t threads, const std::optional<Tensor>& sums,
                     int64_t phase, const std::optional<Tensor>& moments,
                     const std::optional<Tensor>& condition, const std::optional<Tensor>& drawn) {
  PartOf part(Part::gradients, plan, settings, state, gradients, update, threads);
  Job& job = part.job;
  check_steps(step, 1, job.d_steps, job.g_steps);
  STD_TORCH_CHECK(0 <= rank && rank < ranks && ranks <= kMostRanks, "rank is ", rank, " of ", ranks,
                  "; expected 0 <= rank < ranks <= ", kMostRanks);
  job.first_step = step;
  job.steps = 1;
  job.rank = rank;
  job.ranks = ranks;
  take_moments(job, moments, plan, part.apart);

  const int64_t per_epoch = batches_per_epoch(job.count, job.batch);
  const int64_t start = step * job.d_steps;
  const int64_t number = start + std::min(update, job.d_steps - 1);
  const int64_t whole = rows_in_update(number, job.count, job.batch, per_epoch);
  const int64_t first = first_of_rank(whole, rank, ranks);
  const int64_t rows = first_of_rank(whole, rank + 1, ranks) - first;
  STD_TORCH_CHECK(first % job.d.pack == 0 && rows % job.d.pack == 0, "rank ", rank, " has rows ",
                  first, " to ", first + rows, " of a batch, and plan packs of ", job.d.pack);
  const int64_t* mine = nullptr;
  // An update of G has its images in memory, and of the order what belongs to them.
  if (!job.of_g() || (order && conditioned(job))) {
    const int64_t before = number / per_epoch - start / per_epoch;
    static_cast<ImageSource&>(job) = check_images(images, order ? job.count : rows, job.d.own(),
                                                  order, times(before + 1, job.count), plan);
    if (order) {
      mine = job.order + before * job.count + first_row(number, job.batch, per_epoch) + first;
      check_order(mine, rows, job.stored);
      part.apart.read(*order, "order");
    }
    part.apart.read(images, "images");
  }
  if (conditioned(job) || condition || drawn) {
    int64_t before = 0, all = 0;  // rows of the step's batches, and those before the update's
    for (int64_t u = start; u < start + job.d_steps; ++u) {
      if (u == number) before = all;
      all += rows_in_update(u, job.count, job.batch, per_epoch);
    }
    const int64_t stored = order ? job.stored : all;
    take_condition(job, condition, drawn, stored, plan, part.apart);
    check_condition_of_part(job, mine, before, first, rows, stored);
  }
  job.sums = checked_sums(job, sums, plan, part.apart);
  part.place(memory);
  STD_TORCH_CHECK(
      phase == 0 || (phase > 0 && phase < job.phase_count && job.phases[phase - 1].ends_part()),
      "phase is ", phase, "; expected 0, or where a part of this update has ended");
  job.phase = phase;
  if (job.sums && rows == 0) {
    const bool terms = job.of_g();
    std::fill_n(job.sums + (terms ? kSums : 0), terms ? job.g.terms.size() : kScoreSums, 0.0);
  }
  const int64_t numbers = gradients.numel();
  if (rows == 0)
    std::fill_n(job.gradients, numbers, 0.f);
  else
    std::fill_n(job.statistics, kStatistics, 0.f);
  if (rows > 0 || job.moments) run(job);
  return job.next;
}

void move_op(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>& state,
             const Tensor& memory, const Tensor& gradients, const Tensor& rates, int64_t update,
             int64_t threads, const std::optional<Tensor>& sums, int64_t step) {
  PartOf part(Part::move, plan, settings, state, gradients, update, threads);
  Job& job = part.job;
  check_steps(step, 1, job.d_steps, job.g_steps);
  job.first_step = step;
  check_table(rates, "rates", ScalarType::Double, "float64", plan, "memory");
  STD_TORCH_CHECK(rates.numel() == 2, "rates has shape ", shape_of(rates), "; expected [2]");
  job.rates = static_cast<const double*>(rates.const_data_ptr());
  part.apart.read(rates, "rates");
  job.sums = checked_sums(job, sums, plan, part.apart);
  part.place(memory);
  run(job);
  for (float* counter : job.of_g() ? part.decoded.g_counters : part.decoded.d_counters)
    *counter += 1;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("fused_products", TORCH_BOX(&products_op));
  m.impl("fused_enums", TORCH_BOX(&enums_op));
  m.impl("fused_wake", TORCH_BOX(&wake_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) {
  m.impl("fused_memory", TORCH_BOX(&memory_op));
  m.impl("fused_phases", TORCH_BOX(&phases_op));
  m.impl("fused_run", TORCH_BOX(&run_op));
  m.impl("fused_gradients", TORCH_BOX(&gradients_op));
  m.impl("fused_move", TORCH_BOX(&move_op));
}

}  // namespace fastgan::cpu::step
