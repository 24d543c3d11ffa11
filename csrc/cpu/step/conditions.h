// What belongs to a sample, in the networks' inputs; part of stepper.h.

// Where a sample's columns begin in a network's input: of D's a row may have several samples.
int64_t Stepper::row_of_sample(const Field& input, int64_t sample) const {
  if (&input != &job_.images) return sample * input.stride;
  return sample / job_.d.pack * input.stride + sample % job_.d.pack * job_.d.unit();
}

// Which of the stored samples a row's condition is that of. Points between real and fake samples
// have the real one's.
int64_t Stepper::source_of(const Network& network, int segment, int64_t row) const {
  const int64_t real = order_ ? order_[row] : given_from_ + row;
  const bool in_d = &network == &job_.d;
  if (job_.condition.drawn == nullptr || (in_d && segment <= kReal)) return real;
  const bool for_g = segment == (in_d ? static_cast<int>(kFakeForG) : 1);
  const int64_t of_g = shares_draws() ? job_.d_steps - 1 : job_.d_steps + g_step_;
  const int64_t update = for_g ? of_g : d_step_;
  return job_.condition
      .drawn[(step_ * (job_.d_steps + job_.g_steps) + update) * job_.batch + first_sample_ + row];
}

void Stepper::condition_row(const Network& network, const Field& input, int segment,
                            int64_t row) const {
  const int64_t source = source_of(network, segment, row);
  for (const PlannedPart& part : network.parts) {
    const int64_t at = row_of_sample(input, row) + part.at;
    float* __restrict const to = rows(input, input.rows, segment) + at;
    const int64_t label = job_.condition.labels ? job_.condition.labels[source] : 0;
    if (part.of == PartOf::one_hot) {
      for (int64_t j = 0; j < part.width; ++j) to[j] = j == label ? 1.f : 0.f;
    } else {
      const float* const from = part.of == PartOf::embedding
                                    ? part.table.value + label * part.width
                                    : job_.condition.numbers + source * part.width;
      for (int64_t j = 0; j < part.width; ++j) to[j] = from[j];
    }
    round_row(to, rows(input, input.row_factors, segment) + at, part.width);
  }
}

// What G has made goes into D's input.
void Stepper::join(int segment) {
  const Field &x = job_.images, &made = job_.made;
  take_rows(job_.g);
  const int of = shared_ && segment == kFake ? static_cast<int>(kFakeForG) : segment;
  each_own_rows(1, [&](int, Range within) {
    for (int64_t i = within.begin; i < within.end; ++i) {
      const int64_t at = row_of_sample(x, i) + job_.d.own_at;
      const float* const from = rows(made, made.rows, of) + i * made.stride;
      float* __restrict const to = rows(x, x.rows, segment) + at;
      for (int64_t j = 0; j < made.width; ++j) to[j] = from[j];
      round_row(to, rows(x, x.row_factors, segment) + at, made.width);
      condition_row(job_.d, x, segment, i);
    }
  });
}

// What G has made for its own update is D's fake batch, too.
void Stepper::share_samples() {
  const Field& x = job_.images;
  each_own_rows(1, [&](int, Range within) {
    for (int64_t i = within.begin; i < within.end; ++i) {
      const int64_t at = i * x.stride;
      const float* const from = rows(x, x.rows, kFakeForG) + at;
      float* __restrict const to = rows(x, x.rows, kFake) + at;
      for (int64_t j = 0; j < x.width; ++j) to[j] = from[j];
      round_row(to, rows(x, x.row_factors, kFake) + at, x.width);
    }
  });
}

// The gradient of D's input is that of what G has made, in its columns. `layer` is D's first, whose
// backward sums may be in two halves, and `lower` G's last.
void Stepper::split(const Layer& layer, const Layer& lower, int segment) {
  const Field &x = job_.images, &made = job_.made;
  const bool summed = layer.middle > 0 && job_.d.layers.size() > 1;
  take_rows(job_.g);
  const auto take = [&](int64_t i, Range features) {
    const int64_t at = row_of_sample(x, i) + job_.d.own_at;
    const float* const from = rows(x, x.grads, segment) + at;
    float* __restrict const to = rows(made, made.grads, segment) + i * made.stride;
    for (int64_t j = features.begin; j < features.end; ++j) to[j] = from[j];
    if (summed) add_rows(to + features.begin, job_.halves + at + features.begin, length(features));
  };
  const int below = segment - lower.lift;
  if (joined(lower)) {
    const Range features = own_features(made.width);
    for (int64_t i = 0; i < batch_; ++i) take(i, features);
    finish_grads(lower, features, below, 1);
    return;
  }
  each_own_rows(1, [&](int, Range within) {
    for (int64_t i = within.begin; i < within.end; ++i) take(i, {0, made.width});
    differentiate(lower, {0, made.width}, within, below);
  });
}

// The gradients of columns that embeddings have made, before the first layer's weight moves.
void Stepper::table_products(const Network& network, int from, int segments) {
  const Layer& layer = network.layers.front();
  const Field& above = *layer.above;
  for (const PlannedPart& part : network.parts) {
    if (!part.embeds) continue;
    const Grid grid = divide(panels(part.width), blocks_);
    if (grid.idle) continue;
    for (int s = from; s < from + segments; ++s) {
      const bool bent = due(s) && !layer.straight;
      // Those of the scores are not rounded to be factors, as the head takes no product of rows.
      const bool head = &layer == &job_.d.layers.back();
      float* const form = bent ? above.bends : head ? above.grads : above.grad_factors;
      rows_product<false>({form, above.stride, s + layer.lift}, {0, layer.out},
                          {layer.weight.value + part.at, layer.in},
                          features_of(grid.features, part.width), grid.others,
                          {part.grads, part.stride, s}, [](Range, Range) {});
    }
  }
}

// A thread has some rows of each table. Of rows that are penalised where nothing above is curved,
// gradients are those of the score; see penalty.h.
void Stepper::table_updates(const Network& network, const Move& move, int from, int segments) {
  const bool straight = network.layers.front().straight;
  for (const PlannedPart& part : network.parts) {
    if (!part.embeds) continue;
    const int64_t width = part.width;
    const auto [begin, end] = share(part.classes, thread_, threads_);
    for (int64_t j = begin * width; j < end * width; ++j) part.sums[j] = 0;
    for (int s = from; s < from + segments; ++s) {
      const bool weighed = due(s) && straight;
      if (weighed && s == kBetween) continue;
      for (int64_t i = 0; i < batch_; ++i) {
        const int64_t label = job_.condition.labels[source_of(network, s, i)];
        if (label < begin || label >= end) continue;
        const float* const g = part.grads + (s * padded_ + i) * part.stride;
        const float by = weighed ? coefficients(s)[i] : 1.f;
        float* __restrict const to = part.sums + label * width;
        for (int64_t j = 0; j < width; ++j) to[j] += by * g[j];
      }
    }
    // A row at a time, so that which numbers share a vector is the same for any number of threads.
    for (int64_t label = begin; label < end; ++label)
      use(move, part.table, label * width, width, part.sums + label * width);
  }
}
