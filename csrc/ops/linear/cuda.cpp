// The linear layer's operators on CUDA: the products are torch's, or tiles of our own.
#include <array>
#include <cstdlib>
#include <string>
#include <type_traits>

#include "cuda/on_device.h"
#include "ops/linear/launch.h"
#include "ops/linear/operators.h"

namespace fastgan::cuda {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

// The same values outside autograd: torch's operations below must not record a derivative of
// their own, which would be that of a part of the operator.
Tensor detached(const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor as_matrix(const Tensor& t, int64_t rows, int64_t columns) {
  return torch::stable::reshape(t, std::vector<int64_t>{rows, columns});
}

// a b by torch, contiguous and of a's dtype: autocast, where it is on, reaches inside an operator.
Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor c = contiguous(torch::stable::matmul(a, b));
  return c.scalar_type() == a.scalar_type() ? c : torch::stable::to(c, a.scalar_type());
}

Tensor as_vector(const Tensor& t) {
  return torch::stable::reshape(t, std::vector<int64_t>{t.numel()});
}

// FASTGAN_LINEAR=tiles takes our own products, in fewer launches, where a layer is too small to
// fill the device; otherwise, and by default, the products are torch's, which obey its settings.
bool wants_tiles() {
  static const bool wanted = [] {
    const char* choice = std::getenv("FASTGAN_LINEAR");
    const std::string text = choice ? choice : "";
    STD_TORCH_CHECK(text.empty() || text == "library" || text == "tiles", "FASTGAN_LINEAR is '",
                    text, "'; set it to library or tiles, or unset it");
    return text == "tiles";
  }();
  return wanted;
}

// A rule of shapes and dtypes alone: equal calls give equal bits.
bool takes_tiles(ScalarType dtype, const LinearSizes& s) {
  constexpr int64_t kMostSum = 2048, kMostProducts = int64_t{1} << 26;
  return wants_tiles() && dtype != ScalarType::Double && s.batch <= kMostSum && s.in <= kMostSum &&
         s.out <= kMostSum && s.batch * s.in * s.out <= kMostProducts;
}

// `dispatch` among the types that the tiles take.
template <class F>
void dispatch_tiles(ScalarType dtype, const F& f) {
  dispatch(dtype, "x", [&](auto tag) {
    if constexpr (!std::is_same_v<decltype(tag), double>) f(tag);
  });
}

Tensor forward_tiles(const LinearSizes& s, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, double negative_slope, const Dropout& drop,
                     cudaStream_t stream) {
  const Tensor xc = contiguous(x), wc = contiguous(weight);
  const std::optional<Tensor> bc = bias ? std::optional<Tensor>(contiguous(*bias)) : std::nullopt;
  Tensor y = new_empty(x, s.result);
  dispatch_tiles(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(linear_tiles<T>(s, in_ptr<T>(xc), in_ptr<T>(wc), bc ? in_ptr<T>(*bc) : nullptr,
                                   negative_slope, drop, out_ptr<T>(y), stream));
  });
  return y;
}

void backward_tiles(const LinearSizes& s, const Tensor& grad_pre, const Tensor& x,
                    const Tensor& weight, Tensor* grad_x, Tensor* grad_weight,
                    cudaStream_t stream) {
  const Tensor xc = contiguous(x), wc = contiguous(weight);
  dispatch_tiles(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    STD_CUDA_CHECK(linear_backward_tiles<T>(s, in_ptr<T>(grad_pre), in_ptr<T>(xc), in_ptr<T>(wc),
                                            grad_x ? out_ptr<T>(*grad_x) : nullptr,
                                            grad_weight ? out_ptr<T>(*grad_weight) : nullptr,
                                            stream));
  });
}

struct LinearOnCuda {
  static Tensor forward(const LinearSizes& s, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, double negative_slope,
                        const Dropout& drop) {
    const OnDeviceOf device(x);
    if (takes_tiles(x.scalar_type(), s)) {
      return forward_tiles(s, x, weight, bias, negative_slope, drop, device.stream());
    }
    Tensor y = torch::stable::reshape(product(as_matrix(detached(x), s.batch, s.in),
                                              torch::stable::transpose(detached(weight), 0, 1)),
                                      s.result);
    const std::optional<Tensor> bc = bias ? std::optional<Tensor>(contiguous(*bias)) : std::nullopt;
    dispatch(x.scalar_type(), "x", [&](auto tag) {
      using T = decltype(tag);
      STD_CUDA_CHECK(bias_leaky_relu<T>(out_ptr<T>(y), bc ? in_ptr<T>(*bc) : nullptr, s.batch,
                                        s.out, negative_slope, drop, device.stream()));
    });
    return y;
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(const LinearSizes& s, const Tensor& grad,
                                                     const Tensor& x, const Tensor& weight,
                                                     const Tensor& sign, double negative_slope,
                                                     const LinearNeeds& need, const Dropout& drop) {
    const OnDeviceOf device(x);
    const Tensor gc = contiguous(grad), sc = contiguous(sign);
    const std::vector<int64_t> none{0};
    Tensor grad_pre = new_empty(grad, std::vector<int64_t>{s.batch, s.out});
    Tensor grad_bias = new_empty(weight, none);
    dispatch(x.scalar_type(), "x", [&](auto tag) {
      using T = decltype(tag);
      if (!need.bias) {
        STD_CUDA_CHECK(leaky_relu_backward<T>(in_ptr<T>(gc), in_ptr<T>(sc), s.batch, s.out,
                                              negative_slope, drop, out_ptr<T>(grad_pre),
                                              device.stream()));
        return;
      }
      using A = arithmetic_t<T>;
      constexpr ScalarType wide = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
      Tensor sums = new_empty(weight, std::vector<int64_t>{strips_of(s.batch), s.out}, wide);
      STD_CUDA_CHECK(leaky_relu_bias_backward<T>(in_ptr<T>(gc), in_ptr<T>(sc), s.batch, s.out,
                                                 negative_slope, drop, out_ptr<T>(grad_pre),
                                                 out_ptr<A>(sums), device.stream()));
      grad_bias =
          sums.size(0) == 1 ? as_vector(sums) : torch::stable::sum(sums, std::vector<int64_t>{0});
      if (wide != x.scalar_type()) grad_bias = torch::stable::to(grad_bias, x.scalar_type());
    });
    if (takes_tiles(x.scalar_type(), s)) {
      Tensor grad_x = new_empty(x, need.x ? sizes_of(x) : none);
      Tensor grad_weight = new_empty(weight, need.weight ? sizes_of(weight) : none);
      backward_tiles(s, grad_pre, x, weight, need.x ? &grad_x : nullptr,
                     need.weight ? &grad_weight : nullptr, device.stream());
      return {grad_x, grad_weight, grad_bias};
    }
    Tensor grad_x = need.x
                        ? torch::stable::reshape(product(grad_pre, detached(weight)), sizes_of(x))
                        : new_empty(x, none);
    Tensor grad_weight = need.weight ? product(torch::stable::transpose(grad_pre, 0, 1),
                                               as_matrix(detached(x), s.batch, s.in))
                                     : new_empty(weight, none);
    return {grad_x, grad_weight, grad_bias};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) { LinearOperators<LinearOnCuda>::add_to(m); }

}  // namespace fastgan::cuda
