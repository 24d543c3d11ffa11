// Convolutions of channels-last images: forward, backward to the data and to the weights, as
// products of matrices between transforms. Included by cpu/kernels_impl.h for each instruction set,
// after ops/linear/cpu_kernel.h.
//
// Each element of a result is one sum in an order that the sizes decide, so neither the pieces that
// a caller makes nor the division among threads show in the bits.
#include "ops/conv/shape.h"

namespace fastgan::cpu::FASTGAN_VARIANT {

namespace {

#include "ops/conv/transforms.h"

// C [rows][panels x width] = A B for each of some places. A [rows][depth] has rows a_row apart; B
// is packed.
struct RowProducts {
  int64_t places, rows, depth, panels;
  const float* a;
  int64_t a_row, a_place;
  const float* b;
  int64_t b_place;
  float* c;
  int64_t c_row, c_place;
};

#ifdef FASTGAN_TILES
#  include "ops/conv/products_tiles.h"
#else
#  include "ops/conv/products_vector.h"
#endif
#include "ops/conv/geometry.h"
#include "ops/conv/tiles.h"
#include "ops/conv/pack.h"

inline void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0.0f;
}

// Rows of a block of those products: blocks of about the same size.
template <class C>
int64_t block_rows(const C& g) {
  const int64_t blocks = g.s.out > kBlockRows ? (g.s.out + kBlockRows - 1) / kBlockRows : 1;
  return g.s.out > 0 ? C::up((g.s.out + blocks - 1) / blocks, kGroupRows) : kGroupRows;
}

template <class C>
struct ConvolutionKernels {
  static ConvSizes sizes(const ConvShape& s) {
    const C g(s);
    const int64_t rows = block_rows(g), columns = g.k_panels * C::width;
    const int64_t of_tile = C::Places * (g.u_row() + g.m_row());
    return {
        .tiles = g.tiles(),
        .tiles_of_image = g.of_image,
        .products_of_tile = C::Places * g.k * s.out,
        .together = together(C::Places, C::Places * g.packed_outputs()),
        .packed_outputs = C::Places * g.packed_outputs(),
        .packed_inputs = C::Places * g.packed_inputs(),
        .vectors_of_outputs = g.n_panels * 2,
        .vectors_of_inputs = C::Dense ? g.k_panels * 2 : g.plane / C::lanes,
        .scratch = g.zeros() + (kRowUnit - 1) * of_tile + memory_of_rows(),
        .scratch_of_tile = of_tile,
        .panels = C::Places * g.k_panels * kPanel,
        .tiles_of_panels = kConvDepth,
        .sums = C::Places * g.sums(),
        .blocks = (s.out + rows - 1) / rows,
        .columns = g.k_panels,
        .scratch_of_block =
            g.zeros() + columns + C::Places * (rows / kGroupRows * kGroup) + memory_of_groups(rows),
    };
  }

  static void pack(const ConvShape& s, const ConvWeight<const float>& w, bool inputs, int64_t begin,
                   int64_t end, float* packed) {
    inputs ? pack_inputs(C(s), w, begin, end, packed) : pack_outputs(C(s), w, begin, end, packed);
  }

  static void forward(const ConvCall& call, int64_t first, int64_t last, float* scratch) {
    const C g(call.shape);
    const int64_t n = last - first, held = C::up(n, kRowUnit), u_row = g.u_row(), m_row = g.m_row();
    float* const zeros = scratch;
    float* const u = zeros + g.zeros();
    float* const m = u + C::Places * held * u_row;
    float* const memory = m + C::Places * held * m_row;
    clear(zeros, g.zeros());
    auto at = g.place(first);
    for (int64_t i = 0; i < n; ++i, g.advance(at)) {
      float* row = u + i * u_row;
      if constexpr (C::Dense) {
        patch(g, call.from, at, row);
      } else {
        input_tile(g, call.from, at, zeros, held * u_row,
                   [&](int64_t k) FASTGAN_LAMBDA_INLINE { return row + k; });
      }
    }
    if (C::Dense && g.s.out % C::width == 0) {  // M is y
      float* y = call.to + first * g.s.out;
      products_of_rows({1, n, g.k, g.n_panels, u, u_row, 0, call.packed, 0, y, g.s.out, 0}, memory);
      finish(call, n, g.s.out, y);
      return;
    }
    start_tiles();
    products_of_rows({C::Places, n, g.k, g.n_panels, u, u_row, held * u_row, call.packed,
                      g.packed_outputs(), m, m_row, held * m_row},
                     memory);
    stop_tiles();
    at = g.place(first);
    for (int64_t i = 0; i < n; ++i, g.advance(at)) {
      output_tile(g, m + i * m_row, held * m_row, call, at);
    }
  }

  static void data(const ConvCall& call, int64_t first_image, int64_t last_image, int64_t most,
                   float* scratch) {
    const C g(call.shape);
    const int64_t pixels = g.s.height * g.s.width, image = pixels * g.s.in;
    float* const dx = call.to + first_image * image;
    clear(dx, (last_image - first_image) * image);
    const int64_t begin = first_image * g.of_image, end = last_image * g.of_image;
    const int64_t parts = (end - begin + most - 1) / most;
    clear(scratch, g.zeros());
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = begin + (end - begin) * part / parts;
      const int64_t last = begin + (end - begin) * (part + 1) / parts;
      data_of_tiles(g, call, first, last - first, scratch);
    }
    finish(call, (last_image - first_image) * pixels, g.s.in, dx);
  }

