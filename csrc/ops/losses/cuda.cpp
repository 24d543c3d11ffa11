// The minimax losses on CUDA.
#include <limits>
#include <type_traits>

#include "cuda/on_device.h"
#include "ops/losses/launch.h"
#include "ops/losses/operators.h"

namespace fastgan::cuda {

namespace {

template <class T>
BceTerm<T> term_of(const BceOf& of) {
  const int64_t n = of.logits.numel();
  return {in_ptr<T>(of.logits), out_ptr<T>(of.grad), n, of.label, of.sign / static_cast<double>(n)};
}

struct LossesOnCuda {
  static void bce(const std::vector<BceOf>& terms, const Tensor& loss) {
    const OnDeviceOf device(loss);
    bool empty = false;
    for (const BceOf& of : terms) empty = empty || of.logits.numel() == 0;
    dispatch(terms[0].logits.scalar_type(), "the logits", [&](auto tag) {
      using T = decltype(tag);
      using Loss = std::conditional_t<std::is_same_v<T, double>, double, float>;
      const BceTerm<T> second =
          terms.size() > 1 ? term_of<T>(terms[1]) : BceTerm<T>{nullptr, nullptr, 0, 0.0, 0.0};
      STD_CUDA_CHECK(
          (cuda::bce<T, Loss>(term_of<T>(terms[0]), second, out_ptr<Loss>(loss), device.stream())));
    });
    if (empty) {  // nan, as torch's mean
      Tensor all = loss;
      torch::stable::fill_(all, std::numeric_limits<double>::quiet_NaN());
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) { LossOperators<LossesOnCuda>::add_to(m); }

}  // namespace fastgan::cuda
