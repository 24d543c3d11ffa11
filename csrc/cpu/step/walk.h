// The step from phase to phase; part of stepper.h.

// The parts are added in the order of the rows, whoever computed them.
double Stepper::mean(const double* parts, int segment) const {
  const int64_t scores = samples_ / job_.d.pack, all = whole_samples_ / job_.d.pack;
  double sum = 0;
  for (int64_t i = 0; i * kRowUnit < scores; ++i) sum += parts[segment * job_.units + i];
  return sum / static_cast<double>(all);
}

void Stepper::write(Statistic statistic, double value) {
  job_.statistics[kStatistics * step_ + static_cast<int64_t>(statistic)] =
      static_cast<float>(value);
}

// The averaged network takes the statistics over as they are.
void Stepper::copy_statistics(const Layer& layer) const {
  if (layer.average_mean == nullptr) return;
  for (int64_t f = 0; f < layer.out; ++f) {
    layer.average_mean[f] = layer.running_mean[f];
    layer.average_var[f] = layer.running_var[f];
  }
  *layer.average_batches = *layer.batches;
}

void Stepper::carry_out(const Phase& phase) {
  take_rows(phase.layer < static_cast<int>(job_.g.layers.size()) ? job_.g : job_.d);
  if (phase.of_penalty()) {
    penalise(phase);
    return;
  }
  const Layer& layer = job_.layer(phase.layer);
  const Layer* const lower = phase.other < 0 || phase.work == Phase::update || phase.of_nodes()
                                 ? nullptr
                                 : &job_.layer(phase.other);
  const int front = phase.front && due(kBetween) ? 1 : 0;
  // Samples that both updates share go through G once, as those of G's.
  const int from = phase.shared && shared_ ? 1 : phase.from - front;
  const int segments = phase.segments + front + (phase.shared && last_ && !shared_ ? 1 : 0);
  switch (phase.work) {
    case Phase::inputs:
      if (g_step_ > 0) {
        more_inputs();
        break;
      }
      inputs();
      fed_ += samples_;
      break;
    case Phase::forward:
      if (front > 0 && &layer == &job_.d.layers.front() && job_.lerped)
        first_forward(layer);
      else
        forward(layer, from, segments);
      break;
    case Phase::head:
      head(lower, from, segments);
      break;
    case Phase::backward:
      backward(layer, lower, from, segments);
      break;
    case Phase::sums:
      sum_backward(layer, *lower, from, segments);
      break;
    case Phase::norm:  // of one rank, BatchNorm is joined with the forward phase
      if (layer.row_norm)
        row_norm(layer, from, segments);
      else
        norm_by_ranks(layer, from, segments, false);
      break;
    case Phase::norm_backward:
      if (layer.row_norm)
        row_norm_backward(layer, from, segments, &Field::grads);
      else if (job_.summed())
        norm_by_ranks(layer, from, segments, true);
      else
        norm_backward(layer, own_features(layer.out), from, segments);
      break;
    case Phase::heads:
      heads(layer, from, segments);
      break;
    case Phase::moments_sums:
      leave_moments(layer, 2,
                    [&](Range panel, int s) { return output_moments(layer, panel, s == 1); });
      break;
    case Phase::moments:
      moments(layer);
      break;
    case Phase::heads_backward:
      heads_backward(layer, from, segments);
      break;
    case Phase::norm_sums:
    case Phase::norm_backward_sums:
      norm_sums(layer, from, segments, phase.work == Phase::norm_backward_sums);
      break;
    case Phase::update: {
      const bool of_g = phase.layer == 0;
      if (batch_ > 0) update_all(of_g, from, segments);
      if (thread_ > 0) break;
      if (of_g) {
        write(Statistic::g_loss, static_cast<float>(mean(job_.loss_parts, kFakeForG)));
        for (const Layer& l : job_.g.layers) copy_statistics(l);
        if (job_.sums) write_terms();
      } else {
        write(Statistic::d_loss, static_cast<float>(mean(job_.loss_parts, kReal)) +
                                     static_cast<float>(mean(job_.loss_parts, kFake)));
        write(Statistic::d_real, mean(job_.score_parts, kReal));
        write(Statistic::d_fake, mean(job_.score_parts, kFake));
        if (measured(false)) measure_scores();
      }
      break;
    }
    case Phase::join:
      join(from);
      break;
    case Phase::share:
      if (shared_) share_samples();
      break;
    case Phase::split:
      split(layer, *lower, from);
      break;
    case Phase::gather:
    case Phase::collect:
      of_nodes(phase, from, segments);
      break;
    case Phase::tables:
      table_products(phase.layer == 0 ? job_.g : job_.d, from, segments);
      break;
    case Phase::squares:
      squares(phase.layer == 0);
      break;
    case Phase::clip:
      clip(phase.layer == 0);
      break;
    default:
      break;
  }
  end_phase();
  // Read by all threads until here.
  if (phase.work == (job_.summed() ? Phase::norm : Phase::forward) && layer.norm && layer.batches &&
      thread_ == 0)
    *layer.batches = more_batches(*layer.batches, segments);
}

