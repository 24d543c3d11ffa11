// Adam, and the average, on what weight_grads.h has made; part of stepper.h.

void Stepper::apply(const Adam<float>& adam, const Parameter& p, int64_t at, int64_t n,
                    const float* __restrict grad) const {
  const Adam<float> constants = adam;
  float* __restrict value = p.value + at;
  float* __restrict exp_avg = p.exp_avg + at;
  float* __restrict exp_avg_sq = p.exp_avg_sq + at;
  int64_t i = 0;
#if FASTGAN_APPROXIMATIONS
  for (; i + kFloats <= n; i += kFloats)
    adam_vector(constants, grad + i, value + i, exp_avg + i, exp_avg_sq + i);
#endif
  for (; i < n; ++i) adam_update(constants, grad[i], value[i], exp_avg[i], exp_avg_sq[i]);
  if (p.average) {
    const float share = static_cast<float>(1.0 - job_.average_decay);
    float* __restrict average = p.average + at;
    for (int64_t j = 0; j < n; ++j) average[j] += share * (value[j] - average[j]);
  }
}

// Gradients wait in the scratch until Adam runs along their rows: the weights and moments, which
// together outgrow the second-level cache, are then read in the order in which the hardware fetches
// ahead.
void Stepper::update_part(const Layer& layer, const Adam<float>& adam, Range out, Range in,
                          int from, int segments) {
  const bool joined = batch_ == job_.padded;
  const Held hold = held(joined ? segments * batch_ : batch_);
  const float* const grads = scratch_ + kSizes.left + kSizes.right;
  const Pieces heights(out, hold.rows, kTiled ? kBlock : 1);
  const Pieces widths(in, hold.columns, kBlock);
  for (int64_t i = 0; i < heights.count; ++i)
    for (int64_t j = 0; j < widths.count; ++j) {
      const Range f = heights[i], c = widths[j];
      weight_grads(layer, hold, f, c, from, segments);
      for (int64_t m = f.begin; m < f.end; ++m)
        apply(adam, layer.weight, m * layer.in + c.begin, length(c),
              grads + (m - f.begin) * hold.stride);
    }
}

// Bias, gamma and beta.
void Stepper::vector_updates(const Layer& layer, const Adam<float>& adam, Range out, int from,
                             int segments) {
  const Field& above = *layer.above;
  for (int64_t f = out.begin; layer.bias.value && f < out.end; f += kBlock) {
    const int64_t width = smaller(kBlock, out.end - f);
    // As exact as torch's cascade.
    double total[kBlock] = {};
    for (int s = from; s < from + segments; ++s) {
      const float* const g = rows(above, above.grads, s + layer.lift) + f;
      sum_columns(batch_, width, total,
                  [&](int64_t i, int64_t j) { return g[i * above.stride + j]; });
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
    apply(adam, layer.bias, f, width, sum);
  }
  if (layer.gamma.value && length(out) > 0) {
    apply(adam, layer.gamma, out.begin, length(out), layer.grad_gamma + out.begin);
    apply(adam, layer.beta, out.begin, length(out), layer.grad_beta + out.begin);
  }
}

void Stepper::head_update(const Layer& layer, const Adam<float>& adam, int from, int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  const auto [begin, end] = own_features(layer.in);
  for (int64_t c = begin; c < end; c += kBlock) {
    const int64_t width = smaller(kBlock, end - c);
    double total[kBlock] = {};
    for (int s = from; s < from + segments; ++s) {
      const float* const g = rows(above, above.grads, s);
      const float* const x = rows(below, below.rows, s) + c;
      sum_columns(batch_, width, total, [&](int64_t i, int64_t j) {
        return g[i * above.stride] * x[i * below.stride + j];
      });
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
    apply(adam, layer.weight, c, width, sum);
  }
  if (thread_ == threads_ - 1) vector_updates(layer, adam, {0, 1}, from, segments);
}

Adam<float> Stepper::adam_of(bool of_g) const {
  const Network& network = of_g ? job_.g : job_.d;
  const Optimizer& o = network.optimizer;
  const int64_t done = of_g ? step_ : step_ * job_.d_steps + d_step_;
  const double lr = job_.rates[(job_.rates_vary ? 2 * step_ : 0) + (of_g ? 1 : 0)];
  return make_adam<float>(static_cast<double>(network.updates + done + 1), lr, o.beta1, o.beta2,
                          o.eps, o.weight_decay, o.decoupled);
}

void Stepper::update_all(bool of_g, int from, int segments) {
  const Adam<float> adam = adam_of(of_g);
  for (const Layer& layer : (of_g ? job_.g : job_.d).layers) {
    if (&layer == &job_.d.layers.back()) {
      head_update(layer, adam, from, segments);
      continue;
    }
    // As in forward(), each thread has its own rows of the weight.
    const Grid grid = divide(panels(layer.out), panels(layer.in));
    if (grid.idle) continue;
    const Range out = features_of(grid.features, layer.out);
    const Range in = features_of(grid.others, layer.in);
    update_part(layer, adam, out, in, from, segments);
    if (in.begin == 0) vector_updates(layer, adam, out, from, segments);
  }
}