  // The panels [tiles / depth][place][k / width][tile][width] of U for the tiles [begin, end),
  // counted from the first tile of the panels.
  static void inputs(const ConvShape& s, const float* x, int64_t first, int64_t begin, int64_t end,
                     float* scratch, float* panels) {
    const C g(s);
    constexpr int lanes = C::lanes, width = C::width;
    const int64_t columns = g.k_panels * width, place = g.k_panels * kPanel;
    clear(scratch, g.zeros());
    float* const row = scratch + g.zeros();
    auto at = g.place(first + begin);
    for (int64_t i = begin; i < end; ++i, g.advance(at)) {
      float* const out = panels + i / kConvDepth * C::Places * place + i % kConvDepth * width;
      const auto to = [&](int64_t k)
                          FASTGAN_LAMBDA_INLINE { return out + k / width * kPanel + k % width; };
      if constexpr (C::Dense) {
        patch(g, x, at, row);
        for (int64_t k = g.k; k < columns; ++k) row[k] = 0.0f;
        for (int64_t k = 0; k < columns; k += lanes) store_vector(to(k), load_vector(row + k));
      } else {
        input_tile(g, x, at, scratch, place, to);
        for (int64_t k = g.k; k < columns; k += lanes) {
          for (int t = 0; t < C::Places; ++t) store_vector(to(k) + t * place, Vector<float>{});
        }
      }
    }
  }

  // The sums [place][n][k] of a block of n and of k in panels [p0, p1), over the tiles [first,
  // last), whose panels those are.
  static void products(const ConvShape& s, const float* dy, int64_t first, int64_t last,
                       int64_t block, int64_t p0, int64_t p1, const float* panels, bool add,
                       float* scratch, float* sums) {
    const C g(s);
    const int64_t rows = block_rows(g), n0 = block * rows;
    const int64_t count = g.s.out - n0 < rows ? g.s.out - n0 : rows;
    const int64_t columns = g.k_panels * C::width, place = rows / kGroupRows * kGroup;
    clear(scratch, g.zeros());
    float* const a = scratch + g.zeros();
    float* const memory = a + C::Places * place;
    start_tiles();
    auto at = g.place(first);
    for (int64_t begin = first; begin < last;
         begin += kConvDepth, panels += C::Places * g.k_panels * kPanel) {
      const int64_t terms = last - begin < kConvDepth ? last - begin : kConvDepth;
      for (int64_t i = 0; i < terms; ++i, g.advance(at)) {
        output_tile_groups(g, dy, at, n0, count, scratch, a + i * kGroupRows, place, kGroup);
      }
      for (int t = 0; t < C::Places; ++t) {
        product_of_groups(count, terms, p1 - p0, a + t * place,
                          panels + (t * g.k_panels + p0) * kPanel,
                          sums + t * g.sums() + n0 * columns + p0 * C::width, columns,
                          add || begin > first, memory);
      }
    }
    stop_tiles();
  }

  static void weight(const ConvShape& s, const float* sums, int64_t begin, int64_t end,
                     const ConvWeight<float>& w) {
    weight_of_sums(C(s), sums, begin, end, w);
  }

  static constexpr ConvKernels table() {
    ConvKernels kernels{sizes, pack, forward, nullptr, nullptr, nullptr, nullptr};
    if constexpr (C::Scatters) kernels.data = data;
    if constexpr (C::Gradients) {
      kernels.inputs = inputs;
      kernels.products = products;
      kernels.weight = weight;
    }
    return kernels;
  }

 private:
  static void data_of_tiles(const C& g, const ConvCall& call, int64_t first, int64_t n,
                            float* scratch) {
    const int64_t held = C::up(n, kRowUnit), u_row = g.u_row(), m_row = g.m_row();
    float* const m = scratch + g.zeros();
    float* const u = m + C::Places * held * m_row;
    float* const memory = u + C::Places * held * u_row;
    auto at = g.place(first);
    for (int64_t i = 0; i < n; ++i, g.advance(at)) {
      output_tile_transposed(g, call.from, at, scratch, m + i * m_row, held * m_row);
    }
    start_tiles();
    products_of_rows({C::Places, n, g.s.out, g.k_panels, m, m_row, held * m_row, call.packed,
                      g.packed_inputs(), u, u_row, held * u_row},
                     memory);
    stop_tiles();
    at = g.place(first);
    for (int64_t i = 0; i < n; ++i, g.advance(at)) {
      if constexpr (C::Dense) {
        add_patch(g, u + i * u_row, at, call.to);
      } else {
        add_input_tile(g, u + i * u_row, held * u_row, at, call.to);
      }
    }
  }

  // Bias and rectifier for n pixels that are sums only.
  static void finish(const ConvCall& call, int64_t n, int64_t channels, float* pixels) {
    if (call.bias == nullptr && call.slope == 1.0f) return;
    for (int64_t i = 0; i < n; ++i, pixels += channels) {
      const float* sign = call.sign ? call.sign + (pixels - call.to) : nullptr;
      each_vector(channels, [&](int64_t c, auto load, auto store) FASTGAN_LAMBDA_INLINE {
        const Vector<float> shift = call.bias ? load(call.bias + c) : Vector<float>{};
        const Vector<float> pre = load(pixels + c) + shift, by = sign ? load(sign + c) : pre;
        store(pixels + c, by > 0.0f ? pre : pre * call.slope);
      });
    }
  }
};

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_VARIANT
