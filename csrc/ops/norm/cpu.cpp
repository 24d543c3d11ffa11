// BatchNorm and the rectifier behind it, on the CPU.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/images.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "ops/norm/operators.h"

namespace fastgan::cpu {

namespace {

// Numbers of a piece of the images: a few hundred rows, whose sums are added up in float32.
constexpr int64_t kPiece = 32768;
// Rows, spread over all, whose mean is taken off before squares are summed.
constexpr int64_t kSampled = 64;

struct Rows {
  explicit Rows(const Tensor& x, int64_t parts = 1)
      : channels(x.size(1)),
        parts(parts),
        rows(channels > 0 ? x.numel() / channels / parts : 0),
        piece(std::clamp<int64_t>(kPiece / std::max<int64_t>(channels, 1) / 4 * 4, 4, 512)),
        pieces(units_of(rows, piece)) {}

  // rows, pieces: those of a part.
  const int64_t channels, parts, rows, piece, pieces;

  // f(piece, part, first row, rows) for all pieces.
  template <class F>
  void each(const F& f) const {
    parallel_units(parts * pieces, 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i / pieces, first = i % pieces * piece;
        f(i, part, part * rows + first, std::min(piece, rows - first));
      }
    });
  }

  // [parts][count][channels] of f(part, first row, rows, sums), summed over all pieces of a part in
  // their order.
  template <class F>
  std::vector<double> sums(int64_t count, const F& f) const {
    const int64_t n = count * channels;
    std::vector<float> found(parts * pieces * n);
    each([&](int64_t i, int64_t part, int64_t first, int64_t size) {
      f(part, first, size, found.data() + i * n);
    });
    std::vector<double> total(parts * n);
    for (int64_t i = 0; i < parts * pieces; ++i) {
      double* const to = total.data() + i / pieces * n;
      for (int64_t j = 0; j < n; ++j) to[j] += found[i * n + j];
    }
    return total;
  }
};

Tensor vector_like(const Tensor& t) {
  return torch::stable::new_empty(t, std::vector<int64_t>{t.size(0)});
}

// Weight over standard deviation of each part, for NormChannels.
std::vector<float> scales(const Tensor& weight, const Tensor& deviation) {
  std::vector<float> found(deviation.size(0));
  for (size_t i = 0; i < found.size(); ++i) {
    found[i] = in_ptr<float>(weight)[i % weight.size(0)] * in_ptr<float>(deviation)[i];
  }
  return found;
}

struct NormOnCpu {
  using Three = std::tuple<Tensor, Tensor, Tensor>;

