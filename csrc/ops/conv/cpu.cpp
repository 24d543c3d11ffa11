// The convolutions' operators on the CPU.
#include <algorithm>

#include "cpu/images.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "ops/conv/operators.h"

namespace fastgan::cpu {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::permute;

// Fewer channels than this do not fill the planes of a transform.
constexpr int64_t kFewChannels = 4;
// Large tiles round up to three times as much as a plain sum, and more in sums over few channels.
constexpr int64_t kLeastForLarge4x4 = 32, kLeastForLarge3x3 = 64;
// Panels of U that are made before the products that use them, in floats: about 4 MB.
constexpr int64_t kPanelsAtATime = 1 << 20;
// Packed weights that the last cache of a few cores holds, in floats: 32 MB.
constexpr int64_t kPackedInCache = 1 << 23;
// Sums of the parts of a gradient, in floats: 8 MB, and the most parts.
constexpr int64_t kSumsAtATime = 1 << 21, kMostParts = 16;
// Multiplications that make it worth waking a thread.
constexpr int64_t kWorth = 1 << 18;
// As many of them take the time in which a number of the packed weights is made and written.
constexpr int64_t kOfPacked = 8;

int64_t grain_of(int64_t multiplications_per_unit) {
  return kWorth / std::max<int64_t>(multiplications_per_unit, 1) + 1;
}

// One convolution or the one with the roles of x and y exchanged: for stride 1 the transposed
// convolution is a convolution with the taps turned round.
struct Problem {
  ConvShape shape;
  const ConvKernels* kernels;
  bool turned;