// Those of a network for the phases of which it is.
void Stepper::take_rows(const Network& network) {
  batch_ = samples_ / network.pack;
  whole_ = whole_samples_ / network.pack;
  first_ = first_sample_ / network.pack;
  blocks_ = (batch_ + kBlock - 1) / kBlock;
  padded_ = &network == &job_.g ? job_.latents.padded : job_.images.padded;
}

void Stepper::begin_update() {
  update_number_ = step_number_ * job_.d_steps + d_step_;
  last_ = d_step_ + 1 == job_.d_steps;
  shared_ = last_ && job_.shared_fakes;
  phase_ = 0;
  begin_g(0);
  whole_samples_ = rows_in_update(update_number_, job_.count, job_.batch,
                                  batches_per_epoch(job_.count, job_.batch));
  first_sample_ = first_of_rank(whole_samples_, job_.rank, job_.ranks);
  samples_ = first_of_rank(whole_samples_, job_.rank + 1, job_.ranks) - first_sample_;
  const int64_t per_epoch = batches_per_epoch(job_.count, job_.batch);
  const int64_t epoch = update_number_ / per_epoch - job_.first_step * job_.d_steps / per_epoch;
  order_ = job_.order ? job_.order + epoch * job_.count +
                            first_row(update_number_, job_.batch, per_epoch) + first_sample_
                      : nullptr;
  fed_from_ = fed_;
  given_from_ = fed_ + first_sample_;
  if (measured(false))
    for (int64_t i = 0; i < 2 * kNetworkSums; ++i) gauge(false)[i] = 0;
}

// The rows of G's updates are those of D's last.
void Stepper::begin_g(int64_t update) {
  g_step_ = update;
  g_number_ = step_number_ * job_.g_steps + update;
  averages_ = update + 1 == job_.g_steps;
}

void Stepper::run_part() {
  const bool of_g = job_.of_g();
  step_number_ = job_.first_step;
  d_step_ = of_g ? job_.d_steps - 1 : job_.update;
  begin_update();
  if (of_g) begin_g(job_.update - job_.d_steps);
  // Images are this update's alone, conditions those of the step's.
  for (int64_t u = update_number_ - d_step_; u < update_number_; ++u)
    given_from_ +=
        rows_in_update(u, job_.count, job_.batch, batches_per_epoch(job_.count, job_.batch));
  if (job_.part == Part::move) {
    squares(of_g);
    end_phase();
    clip(of_g);
    if (job_.sums == nullptr) return;
    end_phase();
    if (thread_ == 0) add_up(of_g);
    return;
  }
  if (!of_g) penalties_of_update();
  start_tiles();
  const Phase* phase = job_.phases + job_.phase;
  const Phase* const end = job_.phases + job_.phase_count;
  for (bool going = true; going && phase < end; ++phase) {
    // A rank without rows takes part in what all ranks know: statistics.
    if (samples_ > 0 || phase->of_all_ranks() || phase->work == Phase::update) carry_out(*phase);
    going = !phase->ends_part();
  }
  if (thread_ == 0) job_.next = phase < end ? phase - job_.phases : 0;
  stop_tiles();
}

void Stepper::run() {
  if (job_.part != Part::steps) {
    run_part();
    return;
  }
  start_tiles();
  if (job_.profile) clock_ = seconds();
  for (step_ = 0; step_ < job_.steps; ++step_) {
    step_number_ = job_.first_step + step_;
    for (d_step_ = 0; d_step_ < job_.d_steps; ++d_step_) {
      begin_update();
      penalties_of_update();
      for (const Phase& phase : job_.d_phases) carry_out(phase);
    }
    for (SlopeWeights& weights : slopes_) weights = {};
    for (const Phase& phase : job_.g_phases) carry_out(phase);
    const int64_t before = phase_;  // where the profile has those that follow
    for (int64_t more = 1; more < job_.g_steps; ++more) {
      begin_g(more);
      phase_ = before;
      for (const Phase& phase : job_.more_phases) carry_out(phase);
    }
  }
  if (job_.sums && thread_ == 0)
    for (const bool of_g : {false, true}) add_up(of_g);
  stop_tiles();
}
