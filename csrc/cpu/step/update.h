// Adam, and the average, on what weight_grads.h has made; part of stepper.h.

// The other rules in Adam's form: RMSprop's first moment is the gradient itself, and nothing is
// corrected; SGD's is the momentum, which nothing divides.
Adam<float> adam_of(const Optimizer& o, double step, double lr) {
  Adam<float> adam =
      make_adam<float>(step, lr, o.beta1, o.beta2, o.eps, o.weight_decay, o.rule == Rule::adamw);
  if (o.rule == Rule::rmsprop || o.rule == Rule::sgd) {
    adam.one_minus_beta1 = adam.inverse_root = 1;
    adam.step_size = static_cast<float>(lr);
  }
  if (o.rule == Rule::rmsprop) adam.beta1 = 0;
  if (o.rule == Rule::sgd) {
    adam.one_minus_beta2 = adam.inverse_root = 0;
    adam.eps = 1;
  }
  return adam;
}

// How much of the weights their average takes; while it is warming up, its half-life grows with the
// steps, and at first it is the weights.
float average_share(double warmup, double decay, int64_t step) {
  if (warmup < INFINITY && decay > 0) {
    const double early = step ? ::pow(0.5, 1 / (warmup * static_cast<double>(step))) : 0.0;
    if (early < decay) decay = early;
  }
  return static_cast<float>(1.0 - decay);
}

// As torch.clamp: NaN stays.
void bound(float* x, int64_t n, float largest) {
  for (int64_t j = 0; j < n; ++j)
    x[j] = x[j] < -largest ? -largest : x[j] > largest ? largest : x[j];
}

void Stepper::apply(const Move& move, const Parameter& p, int64_t at, int64_t n,
                    const float* grad) const {
  if (move.gauge == nullptr)
    move_numbers(move, p, at, n, grad);
  else
    measured_apply(move, p, at, n, grad);
}

void Stepper::move_numbers(const Move& move, const Parameter& p, int64_t at, int64_t n,
                           const float* __restrict grad) const {
  const Adam<float> constants = move.adam;
  float* __restrict value = p.value + at;
  float* __restrict exp_avg = p.exp_avg + at;
  float* __restrict exp_avg_sq = p.exp_avg_sq + at;
  int64_t i = 0;
#if FASTGAN_APPROXIMATIONS
  for (; i + kFloats <= n; i += kFloats)
    adam_vector(constants, grad + i, value + i, exp_avg + i, exp_avg_sq + i);
#endif
  for (; i < n; ++i) adam_update(constants, grad[i], value[i], exp_avg[i], exp_avg_sq[i]);
  if (move.largest_weight < INFINITY) bound(value, n, move.largest_weight);
  if (p.average && averages_) {
    const float share = move.average_share;
    float* __restrict average = p.average + at;
    for (int64_t j = 0; j < n; ++j) average[j] += share * (value[j] - average[j]);
  }
}

// The products whose sum is a weight's gradient: those of gradients with rows below, which `usual`
// names, and with penalties others (penalty.h).
Stepper::Terms Stepper::terms_of(const Layer& layer, const Term& usual) const {
  bool plain = true;
  for (int s = usual.from; s < usual.from + usual.segments; ++s) plain &= !due(s) || layer.straight;
  if (plain) return {{usual}, 1};
  Terms terms{{}, 0};
  for (int s = usual.from; s < usual.from + usual.segments; ++s) {
    if (due(s)) terms.of[terms.count++] = {&Field::grads, &Field::tangents, s, 1};
    terms.of[terms.count++] = {due(s) ? &Field::bends : &Field::grads, &Field::rows, s, 1};
  }
  return terms;
}

// Gradients of some elements: to Adam, or to where they wait.
void Stepper::use(const Move& move, const Parameter& p, int64_t at, int64_t n, float* grad) const {
  if (move.gauge != nullptr) measure_gradient(move.gauge, grad, n);
  if (move.largest_grad < INFINITY) bound(grad, n, move.largest_grad);
  if (p.grad == nullptr) {
    apply(move, p, at, n, grad);
    return;
  }
  for (int64_t j = 0; j < n; ++j) p.grad[at + j] = grad[j];
}

