// LayerNorm over a layer's outputs (J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization",
// arXiv:1607.06450); part of stepper.h.
//
// h = gamma n + beta with n = (z - mean(z)) / s of one row z, s^2 = variance + eps. A row is the
// work of one thread, in phases of their own, as products leave rows in panels. With
//     T x = (x - mean(x) - n mean(n x)) / s,
// which is symmetric, the gradient of z is delta = T (gamma eta), eta that of h. In the terms of
// penalty.h the tangent v of z becomes w = gamma T v, and with q = gamma eta held constant
// <q, T v> depends on z, too, by
//     warp = -(n (mean(q v) - mean(q) mean(v) - mean(n q) mean(n v)) / s
//              + delta mean(n v) + T v mean(n q)) / s,
// so that rho of z is T (gamma rho of h) + warp. The gradient of gamma is the sum over the rows of
// n (c eta + rho of h) + eta T v.

FASTGAN_INLINE float total(const float* a, int64_t n) {
  F sums[2] = {};
  int64_t k = 0;
  for (; k + 2 * kFloats <= n; k += 2 * kFloats)
    for (int64_t v = 0; v < 2; ++v) sums[v] += load_vector(a + k + v * kFloats);
  const F sum = sums[0] + sums[1];
  float total = 0;
  for (; k < n; ++k) total += a[k];
  for (int64_t j = 0; j < kFloats; ++j) total += sum[j];
  return total;
}

// x becomes T (gamma x), or T x without gamma.
void turn(const float* normed, float by, const float* gamma, int64_t n, float* __restrict x) {
  if (gamma)
    for (int64_t j = 0; j < n; ++j) x[j] *= gamma[j];
  const float mean = total(x, n) / static_cast<float>(n);
  const float slant = dot(x, normed, n) / static_cast<float>(n);
  for (int64_t j = 0; j < n; ++j) x[j] = by * (x[j] - mean - normed[j] * slant);
}

// Of products: bias, norm, and what activate_rows() does.
void Stepper::row_norm(const Layer& layer, int from, int segments) {
  const Field& field = *layer.above;
  const int64_t n = layer.out;
  each_own_rows(segments, [&](int s, Range within) {
    const int segment = from + s;
    for (int64_t i = within.begin; i < within.end; ++i) {
      float* __restrict const x = rows(field, field.rows, segment + layer.lift) + i * field.stride;
      float* __restrict const normed = rows(field, layer.normed, segment) + i * field.stride;
      if (layer.bias.value) add_rows(x, layer.bias.value, n);
      const float mean = total(x, n) / static_cast<float>(n);
      for (int64_t j = 0; j < n; ++j) normed[j] = x[j] - mean;
      const double squares = static_cast<double>(dot(normed, normed, n));
      const float by = inverse_deviation(squares / static_cast<double>(n), layer.norm_eps);
      layer.row_std[segment * field.padded + i] = by;
      for (int64_t j = 0; j < n; ++j) x[j] = normed[j] *= by;
    }
    activate_rows(layer, {0, n}, within, segment, layer.beta.value);
  });
}

// `form`: grads, or bends, which have the norm's own.
void Stepper::row_norm_backward(const Layer& lower, Range within, int segment, Form form) {
  const Field& field = *lower.above;
  const int64_t n = lower.out;
  for (int64_t i = within.begin; i < within.end; ++i) {
    const int64_t at = i * field.stride;
    float* const g = rows(field, field.*form, segment + lower.lift) + at;
    float* __restrict const kept =
        rows(field, form == &Field::bends ? lower.norm_bends : lower.norm_grads, segment) + at;
    for (int64_t j = 0; j < n; ++j) kept[j] = g[j];
    turn(rows(field, lower.normed, segment) + at, lower.row_std[segment * field.padded + i],
         lower.gamma.value, n, g);
    if (form == &Field::bends)
      add_rows(g, rows(field, lower.warps, segment) + at, n);
    else
      round_row(g, rows(field, field.grad_factors, segment + lower.lift) + at, n);
  }
}

void Stepper::row_norm_backward(const Layer& lower, int from, int segments, Form form) {
  each_own_rows(segments,
                [&](int s, Range within) { row_norm_backward(lower, within, from + s, form); });
}

// Tangents through the norm, and what follows it.
void Stepper::row_norm_tangent(const Layer& layer, int from, int segments) {
  const Field& field = *layer.above;
  const int64_t n = layer.out;
  const float share = 1.f / static_cast<float>(n);
  const float* const gamma = layer.gamma.value;
  each_own_rows(segments, [&](int s, Range within) {
    const int segment = from + s;
    for (int64_t i = within.begin; i < within.end; ++i) {
      const int64_t at = i * field.stride;
      float* __restrict const t = rows(field, field.tangents, segment) + at;
      float* __restrict const warp = rows(field, layer.warps, segment) + at;
      float* __restrict const turned = rows(field, layer.turned, segment) + at;
      const float* const normed = rows(field, layer.normed, segment) + at;
      const float* const eta = rows(field, layer.norm_grads, segment) + at;
      const float* const delta = rows(field, field.grads, segment) + at;
      const float by = layer.row_std[segment * field.padded + i];
      for (int64_t j = 0; j < n; ++j) warp[j] = gamma ? gamma[j] * eta[j] : eta[j];  // q
      const float nv = dot(normed, t, n) * share, nq = dot(normed, warp, n) * share;
      const float mean = total(t, n) * share;
      // With v centred, the means of q and v drop out.
      for (int64_t j = 0; j < n; ++j) t[j] -= mean;
      const float both = by * (dot(warp, t, n) * share - nq * nv);
      for (int64_t j = 0; j < n; ++j) t[j] = by * (t[j] - normed[j] * nv);
      for (int64_t j = 0; j < n; ++j)
        warp[j] = -by * (normed[j] * both + delta[j] * nv + t[j] * nq);
      for (int64_t j = 0; j < n; ++j) turned[j] = eta[j] * t[j];
      if (gamma)
        for (int64_t j = 0; j < n; ++j) t[j] *= gamma[j];
    }
    tangent_rows(layer, {0, n}, within, segment);
    if (layer.topmost) row_norm_backward(layer, within, segment, &Field::bends);
  });
}

// The sums over the rows that are the gradients of gamma and beta.
void Stepper::row_norm_updates(const Layer& layer, const Move& move, Range out, int from,
                               int segments) {
  const Field& field = *layer.above;
  for (int64_t f = out.begin; layer.gamma.value && f < out.end; f += kBlock) {
    const int64_t width = smaller(kBlock, out.end - f);
    double gammas[kBlock] = {}, betas[kBlock] = {};
    for (int segment = from; segment < from + segments; ++segment) {
      const float* const g =
          rows(field, due(segment) ? layer.norm_bends : layer.norm_grads, segment) + f;
      const float* const normed = rows(field, layer.normed, segment) + f;
      sum_columns(batch_, width, betas,
                  [&](int64_t i, int64_t j) { return g[i * field.stride + j]; });
      sum_columns(batch_, width, gammas, [&](int64_t i, int64_t j) {
        return g[i * field.stride + j] * normed[i * field.stride + j];
      });
      if (!due(segment)) continue;
      const float* const turned = rows(field, layer.turned, segment) + f;
      sum_columns(batch_, width, gammas,
                  [&](int64_t i, int64_t j) { return turned[i * field.stride + j]; });
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(gammas[j]);
    use(move, layer.gamma, f, width, sum);
    if (!layer.beta.value) continue;
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(betas[j]);
    use(move, layer.beta, f, width, sum);
  }
}
