// D's last layer is one row of weights: scores, losses and gradients of some rows of the batch need
// only those rows, and so do the gradients below it. Part of stepper.h.

FASTGAN_INLINE float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t lanes = 4 * kFloats;
  F sums[4] = {};
  int64_t k = 0;
  for (; k + lanes <= n; k += lanes)
    for (int64_t v = 0; v < 4; ++v)
      sums[v] += load_vector(a + k + v * kFloats) * load_vector(b + k + v * kFloats);
  const F sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0;
  for (; k < n; ++k) total += a[k] * b[k];
  for (int64_t j = 0; j < kFloats; ++j) total += sum[j];
  return total;
}

void Stepper::head_rows(const Layer* lower, int segment, Range within) {
  const Layer& layer = job_.d.layers.back();
  const Field &below = *layer.below, &field = *layer.above;
  float scores[kRowUnit], slopes[kRowUnit];
  with_activation(layer.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t i = within.begin; i < within.end; ++i) {
      const float sum =
          dot(rows(below, below.rows, segment) + i * below.stride, layer.weight.value, layer.in) +
          (layer.bias.value ? *layer.bias.value : 0.f);
      float& score = scores[i - within.begin];
      if constexpr (keeps_slope(kind)) {
        const auto y = with_slope<kind>(sum, layer.slope);
        score = y.value;
        slopes[i - within.begin] = y.slope;
        if constexpr (keeps_bend(kind))
          if (layer.second && due(segment))
            rows(field, layer.second, segment)[i * field.stride] = y.bend;
      } else {
        score = kind == Activation::tanh ? math::tanh(sum) : activate<kind>(sum, layer.slope);
      }
    }
  });
  score(segment, within, scores, slopes);
  const bool split = job_.joined() && segment == kFakeForG;  // which comes next
  if (lower == nullptr && layer.direct && !due(segment) && !split) return;
  for (int64_t i = within.begin; i < within.end; ++i) {
    const float grad = rows(field, field.grads, segment)[i * field.stride];
    float* __restrict const to = rows(below, below.grads, segment) + i * below.stride;
    const float* const weight = layer.weight.value;
    for (int64_t j = 0; j < layer.in; ++j) to[j] = grad * weight[j];
  }
  if (lower) differentiate(*lower, {0, lower->out}, within, segment - lower->lift);
}

// `lower` is the layer that made the field below, null where nothing below is trained in this
// update.
void Stepper::head(const Layer* lower, int from, int segments) {
  each_own_rows(segments, [&](int s, Range within) { head_rows(lower, from + s, within); });
}

// Losses of a few scores, and their gradients as the last field's. `slopes`: of an activation that
// keeps them.
void Stepper::score(int segment, Range within, const float* scores, const float* slopes) {
  const Layer& last = job_.d.layers.back();
  const Field& field = *last.above;
  const int64_t n = length(within);
  const double scale = 1.0 / static_cast<double>(whole_);
  float grads[kRowUnit];
  double loss = 0, sum = 0;
  if (segment == kBetween) {
    // No loss, only the gradient of the scores themselves.
  } else if (takes_logits(job_.loss)) {
    const Bce bce = bce_of(job_.loss, segment, job_.real_label);
    loss = kernels().bce_f32(scores, n, bce.label, bce.negative ? -scale : scale, grads);
    if (bce.negative) loss = -loss;
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const Score s = raw_score(job_.loss, segment, scores[i], static_cast<float>(scale));
      loss += static_cast<double>(s.loss);
      grads[i] = s.grad;
    }
  }
  if (segment != kBetween) {
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(scores[i]);
    const int64_t part = segment * job_.units + within.begin / kRowUnit;
    job_.loss_parts[part] = loss;
    job_.score_parts[part] = sum;
    if (segment != kFakeForG && measured(false)) {
      const double middle = middle_of(job_.loss);
      double right = 0, squares = 0;
      for (int64_t i = 0; i < n; ++i) {
        const double x = static_cast<double>(scores[i]);
        right += (segment == kReal ? x > middle : x < middle) ? 1 : 0;
        squares += x * x;
      }
      job_.right_parts[part] = right;
      job_.square_parts[part] = squares;
    }
  }
  if (due(segment))
    for (int64_t i = 0; i < n; ++i) {
      if (segment != kBetween) coefficients(segment)[within.begin + i] = grads[i];
      rows(field, field.rows, segment)[(within.begin + i) * field.stride] = scores[i];
      grads[i] = 1.f;
    }
  float* const to = rows(field, field.grads, segment) + within.begin * field.stride;
  with_activation(last.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (keeps_slope(kind))
        to[i * field.stride] = grads[i] * slopes[i];
      else
        to[i * field.stride] = derivative<kind>(grads[i], scores[i], last.slope);
    }
  });
}
