// G's heads: what its last layer has made becomes numbers, shares of classes and choices of one
// (E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017); part
// of stepper.h. A row is the work of one thread, as a head may lie across panels.

// One row; `noise`: of all its choices.
void Stepper::activate_heads(float* x, const float* noise) const {
  const PlannedHead* const end = job_.g.heads.data() + job_.g.heads.size();
  for (const PlannedHead* head = job_.g.heads.data(); head < end;) {
    if (head->of == HeadOf::columns) {
      with_activation(head->activation, [&](auto activation) {
        constexpr Activation kind = decltype(activation)::value;
        float* const own = x + head->at;
        for (int64_t j = 0; j < head->width; ++j)
          own[j] = kind == Activation::tanh ? math::tanh(own[j]) : activate<kind>(own[j], head->by);
      });
      ++head;
      continue;
    }
    // Exponentials are taken of all groups that stand together: one alone is narrow.
    const PlannedHead* const first = head;
    for (; head < end && head->of != HeadOf::columns; ++head) {
      float* const own = x + head->at;
      if (head->of == HeadOf::gumbel) {
        add_rows(own, noise, head->width);
        noise += head->width;
      }
      float most = own[0];
      for (int64_t j = 1; j < head->width; ++j) most = own[j] > most ? own[j] : most;
      const float by = 1.f / head->by;
      for (int64_t j = 0; j < head->width; ++j) own[j] = (own[j] - most) * by;
    }
    const int64_t begin = first->at, past = head[-1].at + head[-1].width;
    for (int64_t j = begin; j < past; ++j) x[j] = math::exp(x[j]);
    for (const PlannedHead* group = first; group < head; ++group) {
      float* const own = x + group->at;
      const float by = 1.f / total(own, group->width);
      for (int64_t j = 0; j < group->width; ++j) own[j] *= by;
    }
  }
}

// Of those that are hard, the first of the largest shares becomes 1. What is not finite stays.
void Stepper::harden(float* x) const {
  for (const PlannedHead& head : job_.g.heads) {
    if (!head.hard) continue;
    float* const own = x + head.at;
    int64_t best = 0;
    for (int64_t j = 1; j < head.width; ++j) best = own[j] > own[best] ? j : best;
    for (int64_t j = 0; j < head.width; ++j) own[j] -= own[j];
    own[best] += 1.f;
  }
}

void Stepper::heads(const Layer& layer, int from, int segments) {
  const Field& field = *layer.above;
  const int64_t choices = job_.g.choices();
  each_own_rows(segments, [&](int s, Range within) {
    const int segment = from + s;
    float* noise = scratch_;
    if (choices > 0) {
      const Philox philox = choice_philox(job_.seed, job_.g.heads_index, drawn_as(segment),
                                          update_number_, g_number_);
      const int64_t at = (first_ + within.begin) * choices, n = length(within) * choices;
      noise += normals(philox, at, n) - scratch_;
      for (int64_t j = 0; j < n; ++j) noise[j] = gumbel_of(noise[j]);
    }
    for (int64_t i = within.begin; i < within.end; ++i) {
      const int64_t at = i * field.stride;
      float* const x = rows(field, field.rows, segment + layer.lift) + at;
      if (job_.asked && segment + layer.lift == kFakeForG) ask(x, i);
      activate_heads(x, noise + (i - within.begin) * choices);
      if (job_.shares) {
        if (segment + layer.lift == kFakeForG)
          for (int64_t j = 0; j < layer.out; ++j) job_.shares[at + j] = x[j];
        harden(x);
      }
      round_row(x, rows(field, field.row_factors, segment + layer.lift) + at, layer.out);
    }
  });
}

// The gradient of G's output becomes that of what its last layer has made.
void Stepper::heads_backward(const Layer& layer, int from, int segments) {
  const Field& field = *layer.above;
  const Toward toward = job_.output.mean ? moments_weights() : Toward{0, 0};
  each_own_rows(segments, [&](int s, Range within) {
    const int segment = from + s + layer.lift;
    for (int64_t i = within.begin; i < within.end; ++i) {
      const int64_t at = i * field.stride;
      float* const grads = rows(field, field.grads, segment) + at;
      const float* const values = rows(field, field.rows, segment) + at;
      if (toward.mean != 0 || toward.deviation != 0) add_moments(toward, values, grads);
      for (const PlannedHead& head : job_.g.heads) {
        float* __restrict const g = grads + head.at;
        const float* const y = (head.hard ? job_.shares + at : values) + head.at;
        if (head.of != HeadOf::columns) {
          const float along = dot(y, g, head.width), by = 1.f / head.by;
          for (int64_t j = 0; j < head.width; ++j) g[j] = y[j] * (g[j] - along) * by;
          continue;
        }
        with_activation(head.activation, [&](auto activation) {
          constexpr Activation kind = decltype(activation)::value;
          for (int64_t j = 0; j < head.width; ++j) g[j] = derivative<kind>(g[j], y[j], head.by);
        });
      }
      if (job_.asked) add_asked(i, grads);
      round_row(grads, rows(field, field.grad_factors, segment) + at, layer.out);
    }
  });
}