  static Three forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& running_mean, const Tensor& running_var, double momentum,
                       double eps, double slope, int64_t parts) {
    const Rows r(x, parts);
    const Tensor images = channels_last(x);
    Tensor y = new_channels_last(x, sizes_of(x));
    const std::vector<int64_t> all{parts * r.channels};
    Tensor mean = torch::stable::new_empty(x, all), deviation = torch::stable::new_empty(x, all);
    if (x.numel() == 0) return {y, mean, deviation};
    const float* from = in_ptr<float>(images);
    const int64_t sampled = std::min(kSampled, r.rows);
    std::vector<float> around(all[0]);
    for (int64_t part = 0; part < parts; ++part) {
      float* const to = around.data() + part * r.channels;
      for (int64_t i = 0; i < sampled; ++i) {
        const float* row = from + (part * r.rows + r.rows * i / sampled) * r.channels;
        for (int64_t c = 0; c < r.channels; ++c) to[c] += row[c] / sampled;
      }
    }
    const std::vector<double> sums =
        r.sums(2, [&](int64_t part, int64_t first, int64_t rows, float* to) {
          kernels().norm.moments(rows, r.channels, from + first * r.channels,
                                 around.data() + part * r.channels, to);
        });
    const double n = r.rows;
    float *running = out_ptr<float>(running_mean), *squared = out_ptr<float>(running_var);
    for (int64_t i = 0; i < all[0]; ++i) {
      const int64_t c = i % r.channels;
      const double* const of = sums.data() + (i - c) * 2 + c;
      const double off = of[0] / n, square = of[r.channels] / n;
      const double var = std::max(square - off * off, square != square ? square : 0.0);
      out_ptr<float>(mean)[i] = around[i] + off;
      out_ptr<float>(deviation)[i] = 1 / std::sqrt(var + eps);
      running[c] += momentum * (around[i] + off - running[c]);
      squared[c] += momentum * (var * n / (n - 1) - squared[c]);
    }
    const std::vector<float> scale = scales(weight, deviation);
    float* to = out_ptr<float>(y);
    r.each([&](int64_t, int64_t part, int64_t first, int64_t rows) {
      const NormChannels of = channels_of(r.channels, part, mean, scale, bias, slope);
      kernels().norm.forward(rows, of, from + first * r.channels, to + first * r.channels);
    });
    return {y, mean, deviation};
  }

  static Three backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                        double slope, bool need_x, int64_t parts) {
    const Rows r(x, parts);
    const Tensor images = channels_last(x), slopes = channels_last(grad);
    Tensor dx = need_x ? new_channels_last(x, sizes_of(x))
                       : torch::stable::new_empty(x, std::vector<int64_t>{0});
    Tensor dweight = vector_like(weight), dbias = vector_like(weight);
    const std::vector<float> scale = scales(weight, deviation);
    const auto of = [&](int64_t part) {
      return channels_of(r.channels, part, mean, scale, bias, slope);
    };
    const float *from = in_ptr<float>(images), *g = in_ptr<float>(slopes);
    const std::vector<double> sums =
        r.sums(2, [&](int64_t part, int64_t first, int64_t rows, float* to) {
          const int64_t at = first * r.channels;
          kernels().norm.gradient_sums(rows, of(part), from + at, g + at, to);
        });
    // dx = scale (g' - mean(g') - h mean(g' h)), h = (x - mean) deviation
    std::vector<float> factors(parts * 2 * r.channels);
    for (int64_t c = 0; c < r.channels; ++c) {
      double all_along = 0.0, all = 0.0;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t i = part * r.channels + c, first = 2 * part * r.channels + c;
        const double s = in_ptr<float>(deviation)[i], n = std::max<int64_t>(r.rows, 1);
        const double along = sums[first + r.channels] * s;
        all += sums[first];
        all_along += along;
        factors[first] = -scale[i] * s * along / n;
        factors[first + r.channels] = -scale[i] * sums[first] / n;
      }
      out_ptr<float>(dbias)[c] = all;
      out_ptr<float>(dweight)[c] = all_along;
    }
    if (need_x) {
      float* to = out_ptr<float>(dx);
      r.each([&](int64_t, int64_t part, int64_t first, int64_t rows) {
        const int64_t at = first * r.channels;
        kernels().norm.gradient(rows, of(part), factors.data() + 2 * part * r.channels, from + at,
                                g + at, to + at);
      });
    }
    return {dx, dweight, dbias};
  }

  static Three second(const Tensor& v, const Tensor& grad, const Tensor& x, const Tensor& weight,
                      const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                      const Tensor& dweight, const Tensor& dbias, double slope) {
    const Rows r(x);
    const Tensor images = channels_last(x), slopes = channels_last(grad), vs = channels_last(v);
    Tensor dgrad = new_channels_last(x, sizes_of(x)), dx = new_channels_last(x, sizes_of(x));
    Tensor second = vector_like(weight);
    const std::vector<float> scale = scales(weight, deviation);
    const NormChannels of = channels_of(r.channels, 0, mean, scale, bias, slope);
    const float *from = in_ptr<float>(images), *g = in_ptr<float>(slopes), *w = in_ptr<float>(vs);
    const std::vector<double> sums =
        r.sums(3, [&](int64_t, int64_t first, int64_t rows, float* to) {
          const int64_t at = first * r.channels;
          kernels().norm.second_sums(rows, of, from + at, g + at, w + at, to);
        });
    // L = sum v dx = scale n (mean(v g') - mean(v) mean(g') - mean(v h) mean(g' h)); by g' it is
    // the map of the backward pass once more, by x
    //   scale deviation [-mean(g' h) (v - mean(v)) - mean(v h) (g' - mean(g'))
    //                    + h (3 mean(g' h) mean(v h) + mean(v) mean(g') - mean(v g'))]
    std::vector<float> factors(6 * r.channels);
    for (int64_t c = 0; c < r.channels; ++c) {
      const double s = in_ptr<float>(deviation)[c], n = std::max<int64_t>(r.rows, 1);
      const double of_v = sums[c] / n, v_h = sums[r.channels + c] * s / n;
      const double v_g = sums[2 * r.channels + c] / n;
      const double of_g = in_ptr<float>(dbias)[c] / n, g_h = in_ptr<float>(dweight)[c] / n;
      const double a = scale[c], rest = v_g - of_v * of_g - v_h * g_h;
      const double both[] = {
          -a * s * v_h,
          -a * of_v,
          -a * s * g_h,
          -a * s * v_h,
          a * s * s * (2 * g_h * v_h - rest),
          a * s * (g_h * of_v + v_h * of_g),
      };
      for (int i = 0; i < 6; ++i) factors[i * r.channels + c] = both[i];
      out_ptr<float>(second)[c] = s * n * rest;
    }
    float *to = out_ptr<float>(dgrad), *into = out_ptr<float>(dx);
    r.each([&](int64_t, int64_t, int64_t first, int64_t rows) {
      const int64_t at = first * r.channels;
      kernels().norm.second(rows, of, factors.data(), from + at, g + at, w + at, to + at,
                            into + at);
    });
    return {dgrad, dx, second};
  }

 private:
  static NormChannels channels_of(int64_t channels, int64_t part, const Tensor& mean,
                                  const std::vector<float>& scale, const Tensor& bias,
                                  double slope) {
    return {channels, in_ptr<float>(mean) + part * channels, scale.data() + part * channels,
            in_ptr<float>(bias), static_cast<float>(slope)};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { NormOperators<NormOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
