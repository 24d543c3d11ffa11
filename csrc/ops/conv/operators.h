// What the convolutions' operators are on every device: their arguments, checked, and the names
// they are registered under. The size of the weight's kernel says which convolution it is: 4x4 has
// stride 2 and padding 1, 3x3 stride 1 and padding 1, 1x1 stride 1 and no padding. A device brings
//   Tensor forward(conv, x, weight, bias, negative_slope, sign)
//   Tensor transposed(conv, grad, weight, bias, negative_slope, sign)
//   Tensor grad_weight(conv, x, grad, channels_last)
// sign: where it is positive a result is left alone by the rectifier; without it where the result
// is.
#pragma once

#include <cmath>
#include <optional>

#include "ops/conv/shape.h"
#include "ops/tensors.h"

namespace fastgan {

struct ConvSpec {
  ConvShape shape;
  int64_t kernel;

  int64_t stride() const { return kernel == 4 ? 2 : 1; }
  std::vector<int64_t> x() const { return {shape.batch, shape.in, shape.height, shape.width}; }
  std::vector<int64_t> y() const {
    return {shape.batch, shape.out, shape.height / stride(), shape.width / stride()};
  }
  std::vector<int64_t> weight() const { return {shape.out, shape.in, kernel, kernel}; }
};

inline void check_kernel(int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(rows == columns && (rows == 1 || rows == 3 || rows == 4), "the kernel is ", rows,
                  " x ", columns, "; expected 1 x 1, 3 x 3 or 4 x 4");
}

// Sizes whose products fit 63 bits.
inline void check_conv_sizes(const ConvSpec& c) {
  constexpr int64_t kMostChannels = 1 << 20, kMostPixels = int64_t{1} << 40;
  const ConvShape& s = c.shape;
  STD_TORCH_CHECK(s.in <= kMostChannels && s.out <= kMostChannels, "there are ", s.in, " and ",
                  s.out, " channels; expected at most 2**20");
  int64_t pixels = 0;
  const bool overflow = __builtin_mul_overflow(s.batch, s.height, &pixels) ||
                        __builtin_mul_overflow(pixels, s.width, &pixels);
  STD_TORCH_CHECK(!overflow && pixels <= kMostPixels, "there are ", s.batch, " images of ",
                  s.height, " x ", s.width, "; expected at most 2**40 pixels");
  STD_TORCH_CHECK(c.stride() == 1 || (s.height % 2 == 0 && s.width % 2 == 0), "images are ",
                  s.height, " x ", s.width, "; a 4 x 4 kernel takes even sizes");
}

inline void check_image(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " has shape ", shape_of(t),
                  "; expected [batch, channels, height, width]");
  check_memory(t, name);
}

// The convolution of x and weight, or, transposed, the one whose y is `image`.
inline ConvSpec check_conv(const Tensor& image, const char* name, const Tensor& weight,
                           const std::optional<Tensor>& bias, double negative_slope,
                           bool transposed) {
  STD_TORCH_CHECK(weight.dim() == 4, "weight has shape ", shape_of(weight),
                  "; expected 4 dimensions");
  check_image(image, name);
  check_like(weight, "weight", image, name);
  check_kernel(weight.size(2), weight.size(3));
  ConvSpec c{{image.size(0), image.size(2), image.size(3), weight.size(1), weight.size(0)},
             weight.size(2)};
  const int64_t channels = transposed ? c.shape.out : c.shape.in;
  STD_TORCH_CHECK(image.size(1) == channels, name, " has shape ", shape_of(image), "; expected ",
                  channels, " channels, because weight has shape ", shape_of(weight));
  if (transposed) {
    const bool overflow = __builtin_mul_overflow(c.shape.height, c.stride(), &c.shape.height) ||
                          __builtin_mul_overflow(c.shape.width, c.stride(), &c.shape.width);
    STD_TORCH_CHECK(!overflow, name, " has shape ", shape_of(image), "; that is too large");
  }
  check_conv_sizes(c);
  if (bias.has_value()) {
    const int64_t results = transposed ? c.shape.in : c.shape.out;
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == results, "bias has shape ",
                    shape_of(*bias), "; expected [", results, "]");
    check_like(*bias, "bias", image, name);
  }
  STD_TORCH_CHECK(std::isfinite(negative_slope), "negative_slope is ", negative_slope,
                  "; expected a finite number");
  return c;
}

inline void check_sign(const std::optional<Tensor>& sign, const Tensor& x,
                       const std::vector<int64_t>& result) {
  if (!sign.has_value()) return;
  STD_TORCH_CHECK(sizes_of(*sign) == result, "sign has shape ", shape_of(*sign),
                  "; expected that of the result, as x has shape ", shape_of(x));
  check_like(*sign, "sign", x, "x");
  check_memory(*sign, "sign");
}

template <class Device>
struct ConvOperators {
  static Tensor conv2d_leaky_relu(const Tensor& x, const Tensor& weight,
                                  const std::optional<Tensor>& bias, double negative_slope,
                                  const std::optional<Tensor>& sign) {
    const ConvSpec c = check_conv(x, "x", weight, bias, negative_slope, false);
    check_sign(sign, x, c.y());
    return Device::forward(c, x, weight, bias, negative_slope, sign);
  }

  static Tensor conv_transpose2d_leaky_relu(const Tensor& x, const Tensor& weight,
                                            const std::optional<Tensor>& bias,
                                            double negative_slope,
                                            const std::optional<Tensor>& sign) {
    const ConvSpec c = check_conv(x, "x", weight, bias, negative_slope, true);
    check_sign(sign, x, c.x());
    return Device::transposed(c, x, weight, bias, negative_slope, sign);
  }

  static Tensor conv2d_grad_weight(const Tensor& x, const Tensor& grad, int64_t kernel,
                                   bool channels_last) {
    check_image(x, "x");
    check_image(grad, "grad");
    check_like(grad, "grad", x, "x");
    check_kernel(kernel, kernel);
    const ConvSpec c{{x.size(0), x.size(2), x.size(3), x.size(1), grad.size(1)}, kernel};
    check_conv_sizes(c);
    STD_TORCH_CHECK(sizes_of(grad) == c.y(), "grad has shape ", shape_of(grad),
                    "; expected that of the convolution's output, whose x has shape ", shape_of(x));
    return Device::grad_weight(c, x, grad, channels_last);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("conv2d_leaky_relu", TORCH_BOX(&conv2d_leaky_relu));
    m.impl("conv_transpose2d_leaky_relu", TORCH_BOX(&conv_transpose2d_leaky_relu));
    m.impl("conv2d_grad_weight", TORCH_BOX(&conv2d_grad_weight));
  }
};

}  // namespace fastgan