  template <class T>
  ConvWeight<T> weight(T* data, const std::vector<int64_t>& strides) const {
    ConvWeight<T> w{data, strides[0], strides[1], strides[2], strides[3], turned};
    if (turned) std::swap(w.out, w.in);
    return w;
  }
};

enum class Pass { image, weight };

// Channels from which tiles of matrices were measured faster than vectors, the split into parts
// included.
int64_t least_for_tiles(ConvAlgorithm a, Pass pass) {
  const bool of_4x4 = a == ConvAlgorithm::winograd_4x4 || a == ConvAlgorithm::large_4x4;
  if (pass == Pass::weight) return of_4x4 ? 32 : 256;
  return of_4x4 ? 64 : 128;
}

const ConvKernels& algorithm(ConvAlgorithm a, const ConvShape& s, Pass pass) {
  const Kernels& all = kernels();
  const auto i = static_cast<int>(a);
  const bool tiles = all.tiled != nullptr && all.tiled[i].sizes != nullptr &&
                     std::min(s.in, s.out) >= least_for_tiles(a, pass);
  return tiles ? all.tiled[i] : all.conv[i];
}

// Of two sizes of tiles the one that takes less time: large ones need fewer products, but have more
// places of the weight to transform, each of which costs as much as the products of some tiles.
const ConvKernels& by_tiles(const ConvShape& s, Pass pass, const ConvKernels& small,
                            const ConvKernels& large) {
  // What no cache holds is written to memory and read from there, once for each thread.
  const bool wide = isa() == Isa::avx512 || isa() == Isa::amx;
  const auto of_place = [&](int64_t packed) {
    return pass == Pass::image && wide && packed > kPackedInCache ? 1400 : 700;
  };
  const auto cost = [&](const ConvKernels& k, int64_t of_tile) {
    const ConvSizes sizes = k.sizes(s);
    const int64_t place = of_place(sizes.packed_outputs);
    return sizes.products_of_tile * (sizes.tiles * of_tile + place);
  };
  // A product of a large tile takes a tenth longer.
  return cost(large, 22) < cost(small, 20) ? large : small;
}

// `exact`: without large tiles. Where images are not channels last, torch's own sums round less.
Problem problem_of(const ConvSpec& c, bool turned, Pass pass, bool exact) {
  ConvShape s = c.shape;
  if (turned) std::swap(s.in, s.out);
  const int64_t least = std::min(s.in, s.out);
  ConvAlgorithm small = ConvAlgorithm::taps_1x1, large = small;
  if (c.kernel == 4 && s.in <= kFewChannels) {
    small = large = ConvAlgorithm::taps_4x4;
  } else if (c.kernel == 4) {
    small = ConvAlgorithm::winograd_4x4;
    large = exact || least < kLeastForLarge4x4 ? small : ConvAlgorithm::large_4x4;
  } else if (c.kernel == 3 && s.in <= kFewChannels) {
    small = large = ConvAlgorithm::taps_3x3;
  } else if (c.kernel == 3) {
    const bool without = exact || pass == Pass::weight || least < kLeastForLarge3x3;
    small = ConvAlgorithm::winograd_3x3;
    large = without ? small : ConvAlgorithm::large_3x3;
  }
  const ConvKernels& kernels = algorithm(small, s, pass);
  return {s, large == small ? &kernels : &by_tiles(s, pass, kernels, algorithm(large, s, pass)),
          turned};
}

// Whether few channels are those of y, so that the exchanged problem is the one with a long row.
bool few_outputs(const ConvSpec& c) {
  return c.kernel == 3 && c.shape.out <= kFewChannels && c.shape.in > kFewChannels;
}

std::vector<int64_t> strides_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

bool is_channels_last(const Tensor& t) { return permute(t, {0, 2, 3, 1}).is_contiguous(); }

void check_float(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32");
}

// to = the images `from` convolved by p; with `scatter`, transposed.
void convolve(const Problem& p, bool scatter, const Tensor& from, const Tensor& weight,
              const std::optional<Tensor>& bias, double slope, const std::optional<Tensor>& sign,
              Tensor& to) {
  const ConvKernels& k = *p.kernels;
  const ConvSizes sizes = k.sizes(p.shape);
  const Tensor images = channels_last(from);
  const std::optional<Tensor> shift =
      bias ? std::optional<Tensor>(contiguous(*bias)) : std::nullopt;
  const std::optional<Tensor> by =
      sign ? std::optional<Tensor>(channels_last(*sign)) : std::nullopt;
  const ConvWeight<const float> w = p.weight(in_ptr<float>(weight), strides_of(weight));
  const int64_t numbers = scatter ? sizes.packed_inputs : sizes.packed_outputs;
  const Workspace packed(numbers);
  const ConvCall call{p.shape,
                      in_ptr<float>(images),
                      packed.data(),
                      shift ? in_ptr<float>(*shift) : nullptr,
                      static_cast<float>(slope),
                      out_ptr<float>(to),
                      by ? in_ptr<float>(*by) : nullptr};
  const int64_t vectors = scatter ? sizes.vectors_of_inputs : sizes.vectors_of_outputs;
  const int64_t grain_of_pack = grain_of(kOfPacked * numbers / std::max<int64_t>(vectors, 1));
  parallel_units(vectors, 1, grain_of_pack, [&](int64_t begin, int64_t end) {
    k.pack(p.shape, w, scatter, begin, end, packed.data());
  });
  const auto scratch = [&](int64_t tiles) { return sizes.scratch + tiles * sizes.scratch_of_tile; };
  if (scatter) {
    const int64_t of_image = sizes.tiles_of_image;
    const int64_t together = std::max<int64_t>(1, sizes.together / of_image);
    const int64_t grain = grain_of(sizes.products_of_tile * of_image);
    parallel_units(p.shape.batch, 1, grain, [&](int64_t begin, int64_t end) {
      const Workspace memory(scratch(std::min(sizes.together, of_image * together)));
      for (; begin < end; begin += together) {
        k.data(call, begin, std::min(end, begin + together), sizes.together, memory.data());
      }
    });
    return;
  }
  // Pieces of equal size, as many for each thread.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t worth = sizes.tiles * sizes.products_of_tile / kWorth + 1;
  int64_t pieces = units_of(sizes.tiles, sizes.together);
  pieces = units_of(pieces, std::min(threads, worth)) * std::min(threads, worth);
  pieces = std::min(pieces, sizes.tiles);
  parallel_units(pieces, 1, 1, [&](int64_t begin, int64_t end) {
    const Workspace memory(scratch(units_of(sizes.tiles, pieces)));
    for (; begin < end; ++begin) {
      k.forward(call, sizes.tiles * begin / pieces, sizes.tiles * (begin + 1) / pieces,
                memory.data());
    }
  });
}

// Into how many groups the columns of the sums are cut, so that every thread gets as many pieces:
// each makes its rows of the other factor anew.
int64_t groups_of(const ConvSizes& sizes) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t groups = 1;
  while (groups < sizes.columns && sizes.blocks * groups % threads != 0 &&
         sizes.blocks * groups < 4 * threads) {
    ++groups;
  }
  return groups;
}

