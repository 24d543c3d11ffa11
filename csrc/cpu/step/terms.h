// Terms of G's loss beside the adversarial one, whose gradients are added at G's output or at its
// logits; part of stepper.h.

// Of this rank's rows.
Stepper::Moments Stepper::output_moments(const Layer& layer, Range panel, bool fake) const {
  const Field& field = fake ? *layer.above : job_.images;
  const float* const x =
      rows(field, field.rows, fake ? kFakeForG : kReal) + (fake ? 0 : job_.d.own_at) + panel.begin;
  return moments_of_columns(length(panel),
                            [&](int64_t i, int64_t j) { return x[row_of_sample(field, i) + j]; });
}

// The distance of the means of G's columns from the real ones', and likewise of their deviations
// (N. Park et al., "Data Synthesis based on Generative Adversarial Networks", VLDB 2018).
void Stepper::moments(const Layer& layer) {
  const double n = static_cast<double>(whole_);
  const Range mine = own_features(layer.out);
  for (int64_t f = mine.begin; f < mine.end; f += kBlock) {
    const int64_t width = smaller(kBlock, mine.end - f);
    double means[2][kBlock], deviations[2][kBlock];
    for (const bool fake : {false, true}) {
      const Range panel{f, f + width};
      const Moments all = job_.summed() ? moments_of_ranks(panel, fake ? 1 : 0, false)
                                        : output_moments(layer, panel, fake);
      for (int64_t j = 0; j < width; ++j) {
        means[fake][j] = all.sums[j] / n;
        deviations[fake][j] = math::sqrt(all.squares[j] / n);
      }
    }
    double* const squares = job_.output.squares + f / kBlock * 2;
    squares[0] = squares[1] = 0;
    for (int64_t j = 0; j < width; ++j) {
      const double mean = means[1][j] - means[0][j];
      const double deviation = deviations[1][j] - deviations[0][j];
      squares[0] += mean * mean;
      squares[1] += deviation * deviation;
      job_.output.mean[f + j] = static_cast<float>(means[1][j]);
      job_.output.of_mean[f + j] = static_cast<float>(mean);
      // A column of equal numbers has no slope.
      job_.output.of_deviation[f + j] =
          deviations[1][j] > 0 ? static_cast<float>(deviation / deviations[1][j]) : 0.f;
    }
  }
}

// Both distances.
Stepper::Toward Stepper::moments_apart() const {
  double sums[2] = {};
  for (int64_t p = 0; p < panels(job_.g.layers.back().out); ++p)
    for (int of : {0, 1}) sums[of] += job_.output.squares[2 * p + of];
  return {math::sqrt(sums[0]), math::sqrt(sums[1])};
}

// What the differences are multiplied by in the gradient of one number.
Stepper::Toward Stepper::moments_weights() const {
  const Toward apart = moments_apart();
  const double by = job_.g.term(TermOf::moments)->weight / static_cast<double>(whole_);
  return {apart.mean > 0 ? by / apart.mean : 0, apart.deviation > 0 ? by / apart.deviation : 0};
}

void Stepper::add_moments(const Toward& by, const float* values, float* __restrict grads) const {
  const OutputMoments& m = job_.output;
  const float of_mean = static_cast<float>(by.mean), spread = static_cast<float>(by.deviation);
  for (int64_t j = 0; j < job_.g.layers.back().out; ++j)
    grads[j] += of_mean * m.of_mean[j] + spread * m.of_deviation[j] * (values[j] - m.mean[j]);
}

// The cross-entropy of the class that a row was asked for with the logits of the head that has it
// (L. Xu et al., "Modeling Tabular Data using Conditional GAN", NeurIPS 2019).
void Stepper::ask(const float* logits, int64_t row) const {
  int64_t label = job_.condition.labels[source_of(job_.g, 1, row)];
  const PlannedHead* head = job_.g.heads.data();
  for (; !head->asked || label >= head->width; ++head)
    if (head->asked) label -= head->width;
  const float* const own = logits + head->at;
  float* __restrict const slope = job_.asked_grads + row * job_.asked_stride;
  float most = own[0];
  for (int64_t j = 1; j < head->width; ++j) most = own[j] > most ? own[j] : most;
  for (int64_t j = 0; j < head->width; ++j) slope[j] = math::exp(own[j] - most);
  const float sum = total(slope, head->width);
  const float by = 1.f / sum;
  for (int64_t j = 0; j < head->width; ++j) slope[j] *= by;
  slope[label] -= 1.f;
  job_.surprises[row] = static_cast<double>(math::log(sum) - (own[label] - most));
  job_.asked[row] = head - job_.g.heads.data();
}

void Stepper::add_asked(int64_t row, float* grads) const {
  const PlannedHead& head = job_.g.heads[static_cast<size_t>(job_.asked[row])];
  const float* const slope = job_.asked_grads + row * job_.asked_stride;
  const float by =
      static_cast<float>(job_.g.term(TermOf::conditional)->weight / static_cast<double>(whole_));
  float* __restrict const to = grads + head.at;
  for (int64_t j = 0; j < head.width; ++j) to[j] += by * slope[j];
}

// Without their weights, as parts of the whole batch's.
void Stepper::write_terms() {
  double* to = job_.sums + kSums;
  for (const PlannedTerm& term : job_.g.terms) {
    double value = 0;
    if (term.of == TermOf::moments) {
      const Toward apart = moments_apart();
      const double share = static_cast<double>(batch_) / static_cast<double>(whole_);
      value = (apart.mean + apart.deviation) * share;
    } else {
      for (int64_t i = 0; i < batch_; ++i) value += job_.surprises[i];
      value /= static_cast<double>(whole_);
    }
    *to++ = value;
  }
}
