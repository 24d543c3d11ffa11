// The operators that draw, on CUDA: launches on torch's current stream.
#include "cuda/on_device.h"
#include "ops/random/launch.h"
#include "ops/random/operators.h"

namespace fastgan::cuda {

namespace {

struct RandomOnCuda {
  static void words(const Philox& g, int64_t start, const Tensor& out) {
    const OnDeviceOf device(out);
    STD_CUDA_CHECK(philox_words(g, start, out.numel(), out_ptr<int64_t>(out), device.stream()));
  }

  static void uniform(const Philox& g, const Tensor& out) {
    const OnDeviceOf device(out);
    STD_CUDA_CHECK(philox_uniform(g, out.numel(), out_ptr<float>(out), device.stream()));
  }

  static void normal(const Philox& g, const Counter& counter, const Tensor& out) {
    const OnDeviceOf device(out);
    STD_CUDA_CHECK(philox_normal(g, counter, out.numel(), out_ptr<float>(out), device.stream()));
  }

  static void keep_mask(const Philox& g, const Counter& counter, uint32_t threshold,
                        const Tensor& out) {
    const OnDeviceOf device(out);
    STD_CUDA_CHECK(
        philox_keep_mask(g, counter, out.numel(), threshold, out_ptr<bool>(out), device.stream()));
  }

  static Tensor dropout(const Dropout& drop, const Tensor& x) {
    const OnDeviceOf device(x);
    const Tensor xc = torch::stable::contiguous(x);
    const Tensor y = torch::stable::new_empty(x, sizes_of(x));
    dispatch(x.scalar_type(), "x", [&](auto tag) {
      using T = decltype(tag);
      STD_CUDA_CHECK(
          cuda::dropout<T>(drop, x.numel(), in_ptr<T>(xc), out_ptr<T>(y), device.stream()));
    });
    return y;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) { RandomOperators<RandomOnCuda>::add_to(m); }

}  // namespace fastgan::cuda
