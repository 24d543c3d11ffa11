// The minimax losses on the CPU.
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "ops/losses/operators.h"

namespace fastgan::cpu {

namespace {

// The loss of each piece of this size is summed by itself and the pieces in order, whatever the
// number of threads.
constexpr int64_t kChunk = 4096;

// scale * the sum of the term's losses, and in grad its gradient.
template <class T, class Kernel>
double bce_sum(Kernel kernel, const BceOf& term) {
  const int64_t n = term.logits.numel();
  const double scale = term.sign / static_cast<double>(n);
  const T* const logits = in_ptr<T>(term.logits);
  T* const grad = out_ptr<T>(term.grad);
  std::vector<double> sums(static_cast<size_t>(units_of(n, kChunk)));
  parallel_units(n, kChunk, 4, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = end - at < kChunk ? end - at : kChunk;
      sums[static_cast<size_t>(at / kChunk)] =
          kernel(logits + at, count, term.label, scale, grad + at);
    }
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return scale * sum;  // nan for no logits, as torch's mean
}

double bce(const BceOf& term) {
  const Kernels& k = kernels();
  switch (term.logits.scalar_type()) {
    case ScalarType::Float:
      return bce_sum<float>(k.bce_f32, term);
    case ScalarType::Double:
      return bce_sum<double>(k.bce_f64, term);
    case ScalarType::BFloat16:
      return bce_sum<bf16>(k.bce_bf16, term);
    default:
      STD_TORCH_CHECK(false, "the logits must be float32, float64 or bfloat16");
  }
}

struct LossesOnCpu {
  static void bce(const std::vector<BceOf>& terms, const Tensor& loss) {
    double sum = 0;
    for (const BceOf& term : terms) sum += cpu::bce(term);
    if (loss.scalar_type() == ScalarType::Double) {
      *out_ptr<double>(loss) = sum;
    } else {
      *out_ptr<float>(loss) = static_cast<float>(sum);
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { LossOperators<LossesOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
