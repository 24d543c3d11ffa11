// Layers forward; part of stepper.h.

void Stepper::forward(const Layer& layer, int from, int segments) {
  const Field &below = *layer.below, &above = *layer.above;
  // Batch statistics need all rows of a feature in one place.
  const Grid grid = divide(panels(layer.out), joined(layer) ? 1 : segments * blocks_);
  if (grid.idle) return;
  const Range blocks = joined(layer) ? Range{0, segments * blocks_} : grid.others;
  const Range out = features_of(grid.features, layer.out);
  rows_product<true>(
      {below.row_factors, below.stride, from}, {0, layer.in}, {layer.weight.value, layer.in}, out,
      blocks, {above.rows, above.stride, from + layer.lift}, [&](Range features, Range done) {
        if (layer.norm || layer.row_norm) return;
        for (int64_t i = done.begin; i < done.end; ++i) {
          const int64_t row = i % blocks_ * kBlock;
          activate_rows(layer, features, {row, row + rows_in(i % blocks_)},
                        from + static_cast<int>(i / blocks_), layer.bias.value);
        }
      });
  if (joined(layer)) normalise(layer, out, from, segments);
}

// Bias, activation and dropout on products. `segment` counts as below the layer.
void Stepper::activate_rows(const Layer& layer, Range features, Range within, int segment,
                            const float* shift) {
  const Field& field = *layer.above;
  const int64_t begin = features.begin, width = length(features);
  const float* const scale = layer.norm || layer.row_norm ? layer.gamma.value : nullptr;
  const float slope = layer.slope;
  const float kept = layer.drop ? keep_scale(layer.drop_threshold) : 1.f;
  with_activation(layer.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t i = within.begin; i < within.end; ++i) {
      float* __restrict const x =
          rows(field, field.rows, segment + layer.lift) + i * field.stride + begin;
      if (scale)
        for (int64_t j = 0; j < width; ++j) x[j] *= scale[begin + j];
      if (shift)
        for (int64_t j = 0; j < width; ++j) x[j] += shift[begin + j];
      if constexpr (kind == Activation::tanh) {
        // The field has room for whole vectors; what lies beyond the width stays zero.
        for (int64_t j = 0; j < width; j += kFloats)
          store_vector(x + j, tanh_vector(load_vector(x + j)));
      } else if constexpr (keeps_slope(kind)) {
        const int64_t at = i * field.stride + begin;
        float* __restrict const slopes = rows(field, layer.slopes, segment) + at;
        if constexpr (keeps_bend(kind))
          if (layer.second && due(segment)) {
            float* __restrict const second = rows(field, layer.second, segment) + at;
            for (int64_t j = 0; j < width; ++j) second[j] = with_slope<kind>(x[j], slope).bend;
          }
        for (int64_t j = 0; j < width; ++j) {
          const WithSlope<float> y = with_slope<kind>(x[j], slope);
          x[j] = y.value;
          slopes[j] = y.slope;
        }
      } else if constexpr (kind != Activation::none) {
        for (int64_t j = 0; j < width; ++j) x[j] = activate<kind>(x[j], slope);
      }
      if (layer.drop) {
        const uint8_t* const keep = layer.keep + (segment * field.padded + i) * layer.out + begin;
        for (int64_t j = 0; j < width; ++j) x[j] = keep[j] ? x[j] * kept : 0.f;
      }
      round_row(x, rows(field, field.row_factors, segment + layer.lift) + i * field.stride + begin,
                width);
    }
  });
}

// Batch statistics per feature, then what activate_rows() does.
void Stepper::normalise(const Layer& layer, Range features, int from, int segments) {
  each_panel(features, segments, [&](Range panel, int s) {
    normalise(layer, panel, from + s, s, own_moments(layer, panel, from + s), batch_);
  });
}

// By the moments of `count` rows, of which some may be other ranks'. `number`: of the segments that
// go through the layer at once.
void Stepper::normalise(const Layer& layer, Range panel, int segment, int number,
                        const Moments& moments, int64_t count) {
  const Field& field = *layer.above;
  const double n = static_cast<double>(count);
  const int64_t f = panel.begin, width = length(panel);
  float* const x = rows(field, field.rows, segment + layer.lift) + f;
  float* const normed = rows(field, layer.normed, segment) + f;
  float centre[kBlock], by[kBlock];
  for (int64_t j = 0; j < width; ++j) {
    const double mean = moments.sums[j] / n, variance = moments.squares[j] / n;
    centre[j] = static_cast<float>(mean);
    by[j] = inverse_deviation(variance, layer.norm_eps);
    layer.inv_std[segment * layer.out + f + j] = by[j];
    if (!layer.running_mean) continue;
    track(layer.running_mean[f + j], layer.running_var[f + j],
          running_share(layer.norm_momentum, *layer.batches, number), mean, variance, n);
  }
  for (int64_t i = 0; i < batch_; ++i)
    for (int64_t j = 0; j < width; ++j) {
      const float value = (x[i * field.stride + j] - centre[j]) * by[j];
      x[i * field.stride + j] = normed[i * field.stride + j] = value;
    }
  activate_rows(layer, panel, {0, batch_}, segment, layer.beta.value);
}
