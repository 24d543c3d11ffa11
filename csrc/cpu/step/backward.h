// Gradients backward through the layers; part of stepper.h.

// From the gradient after `lower`'s dropout and activation to the one before
// them. `form`: the field's grads, or its bends, which curved activations add to.
void Stepper::differentiate(const Layer& lower, Range features, Range within, int segment,
                            Form form) {
  const Field& field = *lower.above;
  const int64_t begin = features.begin, width = features.end - begin;
  const float slope = lower.slope;
  const float scale = lower.drop ? keep_scale(lower.drop_threshold) : 1.f;
  const float inverse = scale > 0 ? 1.f / scale : 0.f;
  with_activation(lower.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t b = within.begin; b < within.end; ++b) {
      const int64_t at = b * field.stride + begin;
      float* const g = rows(field, field.*form, segment + lower.lift) + at;
      const float* const y = rows(field, field.rows, segment + lower.lift) + at;
      const uint8_t* const keep =
          lower.drop ? lower.keep + (segment * field.padded + b) * lower.out + begin : nullptr;
      const bool bent = form == &Field::bends;
      float* const curves =
          lower.curves && due(segment) ? rows(field, lower.curves, segment) + at : nullptr;
      if (curves && !bent)
        for (int64_t j = 0; j < width; ++j) curves[j] = !keep ? g[j] : keep[j] ? g[j] * scale : 0.f;
      if constexpr (keeps_slope(kind)) {
        const float* const slopes = rows(field, lower.slopes, segment) + at;
        if (keep) {
          for (int64_t j = 0; j < width; ++j) g[j] = keep[j] ? g[j] * scale * slopes[j] : 0.f;
        } else {
          for (int64_t j = 0; j < width; ++j) g[j] *= slopes[j];
        }
      } else if (keep) {
        for (int64_t j = 0; j < width; ++j)
          g[j] = keep[j] ? derivative<kind>(g[j] * scale, y[j] * inverse, slope) : 0.f;
      } else {
        for (int64_t j = 0; j < width; ++j) g[j] = derivative<kind>(g[j], y[j], slope);
      }
      if (curves && bent)
        for (int64_t j = 0; j < width; ++j) g[j] += curves[j];
      if (!lower.norm && !lower.row_norm)
        round_row(g, rows(field, field.grad_factors, segment + lower.lift) + at, width);
    }
  });
}

// By the sums over `count` rows, of which some may be other ranks'.
void Stepper::normalise_backward(const Layer& lower, Range panel, int segment,
                                 const Moments& moments, int64_t count) {
  const Field& field = *lower.above;
  const int64_t begin = panel.begin, width = length(panel);
  const double n = static_cast<double>(count);
  float* const grads = rows(field, field.grads, segment + lower.lift) + begin;
  float* const factors = rows(field, field.grad_factors, segment + lower.lift) + begin;
  const float* const normed = rows(field, lower.normed, segment) + begin;
  float mean[kBlock], slant[kBlock], by[kBlock];
  for (int64_t j = 0; j < width; ++j) {
    mean[j] = static_cast<float>(moments.sums[j] / n);
    slant[j] = static_cast<float>(moments.squares[j] / n);
    by[j] = lower.inv_std[segment * lower.out + begin + j] *
            (lower.gamma.value ? lower.gamma.value[begin + j] : 1.f);
  }
  for (int64_t b = 0; b < batch_; ++b) {
    float* const g = grads + b * field.stride;
    const float* const x = normed + b * field.stride;
    for (int64_t j = 0; j < width; ++j) g[j] = by[j] * (g[j] - mean[j] - x[j] * slant[j]);
    round_row(g, factors + b * field.stride, width);
  }
}

// Through a BatchNorm. `from` counts below the lower layer.
void Stepper::norm_backward(const Layer& lower, Range features, int from, int segments) {
  each_panel(features, segments, [&](Range panel, int s) {
    normalise_backward(lower, panel, from + s, own_slants(lower, panel, from + s, s == 0), batch_);
  });
}

// From the gradient of a layer with a BatchNorm to that of its products, for all rows.
void Stepper::finish_grads(const Layer& lower, Range features, int from, int segments) {
  for (int s = 0; s < segments; ++s) differentiate(lower, features, {0, batch_}, from + s);
  norm_backward(lower, features, from, segments);
}

// Gradients of `layer`'s inputs, taken through `lower`, the layer that made them, if there is one.
// `from` is the first segment below `layer`, `at` its place in job_.halves. The sum over the
// outputs is taken in two halves, so that a thread meets the rows of the weight again that it used
// forward: the first goes to its place, the second into job_.halves, and sum_backward() adds them
// up.
void Stepper::backward(const Layer& layer, const Layer* lower, int from, int segments, Form form,
                       int at) {
  const Field &above = *layer.above, &below = *layer.below;
  const int64_t n = panels(layer.in);
  const bool summed = layer.middle > 0, whole = lower && joined(*lower) && !summed;
  float* const factors = form == &Field::grads ? above.grad_factors : above.*form;
  const Grid grid = divide(summed ? 2 * n : n, whole ? 1 : segments * blocks_);
  if (grid.idle) return;
  const Range blocks = whole ? Range{0, segments * blocks_} : grid.others;
  for (int half = 0; half < (summed ? 2 : 1); ++half) {
    const Range terms = !summed ? Range{0, layer.out}
                        : half  ? Range{layer.middle, layer.out}
                                : Range{0, layer.middle};
    // Of the cells [half][panel] those of this half.
    const Range cells{larger(grid.features.begin - half * n, 0),
                      smaller(grid.features.end - half * n, n)};
    const Range in = features_of(cells, layer.in);
    rows_product<false>(
        {factors, above.stride, from + layer.lift}, terms, {layer.weight.value, layer.in}, in,
        blocks, half ? Rows{job_.halves, below.stride, at} : Rows{below.*form, below.stride, from},
        [&](Range features, Range done) {
          if (summed || whole || !lower) return;
          for (int64_t i = done.begin; i < done.end; ++i) {
            const int64_t row = i % blocks_ * kBlock;
            differentiate(*lower, features, {row, row + rows_in(i % blocks_)},
                          from + static_cast<int>(i / blocks_) - lower->lift, form);
          }
        });
    if (whole) finish_grads(*lower, in, from - lower->lift, segments);
  }
}

void add_rows(float* to, const float* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] += from[j];
}

void Stepper::sum_backward(const Layer& layer, const Layer& lower, int from, int segments,
                           Form form, int at) {
  const Field& below = *layer.below;
  const auto add = [&](int s, Range within, Range features) {
    float* const to = rows(below, below.*form, from + s);
    const float* const half = rows(below, job_.halves, at + s);
    for (int64_t i = within.begin; i < within.end; ++i)
      add_rows(to + i * below.stride + features.begin, half + i * below.stride + features.begin,
               length(features));
  };
  if (joined(lower)) {
    const Range features = own_features(layer.in);
    for (int s = 0; s < segments; ++s) add(s, {0, batch_}, features);
    finish_grads(lower, features, from - lower.lift, segments);
    return;
  }
  each_own_rows(segments, [&](int s, Range within) {
    add(s, within, {0, layer.in});
    differentiate(lower, {0, layer.in}, within, from + s - lower.lift, form);
  });
}
