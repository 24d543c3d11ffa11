// The launcher of the minimax losses' kernel; see cuda/launchers.h.
#pragma once

#include "cuda/launchers.h"

namespace fastgan::cuda {

// One set of logits and what becomes of them: grad[i] = weight * d bce(logits[i], label), and
// weight * sum of bce goes into the loss.
template <class T>
struct BceTerm {
  const T* logits;
  T* grad;
  int64_t n;
  double label, weight;
};

// *loss = the sum over both terms, added up in an order fixed by the sizes. T: float, double, bf16
// or fp16. Loss: float, or double where T is double.
template <class T, class Loss>
cudaError_t bce(const BceTerm<T>& first, const BceTerm<T>& second, Loss* loss, cudaStream_t stream);

}  // namespace fastgan::cuda
