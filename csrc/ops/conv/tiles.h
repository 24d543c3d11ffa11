// Tiles between images and the matrices of the products. Included inside the namespace of an
// instruction set, after geometry.h; there is no include guard.

// U's row of a tile of the plain sum: the taps of each kernel row are neighbours in the image.
template <class C>
FASTGAN_INLINE void patch(const C& g, const float* x, typename C::Place at, float* out) {
  const int64_t channels = g.s.in, run = C::Kernel * channels;
  const int64_t left = C::Stride * at.column - C::pad;
  for (int i = 0; i < C::Kernel; ++i, out += run) {
    const int64_t row = C::Stride * at.row + i - C::pad;
    if (row < 0 || row >= g.s.height) {
      for (int64_t c = 0; c < run; ++c) out[c] = 0.0f;
      continue;
    }
    const float* from = x + ((at.image * g.s.height + row) * g.s.width + left) * channels;
    if (left >= 0 && left + C::Kernel <= g.s.width) {
      copy(from, run, out);
      continue;
    }
    for (int j = 0; j < C::Kernel; ++j) {
      const bool inside = left + j >= 0 && left + j < g.s.width;
      for (int64_t c = 0; c < channels; ++c) {
        out[j * channels + c] = inside ? from[j * channels + c] : 0.0f;
      }
    }
  }
}

// Its transpose: U's row is added to the image dx.
template <class C>
FASTGAN_INLINE void add_patch(const C& g, const float* u, typename C::Place at, float* dx) {
  const int64_t channels = g.s.in, run = C::Kernel * channels;
  const int64_t left = C::Stride * at.column - C::pad;
  const int64_t first = left < 0 ? -left * channels : 0;
  const int64_t last = left + C::Kernel > g.s.width ? (g.s.width - left) * channels : run;
  for (int i = 0; i < C::Kernel; ++i, u += run) {
    const int64_t row = C::Stride * at.row + i - C::pad;
    if (row < 0 || row >= g.s.height) continue;
    float* to = dx + ((at.image * g.s.height + row) * g.s.width + left) * channels;
    int64_t c = first;
    for (; c + C::lanes <= last; c += C::lanes) {
      store_vector(to + c, load_vector(to + c) + load_vector(u + c));
    }
    for (; c < last; ++c) to[c] += u[c];
  }
}

// Where the pixels of a tile of plane (p, q) lie in an image [height][width][channels]; `outside`
// for those over the edge.
template <class C, class Pointer>
FASTGAN_INLINE void input_pixels(const C& g, Pointer image, const typename C::Place& at, int p,
                                 int q, Pointer outside, Pointer (&pixels)[C::Places]) {
#pragma GCC unroll 8
  for (int i = 0; i < C::a; ++i) {
    const int64_t row = C::Stride * (at.row + i) + p - C::pad;
#pragma GCC unroll 8
    for (int j = 0; j < C::a; ++j) {
      const int64_t column = C::Stride * (at.column + j) + q - C::pad;
      const bool inside = row >= 0 && row < g.s.height && column >= 0 && column < g.s.width;
      pixels[i * C::a + j] = inside ? image + (row * g.s.width + column) * g.s.in : outside;
    }
  }
}

// U of a tile. to(k) is where element k of place 0 belongs; the places are `step` apart.
template <class C, class To>
FASTGAN_INLINE void input_tile(const C& g, const float* x, typename C::Place at, const float* zeros,
                               int64_t step, const To& to) {
  const float* image = x + at.image * g.s.height * g.s.width * g.s.in;
  for (int ph = 0; ph < C::Planes; ++ph) {
    const float* pixels[C::Places];
    input_pixels(g, image, at, ph / C::Phases, ph % C::Phases, zeros, pixels);
    each_vector(g.s.in, [&](int64_t c, auto load, auto) FASTGAN_LAMBDA_INLINE {
      Vector<float> d[C::Places], u[C::Places];
#pragma GCC unroll 36
      for (int i = 0; i < C::Places; ++i) d[i] = load(pixels[i] + c);
      FASTGAN_TRANSFORM(C::F, C::a, C::a, input, d, u);
      float* out = to(ph * g.plane + c);
#pragma GCC unroll 36
      for (int i = 0; i < C::Places; ++i) store_vector(out + i * step, u[i]);
    });
    for (int64_t c = C::up(g.s.in, C::lanes); c < g.plane; c += C::lanes) {
      for (int i = 0; i < C::Places; ++i) {
        store_vector(to(ph * g.plane + c) + i * step, Vector<float>{});
      }
    }
  }
}

