// What the minimax losses' operators are on every device: their arguments, checked, what they
// return, and the names they are registered under. A device brings
//   void bce(terms, loss): the sum of the terms into `loss`, and their gradients
#pragma once

#include <tuple>

#include "ops/tensors.h"

namespace fastgan {

// sign * mean bce(logits, label), and what its gradient is written to.
struct BceOf {
  Tensor logits, grad;
  double label, sign;
};

template <class Device>
struct LossOperators {
  static std::tuple<Tensor, Tensor, Tensor> discriminator_loss(const Tensor& real_logits,
                                                               const Tensor& fake_logits,
                                                               double real_label,
                                                               double fake_label) {
    check_memory(real_logits, "real_logits");
    check_like(fake_logits, "fake_logits", real_logits, "real_logits");
    const std::vector<BceOf> terms{term(real_logits, real_label, 1.0),
                                   term(fake_logits, fake_label, 1.0)};
    const Tensor loss = loss_scalar(real_logits);
    Device::bce(terms, loss);
    return {loss, terms[0].grad, terms[1].grad};
  }

  static std::tuple<Tensor, Tensor> generator_loss(const Tensor& fake_logits, bool saturating) {
    check_memory(fake_logits, "fake_logits");
    const std::vector<BceOf> terms{
        term(fake_logits, saturating ? 0.0 : 1.0, saturating ? -1.0 : 1.0)};
    const Tensor loss = loss_scalar(fake_logits);
    Device::bce(terms, loss);
    return {loss, terms[0].grad};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("discriminator_loss", TORCH_BOX(&discriminator_loss));
    m.impl("generator_loss", TORCH_BOX(&generator_loss));
  }

 private:
  static BceOf term(const Tensor& logits, double label, double sign) {
    return {torch::stable::contiguous(logits), torch::stable::new_empty(logits, sizes_of(logits)),
            label, sign};
  }

  static Tensor loss_scalar(const Tensor& logits) {
    const bool wide = logits.scalar_type() == ScalarType::Double;
    return torch::stable::new_empty(logits, std::vector<int64_t>{},
                                    wide ? ScalarType::Double : ScalarType::Float);
  }
};

}  // namespace fastgan
