// What a convolution looks like to its algorithm. Included inside the namespace of an instruction
// set, after transforms.h; there is no include guard.
//
// A kernel of Phases * r taps a side is Phases^2 kernels of r taps, each over a plane of its own:
// plane (p, q) has pixel (u, v) of the image at row Stride * u + p - pad, column Stride * v + q -
// pad, and takes the taps Phases * i + p. Every such kernel has stride 1 on its plane and gives
// m x m outputs from a tile of a x a pixels. With F11 that is a sum over the taps, plain and
// simple.
//
// The sum over planes and channels is a product of matrices for each of the a^2 places of a tile:
//   M_t [tile][n] = U_t [tile][k] V_t [k][n], k over planes and channels
template <class F_, int Stride_, int Phases_>
struct Convolution {
  using F = F_;
  static constexpr int m = F::m, a = F::a, r = F::r;
  static constexpr int Stride = Stride_, Phases = Phases_, Planes = Phases * Phases;
  static constexpr int Places = a * a, Kernel = Phases * r, Taps = Kernel * Kernel;
  static constexpr int pad = Kernel > 1 ? 1 : 0;
  // Planes of the plain sum lie close together, so that few channels make a long row; the others
  // begin at whole vectors.
  static constexpr bool Dense = a == 1;
  // With one plane and stride 1, backward to the data is forward with a flipped weight.
  static constexpr bool Scatters = Phases > 1;
  // Whether it has gradients of the weight.
  static constexpr bool Gradients = a < 6;

  static constexpr int lanes = kLanes<float>, width = kTileColumns<float>;

  const ConvShape s;
  const int64_t rows, columns;      // of y
  const int64_t tiles_x, of_image;  // tiles a row, tiles an image
  const int64_t plane, k, k_panels, n_panels;

  static constexpr int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

  explicit Convolution(const ConvShape& shape)
      : s(shape),
        rows(s.height / Stride),
        columns(s.width / Stride),
        tiles_x((columns + m - 1) / m),
        of_image((rows + m - 1) / m * tiles_x),
        plane(Dense ? s.in : up(s.in, kPlaneUnit)),
        k(Planes * plane),
        k_panels((k + width - 1) / width),
        n_panels((s.out + width - 1) / width) {}

  int64_t tiles() const { return s.batch * of_image; }
  // A row of U or of M. What is a multiple of 4096 bytes apart shares a set of the nearest cache.
  int64_t u_row() const { return k_panels * width + 16; }
  int64_t m_row() const { return n_panels * width + 16; }
  // A place of the packed weights for forward, for data, and of the sums of their gradient.
  int64_t packed_outputs() const { return n_panels * panel_floats(k) + 16; }
  int64_t packed_inputs() const { return k_panels * panel_floats(s.out) + 16; }
  int64_t sums() const { return up(s.out, kRowUnit) * k_panels * width + 16; }
  // A row's worth of zeros is read where a tile reaches over an edge.
  int64_t zeros() const { return up(s.in > s.out ? s.in : s.out, lanes); }

  // A tile: its image and the row and column of its first output.
  struct Place {
    int64_t image, row, column;
  };
  Place place(int64_t tile) const {
    const int64_t in_image = tile % of_image;
    return {tile / of_image, in_image / tiles_x * m, in_image % tiles_x * m};
  }
  FASTGAN_INLINE void advance(Place& at) const {
    at.column += m;
    if (at.column < columns) return;
    at.column = 0;
    at.row += m;
    if (at.row < rows) return;
    at.row = 0;
    ++at.image;
  }
};

// Fewer than kLanes<float> numbers, the others zero.
FASTGAN_INLINE Vector<float> load_some(const float* p, int64_t count) {
  alignas(64) float held[kLanes<float>];
  for (int i = 0; i < kLanes<float>; ++i) held[i] = i < count ? p[i] : 0.0f;
  return load_vector(held);
}
FASTGAN_INLINE void store_some(float* p, Vector<float> x, int64_t count) {
  alignas(64) float held[kLanes<float>];
  store_vector(held, x);
  for (int i = 0; i < kLanes<float> && i < count; ++i) p[i] = held[i];
}

// to = from for n numbers, without reaching beyond.
FASTGAN_INLINE void copy(const float* from, int64_t n, float* to) {
  constexpr int64_t lanes = kLanes<float>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_vector(to + i, load_vector(from + i));
  if (i < n && n >= lanes) {
    store_vector(to + n - lanes, load_vector(from + n - lanes));
    return;
  }
  for (; i < n; ++i) to[i] = from[i];
}

// f(first channel, load, store) for every vector of `channels`, of which the last may be partial.
template <class Body>
FASTGAN_INLINE void each_vector(int64_t channels, const Body& body) {
  constexpr int64_t lanes = kLanes<float>;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    body(
        c, [](const float* p) FASTGAN_LAMBDA_INLINE { return load_vector(p); },
        [](float* p, Vector<float> x) FASTGAN_LAMBDA_INLINE { store_vector(p, x); });
  }
  if (c < channels) {
    const int64_t count = channels - c;
    body(
        c, [&](const float* p) FASTGAN_LAMBDA_INLINE { return load_some(p, count); },
        [&](float* p, Vector<float> x) FASTGAN_LAMBDA_INLINE { store_some(p, x, count); });
  }
}
