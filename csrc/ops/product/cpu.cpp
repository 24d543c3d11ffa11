// Products of matrices on the CPU.
#include "cpu/scratch.h"
#include "ops/product/operators.h"

namespace fastgan::cpu {

namespace {

struct ProductOnCpu {
  static void product(const ProductShape& s, const Tensor& a, const Tensor& b,
                      const std::optional<Tensor>& bias, const Tensor& out) {
    const auto kernel = kernels().products;
    const float *const from = in_ptr<float>(a), *const with = in_ptr<float>(b);
    const float* const shift = bias ? in_ptr<float>(*bias) : nullptr;
    float* const to = out_ptr<float>(out);
    const int64_t results = s.sum ? 1 : s.many;
    const double all = static_cast<double>(s.many) * static_cast<double>(s.rows) *
                       static_cast<double>(s.columns) * static_cast<double>(s.depth);
    // The longer side is divided: what lies along the other is packed by every thread.
    constexpr int64_t kRows = 8;
    const bool by_rows = results == 1 && s.rows > s.columns;
    const int64_t unit = by_rows ? kRows : kPanelWidth, length = by_rows ? s.rows : s.columns;
    const int64_t units = units_of(length, unit), pieces = results * units;
    const int64_t grain = grain_of(static_cast<int64_t>(all / static_cast<double>(pieces)));
    torch::stable::parallel_for(0, pieces, grain, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last;) {
        const int64_t i = at / units, next = (i + 1) * units < last ? (i + 1) * units : last;
        const int64_t begin = (at - i * units) * unit, to_unit = (next - i * units) * unit;
        const int64_t end = to_unit < length ? to_unit : length;
        kernel(s, from, with, shift, i, by_rows ? begin : 0, by_rows ? end : s.rows,
               by_rows ? 0 : begin, by_rows ? s.columns : end, scratch<float>(), to);
        at = next;
      }
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { ProductOperators<ProductOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