// Its transpose: the tile of U, places `step` apart, is added to the image dx.
template <class C>
FASTGAN_INLINE void add_input_tile(const C& g, const float* u, int64_t step, typename C::Place at,
                                   float* dx) {
  float* image = dx + at.image * g.s.height * g.s.width * g.s.in;
  for (int ph = 0; ph < C::Planes; ++ph) {
    float* pixels[C::Places];
    input_pixels<C, float*>(g, image, at, ph / C::Phases, ph % C::Phases, nullptr, pixels);
    each_vector(g.s.in, [&](int64_t c, auto load, auto store) FASTGAN_LAMBDA_INLINE {
      const float* from = u + ph * g.plane + c;
      Vector<float> v[C::Places], d[C::Places];
#pragma GCC unroll 36
      for (int i = 0; i < C::Places; ++i) v[i] = load_vector(from + i * step);
      FASTGAN_TRANSFORM(C::F, C::a, C::a, input_transposed, v, d);
#pragma GCC unroll 36
      for (int i = 0; i < C::Places; ++i) {
        if (pixels[i] != nullptr) store(pixels[i] + c, load(pixels[i] + c) + d[i]);
      }
    });
  }
}

// Where the outputs of a tile lie in y; `outside` for those over the edge.
template <class C, class Pointer>
FASTGAN_INLINE void output_pixels(const C& g, Pointer y, typename C::Place at, Pointer outside,
                                  Pointer (&pixels)[C::m * C::m]) {
  Pointer image = y + at.image * g.rows * g.columns * g.s.out;
#pragma GCC unroll 16
  for (int i = 0; i < C::m; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C::m; ++j) {
      const bool inside = at.row + i < g.rows && at.column + j < g.columns;
      pixels[i * C::m + j] =
          inside ? image + ((at.row + i) * g.columns + at.column + j) * g.s.out : outside;
    }
  }
}

// The outputs of a tile from its row of M, whose places are `step` apart.
template <class C>
FASTGAN_INLINE void output_tile(const C& g, const float* from, int64_t step, const ConvCall& call,
                                typename C::Place at) {
  float* pixels[C::m * C::m];
  output_pixels<C, float*>(g, call.to, at, nullptr, pixels);
  each_vector(g.s.out, [&](int64_t n, auto load, auto store) FASTGAN_LAMBDA_INLINE {
    Vector<float> x[C::Places], o[C::m * C::m];
#pragma GCC unroll 36
    for (int i = 0; i < C::Places; ++i) x[i] = load_vector(from + i * step + n);
    FASTGAN_TRANSFORM(C::F, C::a, C::m, output, x, o);
    const Vector<float> shift = call.bias ? load(call.bias + n) : Vector<float>{};
#pragma GCC unroll 36
    for (int i = 0; i < C::m * C::m; ++i) {
      if (pixels[i] == nullptr) continue;
      const Vector<float> pre = o[i] + shift;
      const Vector<float> by = call.sign ? load(call.sign + (pixels[i] - call.to) + n) : pre;
      store(pixels[i] + n, by > 0.0f ? pre : pre * call.slope);
    }
  });
}

// Its transpose: the tile's row of M to `to`, its places `step` apart.
template <class C>
FASTGAN_INLINE void output_tile_transposed(const C& g, const float* dy, typename C::Place at,
                                           const float* zeros, float* to, int64_t step) {
  const float* pixels[C::m * C::m];
  output_pixels(g, dy, at, zeros, pixels);
  each_vector(g.s.out, [&](int64_t n, auto load, auto) FASTGAN_LAMBDA_INLINE {
    Vector<float> y[C::m * C::m], o[C::Places];
#pragma GCC unroll 36
    for (int i = 0; i < C::m * C::m; ++i) y[i] = load(pixels[i] + n);
    FASTGAN_TRANSFORM(C::F, C::m, C::a, output_transposed, y, o);
#pragma GCC unroll 36
    for (int i = 0; i < C::Places; ++i) store_vector(to + i * step + n, o[i]);
  });
}

// The same for channels [first, first + count) in groups of kGroupRows, which are `group` apart. A
// vector reaches into the next tile's part of a group, which is written later.
template <class C>
FASTGAN_INLINE void output_tile_groups(const C& g, const float* dy, typename C::Place at,
                                       int64_t first, int64_t count, const float* zeros, float* to,
                                       int64_t step, int64_t group) {
  const float* pixels[C::m * C::m];
  output_pixels(g, dy, at, zeros, pixels);
  for (int64_t n = first; n < first + count; n += kGroupRows, to += group) {
#pragma GCC unroll 2
    for (int j = 0; j < kGroupRows; j += C::lanes) {
      const int64_t left = g.s.out - n - j;
      Vector<float> y[C::m * C::m], o[C::Places];
      if (left >= C::lanes) {
#pragma GCC unroll 36
        for (int i = 0; i < C::m * C::m; ++i) y[i] = load_vector(pixels[i] + n + j);
      } else {
#pragma GCC unroll 36
        for (int i = 0; i < C::m * C::m; ++i) y[i] = load_some(pixels[i] + n + j, left);
      }
      FASTGAN_TRANSFORM(C::F, C::m, C::a, output_transposed, y, o);
#pragma GCC unroll 36
      for (int i = 0; i < C::Places; ++i) store_vector(to + i * step + j, o[i]);
    }
  }
}
