// Penalties on D's slope; part of stepper.h.
//
// P is a mean over samples of functions of the slope g = grad_x D(x). With u = dP/dg held constant
// the gradient of P by a weight is that of <u, g>, which is the derivative of D at x in direction
// u. For layers z = W x + b, x' = m f(z) with m the dropout's factor:
//     delta   = dD/dz, of the backward pass from a score's gradient of 1 down to the images (slope)
//     t       = u below D's first layer, above a layer m f'(z) v with v = W t        (tangent)
//     dP/dW   = delta^T t + rho^T x,  dP/db = sum of rho
//     rho     = m f'(z) W'^T rho' + a f''(z) v with a = dD/df, W' and rho' of the layer above
//                                                                                       (bend)
// Above D's last curved activation rho is zero. The loss's own gradient of z is c delta with c its
// gradient by the score, so of rows that are penalised the field's `grads` are delta and c waits.
// Where nothing above is curved, both products are one, delta^T (c x + t): the rows become c x + t
// (fold), and only c x is left for the bias. Elsewhere `bends` are c delta + rho, and the products
// are two; so they are everywhere if D is no chain, where a field may be that of several layers.

void Stepper::penalties_of_update() {
  for (const Place place : {Place::between, Place::real, Place::fake})
    slopes_[static_cast<int>(place)] = slope_weights(job_.penalties, place, update_number_);
}

void Stepper::penalise(const Phase& phase) {
  const bool points_between = phase.work == Phase::points;
  bool any = points_between && due(kBetween);
  for (int s = kBetween; !points_between && s <= kFake; ++s) any |= due(s);
  if (!any) {
    ++phase_;
    return;
  }
  const Layer& layer = job_.layer(phase.layer);
  const Layer* const lower =
      phase.other < 0 || phase.of_nodes() ? nullptr : &job_.layer(phase.other);
  if (points_between) points();
  // Segments next to each other go together.
  int end = kBetween, done = 0;
  for (int from = kBetween; !points_between && from <= kFake; from = end + 1) {
    for (end = from; due(end); ++end) {
    }
    const int segments = end - from;
    if (segments == 0) continue;
    switch (phase.work) {
      case Phase::slope:
        backward(layer, nullptr, from, segments, &Field::grads, done);
        break;
      case Phase::direction:
        direction(from, segments, done);
        break;
      case Phase::tangent:
        if (&layer == &job_.d.layers.back())
          head_tangent(lower, from, segments);
        else
          tangent(layer, from, segments);
        break;
      case Phase::bend:
        backward(layer, lower, from, segments, &Field::bends, done);
        break;
      case Phase::bend_sums:
        sum_backward(layer, *lower, from, segments, &Field::bends, done);
        break;
      case Phase::norm_tangent:
        row_norm_tangent(layer, from, segments);
        break;
      case Phase::norm_bend:
        row_norm_backward(layer, from, segments, &Field::bends);
        break;
      case Phase::slope_collect:
      case Phase::gather_tangent:
      case Phase::collect_bend:
        of_nodes(phase, from, segments);
        break;
      default:
        break;
    }
    done += segments;
  }
  end_phase();
}

// The share of the real sample in a point between: uniform in [0, 1], of a normal, as
// torch.special.ndtr. A pack has that of its first sample.
void Stepper::mix(int64_t block) {
  const int64_t at = block * kBlock, pack = job_.d.pack;
  const Philox philox = between_philox(job_.seed, update_number_);
  const float* const drawn = pack == 1 ? normals(philox, first_ + at, kBlock) : nullptr;
  const auto of_pack = [&](int64_t i) { return normals(philox, (first_ + at + i) * pack, 1); };
  constexpr double half_root = 0.70710678118654752440;
  for (int64_t i = 0; i < kBlock; ++i) {
    const double normal = static_cast<double>(pack == 1 ? drawn[i] : *of_pack(i));
    job_.mixes[at + i] = static_cast<float>(0.5 * ::erfc(-half_root * normal));
  }
}

