// What is done with gradients that have waited: clipped by the norm of all of a network's, and
// used; part of stepper.h.

// Calls use(parameter, first element, elements, number of the chunk) for this thread's chunks; the
// number of all chunks.
template <class Use>
int64_t Stepper::each_own_chunk(const Network& network, Use use) const {
  int64_t number = 0;
  const auto visit = [&](const Parameter& p, int64_t n) {
    for (int64_t at = 0; p.value && at < n; at += kGradChunk, ++number)
      if (number % threads_ == thread_) use(p, at, smaller(kGradChunk, n - at), number);
  };
  for (const Layer& l : network.layers) {
    visit(l.weight, l.in * l.out);
    visit(l.bias, l.out);
    visit(l.gamma, l.out);
    visit(l.beta, l.out);
  }
  for (const PlannedPart& part : network.parts) visit(part.table, part.classes * part.width);
  return number;
}

// In a part the sum of several ranks' gradients is bounded, and not what each of them has.
void Stepper::squares(bool of_g) {
  const Network& network = of_g ? job_.g : job_.d;
  const float largest = static_cast<float>(network.optimizer.largest_grad);
  each_own_chunk(network, [&](const Parameter& p, int64_t at, int64_t n, int64_t i) {
    if (job_.part == Part::move) {
      if (measured(of_g)) measure_gradient(gauge(of_g), p.grad + at, n);
      if (largest < INFINITY) bound(p.grad + at, n, largest);
    }
    double sum = 0;
    for (int64_t j = 0; j < n; ++j)
      sum += static_cast<double>(p.grad[at + j]) * static_cast<double>(p.grad[at + j]);
    job_.squares[i] = sum;
  });
}

// As torch.nn.utils.clip_grad_norm_: a norm that is no number leaves none.
void Stepper::clip(bool of_g) {
  const Network& network = of_g ? job_.g : job_.d;
  const int64_t chunks =
      each_own_chunk(network, [](const Parameter&, int64_t, int64_t, int64_t) {});
  double sum = 0;
  for (int64_t i = 0; i < chunks; ++i) sum += job_.squares[i];
  const double longest = network.optimizer.longest_grad;
  const double share = longest / (math::sqrt(sum) + 1e-6);
  const float factor = static_cast<float>(share > 1 || longest == INFINITY ? 1 : share);
  const Move move = move_of(of_g);
  each_own_chunk(network, [&](const Parameter& p, int64_t at, int64_t n, int64_t) {
    for (int64_t j = 0; j < n; ++j) p.grad[at + j] *= factor;
    apply(move, p, at, n, p.grad + at);
  });
}