// Into how many parts the tiles are cut, each with sums of its own, so that a thread has a part for
// itself: as many as there is memory for, and with the tiles of a product each at least. One where
// a thread's panels would be large. By sizes alone, as the order of the sums is.
int64_t parts_of(const ConvSizes& sizes) {
  if (sizes.panels > kSumsAtATime) return 1;
  const int64_t fit = kSumsAtATime / std::max<int64_t>(sizes.sums, 1);
  const int64_t filled = sizes.tiles / sizes.tiles_of_panels;
  return std::clamp<int64_t>(std::min(fit, filled), 1, kMostParts);
}

// to += the others, one after the other.
void add_parts(int64_t n, int64_t parts, float* to) {
  parallel_units(n, 16, (1 << 14) / parts + 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part) {
      const float* from = to + part * n;
      for (int64_t i = begin; i < end; ++i) to[i] += from[i];
    }
  });
}

struct WeightGradient {
  const ConvKernels& k;
  const ConvShape& shape;
  const ConvSizes sizes;
  const float *input, *output;

  // The sums over the tiles [begin, end) by one thread, panel by panel.
  void alone(int64_t begin, int64_t end, float* memory, float* sums) const {
    float* const panels = memory + sizes.scratch_of_block;
    for (int64_t first = begin; first < end; first += sizes.tiles_of_panels) {
      const int64_t last = std::min(end, first + sizes.tiles_of_panels);
      k.inputs(shape, input, first, 0, last - first, memory, panels);
      for (int64_t block = 0; block < sizes.blocks; ++block) {
        k.products(shape, output, first, last, block, 0, sizes.columns, panels, first > begin,
                   memory, sums);
      }
    }
  }

  // The same by all threads.
  void together(int64_t begin, int64_t end, float* sums) const {
    const int64_t at_a_time =
        std::max<int64_t>(1, kPanelsAtATime / std::max<int64_t>(sizes.panels, 1));
    const int64_t chunk = at_a_time * sizes.tiles_of_panels;
    const int64_t groups = groups_of(sizes);
    const Workspace panels(std::min(units_of(end - begin, sizes.tiles_of_panels), at_a_time) *
                           sizes.panels);
    for (int64_t first = begin; first < end; first += chunk) {
      const int64_t last = std::min(end, first + chunk);
      const int64_t elements = sizes.panels / sizes.tiles_of_panels;
      parallel_units(last - first, 1, grain_of(16 * elements), [&](int64_t from, int64_t to) {
        const Workspace memory(sizes.scratch_of_block);
        k.inputs(shape, input, first, from, to, memory.data(), panels.data());
      });
      const int64_t units = sizes.blocks * groups;
      const int64_t products = sizes.products_of_tile * (last - first) / units;
      parallel_units(units, 1, grain_of(products), [&](int64_t from, int64_t to) {
        const Workspace memory(sizes.scratch_of_block);
        for (int64_t i = from; i < to; ++i) {
          const int64_t group = i % groups;
          k.products(shape, output, first, last, i / groups, sizes.columns * group / groups,
                     sizes.columns * (group + 1) / groups, panels.data(), first > begin,
                     memory.data(), sums);
        }
      });
    }
  }
};