// Row i at the points between, of some features, from those of the real and the fake sample; as
// torch.lerp.
void Stepper::between(const Field& field, Range features, int64_t i) const {
  const float* const real = rows(field, field.rows, kReal) + i * field.stride;
  const float* const fake = rows(field, field.rows, kFake) + i * field.stride;
  float* __restrict const to = rows(field, field.rows, kBetween) + i * field.stride;
  const float share = job_.mixes[i], rest = 1.f - share;
  const auto [begin, end] = features;
  if (share < 0.5f) {
    for (int64_t j = begin; j < end; ++j) to[j] = fake[j] + share * (real[j] - fake[j]);
  } else {
    for (int64_t j = begin; j < end; ++j) to[j] = real[j] - rest * (real[j] - fake[j]);
  }
}

void Stepper::points() {
  const Field& x = job_.images;
  if (job_.joined()) {
    each_own_rows(1, [&](int, Range within) {
      for (int64_t i = within.begin; i < within.end; ++i) {
        between(x, {0, x.width}, i);
        for (int64_t sample = i * job_.d.pack; sample < (i + 1) * job_.d.pack; ++sample)
          condition_row(job_.d, x, kBetween, sample);
      }
    });
    return;
  }
  const Grid grid = divide(panels(x.width), batch_);
  if (grid.idle) return;
  const Range features = features_of(grid.features, x.width);
  for (int64_t i = grid.others.begin; i < grid.others.end; ++i) between(x, features, i);
}

// D's first layer: what its products are at the points between lies between those of the others.
void Stepper::first_forward(const Layer& layer) {
  const Field &below = *layer.below, &above = *layer.above;
  const Grid grid = divide(panels(layer.out), 1);
  if (grid.idle) return;
  const Range out = features_of(grid.features, layer.out);
  rows_product<true>({below.row_factors, below.stride, kReal}, {0, layer.in},
                     {layer.weight.value, layer.in}, out, {0, 2 * blocks_},
                     {above.rows, above.stride, kReal}, [](Range, Range) {});
  for (int64_t i = 0; i < batch_; ++i) between(above, out, i);
  for (int segment = kBetween; !layer.row_norm && segment <= kFake; ++segment)
    activate_rows(layer, out, {0, batch_}, segment, layer.bias.value);
}

// Rows of a field become what delta is multiplied with; their tangents stay.
void Stepper::fold(const Field& field, Range features, int64_t row, int segment) const {
  const int64_t at = row * field.stride + features.begin, width = length(features);
  float* __restrict const x = rows(field, field.rows, segment) + at;
  const float* const t = rows(field, field.tangents, segment) + at;
  if (segment == kBetween) {
    for (int64_t j = 0; j < width; ++j) x[j] = t[j];
    return;
  }
  const float by = coefficients(segment)[row];
  for (int64_t j = 0; j < width; ++j) x[j] = by * x[j] + t[j];
}

// From the slope, in the images' gradients, to the penalty's derivative by it, in the same place.
void Stepper::direction(int from, int segments, int at) {
  const Layer& first = job_.d.layers.front();
  const Field& x = job_.images;
  const bool summed = first.middle > 0 && job_.d.layers.size() > 1;
  each_own_rows(segments, [&](int s, Range within) {
    for (int64_t i = within.begin; i < within.end; ++i) {
      float* const g = rows(x, x.grads, from + s) + i * x.stride;
      if (summed) add_rows(g, rows(x, job_.halves, at + s) + i * x.stride, x.width);
      // The slope is that by the sample.
      for (int64_t unit = 0; unit < x.width; unit += job_.d.unit())
        for (const PlannedPart& part : job_.d.parts)
          for (int64_t j = 0; j < part.width; ++j) g[unit + part.at + j] = 0.f;
      const double norm = math::sqrt(static_cast<double>(dot(g, g, x.width)));
      const float factor =
          static_cast<float>(slope_factor(slopes_[from + s - kBetween], norm, whole_));
      for (int64_t j = 0; j < x.width; ++j) g[j] *= factor;
      if (first.straight) fold(x, {0, x.width}, i, from + s);
    }
  });
}

// Tangents forward through a layer.
void Stepper::tangent(const Layer& layer, int from, int segments) {
  const Field &below = *layer.below, &above = *layer.above;
  const Grid grid = divide(panels(layer.out), segments * blocks_);
  if (grid.idle) return;
  rows_product<true>({below.tangents, below.stride, from}, {0, layer.in},
                     {layer.weight.value, layer.in}, features_of(grid.features, layer.out),
                     grid.others, {above.tangents, above.stride, from},
                     [&](Range features, Range done) {
                       if (layer.row_norm) return;
                       for (int64_t i = done.begin; i < done.end; ++i) {
                         const int64_t row = i % blocks_ * kBlock;
                         tangent_rows(layer, features, {row, row + rows_in(i % blocks_)},
                                      from + static_cast<int>(i / blocks_));
                       }
                     });
}

