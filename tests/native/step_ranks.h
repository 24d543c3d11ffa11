// The step in parts, as ranks that share each batch do it, one after another; part of
// step_main.cpp.

// A rank's own tensors and memory.
struct Rank {
  Run run;
  std::unique_ptr<Memory> memory;
  std::vector<float> gradients;
  std::vector<double> moments, sums;
};

// Sums over the ranks, on all of them.
template <class T>
void total(std::vector<Rank>& ranks, std::vector<T> Rank::* of, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    T sum = 0;
    for (Rank& rank : ranks) sum += (rank.*of)[i];
    for (Rank& rank : ranks) (rank.*of)[i] = sum;
  }
}

// The gradients of an update: every rank goes on when all have come to the end of a part.
void gradients_of_ranks(std::vector<Rank>& ranks, const std::vector<Job>& jobs) {
  int64_t phase = 0;
  do {
    int64_t next = 0;
    for (size_t r = 0; r < ranks.size(); ++r) {
      Job job = jobs[r];
      Rank& rank = ranks[r];
      job.moments_stride = job.summed() ? widest_moments(job) : 0;
      rank.moments.resize(ranks.size() * kMoments * job.moments_stride);
      job.moments = job.moments_stride ? rank.moments.data() : nullptr;
      job.phase = phase;
      job.gradients = rank.gradients.data();
      job.statistics = job.gradients + rank.gradients.size() - kStatistics;
      job.sums = rank.sums.data();
      plan_memory(job, rank.memory->data);
      const int64_t update = job.first_step * job.d_steps + std::min(job.update, job.d_steps - 1);
      const int64_t per_epoch = (job.count + job.batch - 1) / job.batch;
      const int64_t whole = rows_in_update(update, job.count, job.batch, per_epoch);
      const bool idle = first_of_rank(whole, job.rank, job.ranks) ==
                        first_of_rank(whole, job.rank + 1, job.ranks);
      std::fill(idle ? rank.gradients.begin() : rank.gradients.end() - kStatistics,
                rank.gradients.end(), 0.f);
      if (idle && !job.of_g()) std::fill(rank.sums.begin(), rank.sums.begin() + kScoreSums, 0.0);
      if (!idle || job.moments) step::run(job);
      if (!idle || job.moments) next = job.next;
    }
    phase = next;
    for (size_t r = 0; r < ranks.size(); ++r)
      for (Rank& other : ranks) {
        const size_t own = ranks[r].moments.size() / ranks.size();
        std::copy_n(ranks[r].moments.begin() + r * own, own, other.moments.begin() + r * own);
      }
  } while (phase);
  total(ranks, &Rank::gradients, 0, ranks[0].gradients.size());
}

// Whether every rank's rows are whole packs.
bool whole_packs(const Pair& plan, int64_t size) {
  const int64_t last = plan.count % plan.batch ? plan.count % plan.batch : plan.batch;
  for (const int64_t rows : {plan.batch, last})
    for (int64_t rank = 0; rank < size; ++rank)
      if (first_of_rank(rows, rank, size) % plan.pack) return false;
  return true;
}

Run engine_of_ranks(const Pair& plan, const Images& images, int64_t steps, int64_t size,
                    int threads, Instructions instructions) {
  std::vector<Rank> ranks(size);
  for (Rank& rank : ranks) {
    uint64_t state = 1;
    rank.run.g = make_state(plan.latent, plan.g, true, state, plan.g_parts, plan.g_joins);
    rank.run.d = make_state(plan.image, plan.d, plan.last_bias, state, plan.d_parts, plan.d_joins,
                            plan.pack);
    rank.sums.resize(kSums);
    Job whole = job_of(plan, rank.run, 0, threads, instructions);
    rank.memory = std::make_unique<Memory>(plan_memory(whole, nullptr));
  }
  std::vector<int64_t> sources;
  for (int64_t i = 0; i < plan.count; ++i) sources.push_back(i);
  const int64_t per_epoch = (plan.count + plan.batch - 1) / plan.batch;
  Run& first = ranks[0].run;
  for (int64_t t = 0; t < steps; ++t) {
    const Given given(plan, sources, 0, t, 1);
    float row[kStatistics] = {};
    for (int64_t update = 0; update < plan.d_steps + plan.g_steps; ++update) {
      const bool of_g = update >= plan.d_steps;
      std::vector<Job> jobs;
      for (int64_t r = 0; r < size; ++r) {
        Job job = job_of(plan, ranks[r].run, t, threads, instructions);
        (of_g ? job.g : job.d).updates += of_g ? update - plan.d_steps : update;
        job.steps = 1;
        job.update = update;
        job.bytes = images.bytes.data();
        job.order = images.order.data() + t * plan.d_steps / per_epoch * plan.count;
        job.condition = given.source();
        job.part = Part::gradients;
        job.rank = r;
        job.ranks = size;
        ranks[r].gradients.assign(gradients_of(of_g ? job.g : job.d) + kStatistics, 7.f);
        jobs.push_back(job);
      }
      gradients_of_ranks(ranks, jobs);
      if (!of_g) total(ranks, &Rank::sums, 0, kScoreSums);
      for (int64_t r = 0; r < size; ++r) {
        Job& job = jobs[r];
        job.part = Part::move;
        job.rank = 0;
        job.ranks = 1;
        job.gradients = ranks[r].gradients.data();
        job.sums = ranks[r].sums.data();
        plan_memory(job, ranks[r].memory->data);
        step::run(job);
      }
      const float* const own = &ranks[0].gradients[ranks[0].gradients.size() - kStatistics];
      const auto g_loss = static_cast<int64_t>(Statistic::g_loss);
      for (int64_t i = 0; i < kStatistics; ++i)
        if (of_g == (i == g_loss)) row[i] = own[i];
    }
    first.statistics.insert(first.statistics.end(), row, row + kStatistics);
  }
  first.sums = ranks[0].sums;
  for (Rank& rank : ranks) {
    rank.run.statistics = first.statistics;
    expect(same(rank.run, first), plan, "bits differ between ranks:", static_cast<double>(size));
  }
  return first;
}
