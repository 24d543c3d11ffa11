// Sums over the rows of a batch, of a BatchNorm and of G's output, of this rank's alone and of all
// ranks'; part of stepper.h.

constexpr int64_t kShort = 8;

// Sums over the rows of up to 32 columns, value(row, column): short sums in float, their sum in
// double.
template <class Value>
FASTGAN_INLINE void sum_columns(int64_t count, int64_t width, double* total, Value value) {
  for (int64_t first = 0; first < count; first += kShort) {
    float part[kBlock] = {};
    for (int64_t i = first; i < smaller(first + kShort, count); ++i)
      for (int64_t j = 0; j < width; ++j) part[j] += value(i, j);
    for (int64_t j = 0; j < width; ++j) total[j] += static_cast<double>(part[j]);
  }
}

// Of up to 32 features. Forward: sums, and squared distances from the mean of the same rows.
// Backward: sums of gradients, and of their products with normalised values.
struct Stepper::Moments {
  double sums[kBlock] = {}, squares[kBlock] = {};
};

// Of columns, by short sums; squared distances are from the mean rounded to float.
template <class Value>
Stepper::Moments Stepper::moments_of_columns(int64_t width, Value value) const {
  Moments own;
  sum_columns(batch_, width, own.sums, value);
  if (batch_ == 0) return own;
  float centre[kBlock];
  for (int64_t j = 0; j < width; ++j)
    centre[j] = static_cast<float>(own.sums[j] / static_cast<double>(batch_));
  sum_columns(batch_, width, own.squares, [&](int64_t i, int64_t j) {
    const float d = value(i, j) - centre[j];
    return d * d;
  });
  return own;
}

// Of products, which get the bias here.
Stepper::Moments Stepper::own_moments(const Layer& layer, Range panel, int segment) const {
  const Field& field = *layer.above;
  const int64_t f = panel.begin, width = length(panel);
  float* const x = rows(field, field.rows, segment + layer.lift) + f;
  for (int64_t i = 0; layer.bias.value && i < batch_; ++i)
    for (int64_t j = 0; j < width; ++j) x[i * field.stride + j] += layer.bias.value[f + j];
  return moments_of_columns(width, [&](int64_t i, int64_t j) { return x[i * field.stride + j]; });
}

// Of gradients; they are added to those of gamma and beta, which begin with the first segment.
Stepper::Moments Stepper::own_slants(const Layer& lower, Range panel, int segment, bool first) {
  const Field& field = *lower.above;
  const int64_t f = panel.begin, width = length(panel);
  const float* const grads = rows(field, field.grads, segment + lower.lift) + f;
  const float* const normed = rows(field, lower.normed, segment) + f;
  Moments own;
  for (int64_t b = 0; b < batch_; ++b)
    for (int64_t j = 0; j < width; ++j) {
      const double g = grads[b * field.stride + j];
      own.sums[j] += g;
      own.squares[j] += g * normed[b * field.stride + j];
    }
  for (int64_t j = 0; j < width; ++j) {
    float& beta = lower.grad_beta[f + j];
    float& gamma = lower.grad_gamma[f + j];
    beta = (first ? 0.f : beta) + static_cast<float>(own.sums[j]);
    gamma = (first ? 0.f : gamma) + static_cast<float>(own.squares[j]);
  }
  return own;
}

// Where those of a rank lie, `s` counting a phase's segments.
double* Stepper::moments_of(int64_t rank, int s, bool squares) const {
  return job_.moments + ((rank * 2 + s) * 2 + (squares ? 1 : 0)) * job_.moments_stride;
}

// Leaves this rank's, of(panel, s), for the others.
template <class Of>
void Stepper::leave_moments(const Layer& layer, int segments, Of of) {
  each_panel(own_features(layer.out), segments, [&](Range panel, int s) {
    const Moments own = of(panel, s);
    for (int64_t j = 0; j < length(panel); ++j) {
      moments_of(job_.rank, s, false)[panel.begin + j] = own.sums[j];
      moments_of(job_.rank, s, true)[panel.begin + j] = own.squares[j];
    }
  });
}

void Stepper::norm_sums(const Layer& layer, int from, int segments, bool backward) {
  leave_moments(layer, segments, [&](Range panel, int s) {
    return backward ? own_slants(layer, panel, from + s, s == 0)
                    : own_moments(layer, panel, from + s);
  });
}

// Those of all ranks, in their order, so that every rank has the same bits. Squared distances from
// the mean of all: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating Formulae and a Pairwise
// Algorithm for Computing Sample Variances", 1979.
Stepper::Moments Stepper::moments_of_ranks(Range panel, int s, bool backward) const {
  Moments all;
  for (int64_t r = 0; r < job_.ranks; ++r)
    for (int64_t j = 0; j < length(panel); ++j) {
      all.sums[j] += moments_of(r, s, false)[panel.begin + j];
      all.squares[j] += moments_of(r, s, true)[panel.begin + j];
    }
  for (int64_t r = 0; !backward && r < job_.ranks; ++r) {
    const int64_t count =
        first_of_rank(whole_, r + 1, job_.ranks) - first_of_rank(whole_, r, job_.ranks);
    const double n = static_cast<double>(count);
    for (int64_t j = 0; count > 0 && j < length(panel); ++j) {
      const double apart =
          moments_of(r, s, false)[panel.begin + j] / n - all.sums[j] / static_cast<double>(whole_);
      all.squares[j] += n * apart * apart;
    }
  }
  return all;
}

// A BatchNorm by the sums of all ranks.
void Stepper::norm_by_ranks(const Layer& layer, int from, int segments, bool backward) {
  each_panel(own_features(layer.out), segments, [&](Range panel, int s) {
    const Moments all = moments_of_ranks(panel, s, backward);
    if (backward)
      normalise_backward(layer, panel, from + s, all, whole_);
    else
      normalise(layer, panel, from + s, s, all, whole_);
  });
}