// From v to t, and what a curved activation makes of v.
void Stepper::tangent_rows(const Layer& layer, Range features, Range within, int segment) {
  const Field& field = *layer.above;
  const int64_t begin = features.begin, width = length(features);
  const float slope = layer.slope;
  const float scale = layer.drop ? keep_scale(layer.drop_threshold) : 1.f;
  const float inverse = scale > 0 ? 1.f / scale : 0.f;
  with_activation(layer.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t i = within.begin; i < within.end; ++i) {
      const int64_t at = i * field.stride + begin;
      float* __restrict const t = rows(field, field.tangents, segment) + at;
      const float* const x = rows(field, field.rows, segment) + at;
      const float* const slopes =
          keeps_slope(kind) ? rows(field, layer.slopes, segment) + at : nullptr;
      const uint8_t* const keep =
          layer.drop ? layer.keep + (segment * field.padded + i) * layer.out + begin : nullptr;
      const auto first = [&](int64_t j) {
        if constexpr (keeps_slope(kind)) return slopes[j];
        return derivative<kind>(1.f, x[j] * inverse, slope);
      };
      if constexpr (kind != Activation::none && kind != Activation::leaky_relu) {
        float* __restrict const curves = rows(field, layer.curves, segment) + at;
        if constexpr (keeps_bend(kind)) {
          const float* const second = rows(field, layer.second, segment) + at;
          for (int64_t j = 0; j < width; ++j) curves[j] *= second[j] * t[j];
        } else {
          for (int64_t j = 0; j < width; ++j)
            curves[j] *= second_derivative<kind>(x[j] * inverse, first(j)) * t[j];
        }
      }
      if (layer.topmost) {
        // Of what the activation takes.
        const float* const delta =
            rows(field, layer.row_norm ? layer.norm_grads : field.grads, segment) + at;
        float* const bends = rows(field, field.bends, segment) + at;
        const float by = segment == kBetween ? 0.f : coefficients(segment)[i];
        if constexpr (kind != Activation::none && kind != Activation::leaky_relu) {
          const float* const curves = rows(field, layer.curves, segment) + at;
          for (int64_t j = 0; j < width; ++j) bends[j] = by * delta[j] + curves[j];
        } else {
          for (int64_t j = 0; j < width; ++j) bends[j] = by * delta[j];
        }
      }
      if (keep) {
        for (int64_t j = 0; j < width; ++j) t[j] = keep[j] ? first(j) * (t[j] * scale) : 0.f;
      } else {
        for (int64_t j = 0; j < width; ++j) t[j] *= first(j);
      }
      if (layer.straight || layer.topmost) fold(field, features, i, segment);
    }
  });
}

// Of D's last layer where its activation is curved; `lower` is the layer below, if there is one.
void Stepper::head_tangent(const Layer* lower, int from, int segments) {
  const Layer& layer = job_.d.layers.back();
  const Field &below = *layer.below, &field = *layer.above;
  const float* const weight = layer.weight.value;
  each_own_rows(segments, [&](int s, Range within) {
    const int segment = from + s;
    for (int64_t i = within.begin; i < within.end; ++i) {
      const float v =
          dot(rows(below, below.tangents, segment) + i * below.stride, weight, layer.in);
      const float score = rows(field, field.rows, segment)[i * field.stride];
      const float delta = rows(field, field.grads, segment)[i * field.stride];
      float bend = segment == kBetween ? 0.f : coefficients(segment)[i] * delta;
      with_activation(layer.activation, [&](auto activation) {
        constexpr Activation kind = decltype(activation)::value;
        if constexpr (keeps_bend(kind))
          bend += rows(field, layer.second, segment)[i * field.stride] * v;
        else
          bend += second_derivative<kind>(score, delta) * v;
      });
      rows(field, field.bends, segment)[i * field.stride] = bend;
      if (lower == nullptr && layer.direct) continue;
      float* __restrict const to = rows(below, below.bends, segment) + i * below.stride;
      for (int64_t j = 0; j < layer.in; ++j) to[j] = bend * weight[j];
    }
    if (lower) differentiate(*lower, {0, lower->out}, within, segment, &Field::bends);
  });
}