// Gradients wait in the scratch until Adam runs along their rows: the weights and moments, which
// together outgrow the second-level cache, are then read in the order in which the hardware fetches
// ahead.
void Stepper::update_part(const Layer& layer, const Move& move, Range out, Range in, int from,
                          int segments) {
  const Terms terms = terms_of(layer, {&Field::grad_factors, &Field::row_factors, from, segments});
  const bool joined = batch_ == padded_ && terms.count == 1;
  const Held hold = held(joined ? segments * batch_ : batch_);
  float* const grads = scratch_ + kSizes.left + kSizes.right;
  const Pieces heights(out, hold.rows, kTiled ? kBlock : 1);
  const Pieces widths(in, hold.columns, kBlock);
  for (int64_t i = 0; i < heights.count; ++i)
    for (int64_t j = 0; j < widths.count; ++j) {
      const Range f = heights[i], c = widths[j];
      for (int t = 0; t < terms.count; ++t) weight_grads(layer, hold, f, c, terms.of[t], t > 0);
      for (int64_t m = f.begin; m < f.end; ++m)
        use(move, layer.weight, m * layer.in + c.begin, length(c),
            grads + (m - f.begin) * hold.stride);
    }
}

// Bias, gamma and beta.
void Stepper::vector_updates(const Layer& layer, const Move& move, Range out, int from,
                             int segments) {
  const Field& above = *layer.above;
  for (int64_t f = out.begin; layer.bias.value && f < out.end; f += kBlock) {
    const int64_t width = smaller(kBlock, out.end - f);
    // As exact as torch's cascade.
    double total[kBlock] = {};
    for (int s = from; s < from + segments; ++s) {
      const bool weighed = due(s) && layer.straight;
      if (weighed && s == kBetween) continue;
      float* const form = due(s) && !layer.straight ? above.bends : above.grads;
      const float* const g = rows(above, form, s + layer.lift) + f;
      if (weighed) {
        const float* const by = coefficients(s);
        sum_columns(batch_, width, total,
                    [&](int64_t i, int64_t j) { return by[i] * g[i * above.stride + j]; });
      } else {
        sum_columns(batch_, width, total,
                    [&](int64_t i, int64_t j) { return g[i * above.stride + j]; });
      }
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
    use(move, layer.bias, f, width, sum);
  }
  if (layer.row_norm) {
    row_norm_updates(layer, move, out, from, segments);
  } else if (layer.gamma.value && length(out) > 0) {
    use(move, layer.gamma, out.begin, length(out), layer.grad_gamma + out.begin);
    use(move, layer.beta, out.begin, length(out), layer.grad_beta + out.begin);
  }
}

void Stepper::head_update(const Layer& layer, const Move& move, int from, int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  const Terms terms = terms_of(layer, {&Field::grads, &Field::rows, from, segments});
  const auto [begin, end] = own_features(layer.in);
  for (int64_t c = begin; c < end; c += kBlock) {
    const int64_t width = smaller(kBlock, end - c);
    double total[kBlock] = {};
    for (int t = 0; t < terms.count; ++t) {
      const Term& term = terms.of[t];
      for (int s = term.from; s < term.from + term.segments; ++s) {
        const float* const g = rows(above, above.*term.left, s);
        const float* const x = rows(below, below.*term.right, s) + c;
        sum_columns(batch_, width, total, [&](int64_t i, int64_t j) {
          return g[i * above.stride] * x[i * below.stride + j];
        });
      }
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
    use(move, layer.weight, c, width, sum);
  }
  if (thread_ == threads_ - 1) vector_updates(layer, move, {0, 1}, from, segments);
}

// In a part, the counter of the plan is at the update.
Stepper::Move Stepper::move_of(bool of_g) const {
  const Network& network = of_g ? job_.g : job_.d;
  const Optimizer& o = network.optimizer;
  if (job_.part == Part::gradients) return {{}, INFINITY, INFINITY, nullptr, 0};
  const int64_t before = of_g ? step_ * job_.g_steps + g_step_ : step_ * job_.d_steps + d_step_;
  const int64_t done = network.updates + (job_.part == Part::steps ? before : 0);
  const double lr = job_.rates[(job_.rates_vary ? 2 * step_ : 0) + (of_g ? 1 : 0)];
  return {adam_of(o, static_cast<double>(done + 1), lr), static_cast<float>(o.largest_grad),
          static_cast<float>(o.largest_weight), measured(of_g) ? gauge(of_g) : nullptr,
          average_share(job_.g.average_warmup, job_.average_decay, step_number_)};
}

void Stepper::update_all(bool of_g, int from, int segments) {
  const Move move = move_of(of_g);
  for (const Layer& layer : (of_g ? job_.g : job_.d).layers) {
    if (&layer == &job_.d.layers.back()) {
      head_update(layer, move, from, segments);
      continue;
    }
    // As in forward(), each thread has its own rows of the weight.
    const Grid grid = divide(panels(layer.out), panels(layer.in));
    if (grid.idle) continue;
    const Range out = features_of(grid.features, layer.out);
    const Range in = features_of(grid.others, layer.in);
    update_part(layer, move, out, in, from, segments);
    if (in.begin == 0) vector_updates(layer, move, out, from, segments);
  }
  table_updates(of_g ? job_.g : job_.d, move, from, segments);
}
