// What a measured step adds up beside its work, without a part in it; part of stepper.h.

// In lanes, so that vectors take it.
template <class Of>
FASTGAN_INLINE double sum_of_squares(int64_t n, Of of) {
  constexpr int64_t lanes = 8;
  double sums[lanes] = {};
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes)
    for (int64_t l = 0; l < lanes; ++l) {
      const double x = static_cast<double>(of(j + l));
      sums[l] += x * x;
    }
  for (; j < n; ++j) sums[0] += static_cast<double>(of(j)) * static_cast<double>(of(j));
  double sum = 0;
  for (int64_t l = 0; l < lanes; ++l) sum += sums[l];
  return sum;
}

// How many numbers are not finite: none, if the sum of their squares is.
FASTGAN_INLINE double not_finite(const float* x, int64_t n, double squares) {
  if (squares - squares == 0) return 0;
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j) count += x[j] - x[j] == 0 ? 0 : 1;
  return static_cast<double>(count);
}

// Of an update, whether it is its network's last in the step; a part is told.
bool Stepper::measured(bool of_g) const {
  if (job_.sums == nullptr) return false;
  return job_.part != Part::steps || (step_ + 1 == job_.steps && (of_g ? averages_ : last_));
}

double* Stepper::gauge(bool of_g) const {
  return job_.gauges + (2 * thread_ + (of_g ? 1 : 0)) * kNetworkSums;
}

void Stepper::measure_gradient(double* gauge, const float* grad, int64_t n) {
  const double squares = sum_of_squares(n, [&](int64_t j) { return grad[j]; });
  gauge[0] += squares;
  gauge[3] += not_finite(grad, n, squares);
}

// apply(), in pieces of whole vectors, so that every number is moved as without measuring.
void Stepper::measured_apply(const Move& move, const Parameter& p, int64_t at, int64_t n,
                             const float* grad) const {
  constexpr int64_t most = 256;
  static_assert(most % kFloats == 0);
  float before[most];
  for (int64_t i = 0; i < n; i += most) {
    const int64_t width = smaller(most, n - i);
    const float* const value = p.value + at + i;
    for (int64_t j = 0; j < width; ++j) before[j] = value[j];
    move_numbers(move, p, at + i, width, grad + i);
    move.gauge[1] += sum_of_squares(width, [&](int64_t j) { return value[j] - before[j]; });
    move.gauge[2] += sum_of_squares(width, [&](int64_t j) { return before[j]; });
    const double squares = sum_of_squares(width, [&](int64_t j) { return value[j]; });
    move.gauge[3] += not_finite(value, width, squares);
  }
}

// Of the scores of D's last update, by one thread.
void Stepper::measure_scores() {
  const double middle = middle_of(job_.loss);
  for (const int segment : {kReal, kFake}) {
    double* const to = job_.sums + kScoreSums / 2 * segment;
    to[0] = middle == middle ? mean(job_.right_parts, segment) : middle;
    to[1] = mean(job_.score_parts, segment);
    to[2] = mean(job_.square_parts, segment);
  }
}

// What the threads have of a network, by one of them, once all have passed a barrier.
void Stepper::add_up(bool of_g) {
  double* const to = job_.sums + kScoreSums + (of_g ? kNetworkSums : 0);
  for (int64_t i = 0; i < kNetworkSums; ++i) {
    to[i] = 0;
    for (int64_t t = 0; t < threads_; ++t)
      to[i] += job_.gauges[(2 * t + (of_g ? 1 : 0)) * kNetworkSums + i];
  }
}
