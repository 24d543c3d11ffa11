// The minimax losses with their gradients, in one launch of one block: logits are few (one an
// image), and one block adds them up in a fixed order without a second launch.
#include "common/losses.h"
#include "cuda/device.cuh"
#include "ops/losses/launch.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreadsOfLoss = 512;  // a power of two

template <class T>
__device__ double bce_term(const BceTerm<T>& term) {
  using A = arithmetic_t<T>;
  const A label = static_cast<A>(term.label), weight = static_cast<A>(term.weight);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < term.n; i += kThreadsOfLoss) {
    const LossGrad<A> r = bce_with_logit<A>(widen(term.logits[i]), label);
    sum += r.loss;
    store(term.grad + i, weight * r.grad);
  }
  return term.n ? sum * term.weight : 0.0;  // the weight of an empty term is infinite
}

template <class T, class Loss>
__global__ void __launch_bounds__(kThreadsOfLoss)
    bce_kernel(BceTerm<T> first, BceTerm<T> second, Loss* loss) {
  FASTGAN_SHARED(double, sums, [kThreadsOfLoss]);
  sums[threadIdx.x] = bce_term(first) + bce_term(second);
  __syncthreads();
  for (unsigned half = kThreadsOfLoss / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *loss = static_cast<Loss>(sums[0]);
}

}  // namespace

template <class T, class Loss>
cudaError_t bce(const BceTerm<T>& first, const BceTerm<T>& second, Loss* loss,
                cudaStream_t stream) {
  return launch(bce_kernel<T, Loss>, 1, kThreadsOfLoss, 0, stream, first, second, loss);
}

#define FASTGAN_INSTANTIATE(T, Loss) \
  template cudaError_t bce<T, Loss>(const BceTerm<T>&, const BceTerm<T>&, Loss*, cudaStream_t);
FASTGAN_INSTANTIATE(float, float)
FASTGAN_INSTANTIATE(double, double)
FASTGAN_INSTANTIATE(bf16, float)
FASTGAN_INSTANTIATE(fp16, float)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
