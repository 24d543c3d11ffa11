// The operator that gathers a batch, on the CPU.
#include "cpu/parallel.h"
#include "ops/gather/operators.h"

namespace fastgan::cpu {

namespace {

// Bytes span [-1, 1]; other pixels are what they are.
template <class A>
A normalised(uint8_t pixel) {
  return static_cast<A>(pixel) * static_cast<A>(2.0 / 255.0) - A(1);
}
template <class A, class Pixel>
A normalised(Pixel pixel) {
  return static_cast<A>(pixel);
}

struct GatherOnCpu {
  static void gather(const Gather& g, const Tensor& pixels, const Tensor& out) {
    const int64_t first = place_of(g, 0);
    STD_TORCH_CHECK(g.rows <= g.ordered && first <= g.ordered - g.rows, "out has ", g.rows,
                    " rows, but batch ", first / g.batch, " of order, which has ", g.ordered,
                    " entries, has fewer");
    const int64_t* images = g.order + first;
    for (int64_t row = 0; row < g.rows; ++row) {
      STD_TORCH_CHECK(images[row] >= 0 && images[row] < g.images, "order has an entry ",
                      images[row], "; expected 0 <= entry < ", g.images);
    }
    const int64_t elements = g.channels * g.plane;
    dispatch_gather(pixels, out, [&](auto pixel, auto element) {
      using Pixel = decltype(pixel);
      using T = decltype(element);
      const Pixel* const all = in_ptr<Pixel>(pixels);
      T* const batch = out_ptr<T>(out);
      if (elements == 0) return;
      torch::stable::parallel_for(0, g.rows, 1 + 65536 / elements, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const Pixel* from = all + images[row] * elements;
          T* to = batch + row * elements;
          for (int64_t i = 0; i < elements; ++i) {
            const int64_t at = g.channels_last ? i % g.channels * g.plane + i / g.channels : i;
            store(to + i, normalised<arithmetic_t<T>>(from[at]));
          }
        }
      });
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { GatherOperators<GatherOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
