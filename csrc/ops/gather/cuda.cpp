// The operator that gathers a batch, on CUDA.
#include "cuda/on_device.h"
#include "ops/gather/launch.h"
#include "ops/gather/operators.h"

namespace fastgan::cuda {

namespace {

struct GatherOnCuda {
  static void gather(const Gather& g, const Tensor& pixels, const Tensor& out) {
    const OnDeviceOf device(out);
    dispatch_gather(pixels, out, [&](auto pixel, auto element) {
      using Pixel = decltype(pixel);
      using T = decltype(element);
      STD_CUDA_CHECK(
          (gather_normalize<Pixel, T>(g, in_ptr<Pixel>(pixels), out_ptr<T>(out), device.stream())));
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) { GatherOperators<GatherOnCuda>::add_to(m); }

}  // namespace fastgan::cuda