void weight_gradient(const Problem& p, const Tensor& x, const Tensor& grad, Tensor& to) {
  const Tensor from = channels_last(p.turned ? grad : x), dy = channels_last(p.turned ? x : grad);
  const WeightGradient g{*p.kernels, p.shape, p.kernels->sizes(p.shape), in_ptr<float>(from),
                         in_ptr<float>(dy)};
  const ConvSizes& sizes = g.sizes;
  const int64_t parts = parts_of(sizes), threads = torch::stable::get_num_threads();
  const Workspace sums(parts * sizes.sums);
  const auto begin_of = [&](int64_t part) { return sizes.tiles * part / parts; };
  if (parts >= threads) {
    const int64_t products = sizes.products_of_tile * (sizes.tiles / parts);
    parallel_units(parts, 1, grain_of(products), [&](int64_t begin, int64_t end) {
      const Workspace memory(sizes.scratch_of_block + sizes.panels);
      for (int64_t part = begin; part < end; ++part) {
        g.alone(begin_of(part), begin_of(part + 1), memory.data(), sums.data() + part * sizes.sums);
      }
    });
  } else {
    for (int64_t part = 0; part < parts; ++part) {
      g.together(begin_of(part), begin_of(part + 1), sums.data() + part * sizes.sums);
    }
  }
  add_parts(sizes.sums, parts, sums.data());
  const ConvWeight<float> w = p.weight(out_ptr<float>(to), strides_of(to));
  const int64_t grain = grain_of(kOfPacked * sizes.sums / std::max<int64_t>(p.shape.out, 1));
  parallel_units(p.shape.out, 1, grain, [&](int64_t begin, int64_t end) {
    g.k.weight(p.shape, sums.data(), begin, end, w);
  });
}

struct ConvOnCpu {
  static Tensor forward(const ConvSpec& c, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, double negative_slope,
                        const std::optional<Tensor>& sign) {
    check_float(x, "x");
    Tensor y = new_channels_last(x, c.y());
    if (y.numel() == 0) return y;
    const bool turned = few_outputs(c);
    convolve(problem_of(c, turned, Pass::image, !is_channels_last(x)), turned, x, weight, bias,
             negative_slope, sign, y);
    return y;
  }

  static Tensor transposed(const ConvSpec& c, const Tensor& x, const Tensor& weight,
                           const std::optional<Tensor>& bias, double negative_slope,
                           const std::optional<Tensor>& sign) {
    check_float(x, "x");
    Tensor y = new_channels_last(x, c.x());
    if (y.numel() == 0) return y;
    // Few channels of y: the sums over the taps are added to the image. Else, with stride 1, a
    // convolution does without additions to memory.
    const bool few = c.shape.in <= kFewChannels;
    const bool scatter = c.kernel == 4 || (c.kernel == 3 && few);
    convolve(problem_of(c, !scatter, Pass::image, !is_channels_last(x)), scatter, x, weight, bias,
             negative_slope, sign, y);
    return y;
  }

  static Tensor grad_weight(const ConvSpec& c, const Tensor& x, const Tensor& grad,
                            bool channels_last) {
    check_float(x, "x");
    Tensor to = channels_last ? new_channels_last(x, c.weight()) : new_empty(x, c.weight());
    if (to.numel() == 0) return to;
    if (x.numel() == 0) return torch::stable::zero_(to);
    const bool exact = !(is_channels_last(x) && is_channels_last(grad));
    weight_gradient(problem_of(c, few_outputs(c), Pass::weight, exact), x, grad, to);
    return to;
  }
};

int64_t conv_release_memory() { return release_workspaces(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { ConvOperators<ConvOnCpu>::add_to(m); }

STABLE_TORCH_LIBRARY_IMPL(fastgan, CompositeExplicitAutograd, m) {
  m.impl("conv_release_memory", TORCH_BOX(&conv_release_memory));
}

}  // namespace fastgan::cpu
