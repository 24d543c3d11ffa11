// Weights into the panels of the products, and their gradient out of the sums. Included inside the
// namespace of an instruction set, after tiles.h; there is no include guard.

// taps[row][tap][lane] of `rows` x `count` filters, which are row_step and lane_step apart; lanes
// beyond `count` are zero.
template <class C>
void read_taps(const ConvWeight<const float>& w, const float* from, int64_t lane_step,
               int64_t count, int64_t row_step, int64_t rows, float* taps) {
  constexpr int lanes = C::lanes, whole = C::Taps / lanes * lanes;
  const bool taps_inside = w.column == 1 && w.row == C::Kernel;
  if (count == lanes && row_step == 1 && rows == lanes) {
    for (int tap = 0; tap < C::Taps; ++tap) {
      transpose_square(from + tap / C::Kernel * w.row + tap % C::Kernel * w.column, lane_step,
                       taps + tap * lanes, int64_t{C::Taps} * lanes);
    }
    return;
  }
  for (int64_t row = 0; row < rows; ++row, from += row_step, taps += C::Taps * lanes) {
    int tap = 0;
    if (count == lanes && taps_inside) {
      for (; tap < whole; tap += lanes) {
        transpose_square(from + tap, lane_step, taps + tap * lanes, int64_t{lanes});
      }
    }
    for (; tap < C::Taps; ++tap) {
      const float* at = from + tap / C::Kernel * w.row + tap % C::Kernel * w.column;
      if (count == lanes && lane_step == 1) {
        store_vector(taps + tap * lanes, load_vector(at));
        continue;
      }
      for (int lane = 0; lane < lanes; ++lane) {
        taps[tap * lanes + lane] = lane < count ? at[lane * lane_step] : 0.0f;
      }
    }
  }
}

// Its inverse for one row: taps[tap][lane] to `count` filters that are lane_step apart.
template <class C>
void write_taps(const ConvWeight<float>& w, float* to, int64_t lane_step, int64_t count,
                const float* taps) {
  constexpr int lanes = C::lanes, whole = C::Taps / lanes * lanes;
  int tap = 0;
  if (count == lanes && w.column == 1 && w.row == C::Kernel) {
    for (; tap < whole; tap += lanes) {
      transpose_square(taps + tap * lanes, int64_t{lanes}, to + tap, lane_step);
    }
  }
  for (; tap < C::Taps; ++tap) {
    float* at = to + tap / C::Kernel * w.row + tap % C::Kernel * w.column;
    if (count == lanes && lane_step == 1) {
      store_vector(at, load_vector(taps + tap * lanes));
      continue;
    }
    for (int64_t lane = 0; lane < count; ++lane) at[lane * lane_step] = taps[tap * lanes + lane];
  }
}

// The place of tap (i, j) of plane ph among the taps of a filter.
template <class C>
FASTGAN_INLINE int tap_of(int ph, int i, int j, bool flip) {
  const int tap = (C::Phases * i + ph / C::Phases) * C::Kernel + C::Phases * j + ph % C::Phases;
  return flip ? C::Taps - 1 - tap : tap;
}

// V of kPaired filters for kLanes<float> outputs or inputs, whose taps are `apart`: to(plane) is
// where place 0 belongs.
template <class C, class To>
FASTGAN_INLINE void transform_taps(const float* taps, int64_t apart, bool flip, int64_t step,
                                   const To& to) {
  constexpr int r = C::r;
  for (int ph = 0; ph < C::Planes; ++ph) {
    Vector<float> v[kPaired][C::Places];
    for (int half = 0; half < kPaired; ++half) {
      Vector<float> w[r * r];
#pragma GCC unroll 9
      for (int i = 0; i < r * r; ++i) {
        w[i] = load_vector(taps + half * apart + tap_of<C>(ph, i / r, i % r, flip) * C::lanes);
      }
      FASTGAN_TRANSFORM(C::F, r, C::a, weight, w, v[half]);
    }
    float* out = to(ph);
#pragma GCC unroll 36
    for (int i = 0; i < C::Places; ++i) {
      if constexpr (kPaired == 2) {
        store_packed(out + i * step, v[0][i], v[1][i]);
      } else {
        store_packed(out + i * step, v[0][i]);
      }
    }
  }
}

// Vectors [begin, end) of outputs into the places' panels of n.
template <class C>
void pack_outputs(const C& g, const ConvWeight<const float>& w, int64_t begin, int64_t end,
                  float* packed) {
  constexpr int lanes = C::lanes;
  constexpr int64_t apart = int64_t{lanes} * C::Taps * lanes;
  const int64_t step = g.packed_outputs();
  alignas(64) float taps[kPaired * apart];
  for (int64_t n = begin * lanes; n < end * lanes; n += lanes) {
    const int64_t count = g.s.out - n < lanes ? g.s.out - n : lanes;
    for (int64_t c0 = 0; c0 < g.plane; c0 += kPaired * lanes) {
      const int64_t rows = g.plane - c0 < lanes ? g.plane - c0 : lanes;
      for (int half = 0; half < kPaired; ++half) {
        const int64_t c1 = c0 + half * lanes, left = g.s.in - c1 < rows ? g.s.in - c1 : rows;
        const int64_t filled = count > 0 && left > 0 ? left : 0;
        float* const to = taps + half * apart;
        if (filled > 0) {
          read_taps<C>(w, w.data + n * w.out + c1 * w.in, w.out, count, w.in, filled, to);
        }
        for (int64_t i = filled * C::Taps * lanes; i < rows * C::Taps * lanes; ++i) to[i] = 0.0f;
      }
      for (int64_t row = 0; row < rows; ++row) {
        transform_taps<C>(taps + row * C::Taps * lanes, apart, w.flip, step, [&](int ph) {
          return packed + packed_at(g.k, ph * g.plane + c0 + row, n);
        });
      }
    }
  }
}

// Vectors [begin, end) of the channels of a plane, or of all of k where planes lie close, into
// the places' panels of k.
template <class C>
void pack_inputs(const C& g, const ConvWeight<const float>& w, int64_t begin, int64_t end,
                 float* packed) {
  constexpr int lanes = C::lanes, width = C::width;
  const int64_t step = g.packed_inputs();
  for (int64_t c = begin * lanes; c < end * lanes; c += lanes) {
    if constexpr (C::Dense) {
      for (int64_t k = c; k < c + lanes; ++k) {
        const auto tap = static_cast<int>(k / g.s.in);
        const int at = w.flip ? C::Taps - 1 - tap : tap;
        const float* from =
            w.data + k % g.s.in * w.in + at / C::Kernel * w.row + at % C::Kernel * w.column;
        float* to = packed + k / width * g.s.out * width + k % width;
        for (int64_t n = 0; n < g.s.out; ++n) to[n * width] = k < g.k ? from[n * w.out] : 0.0f;
      }
    } else {
      constexpr int64_t apart = int64_t{C::Taps} * lanes;
      alignas(64) float taps[kPaired * apart];
      const int64_t count = g.s.in - c < lanes ? g.s.in - c : lanes;
      for (int64_t n0 = 0; n0 < g.s.out; n0 += kPaired * lanes) {
        // Tiles are filled up with zeros.
        const int64_t last = kPaired == 2 || n0 + lanes < g.s.out ? n0 + lanes : g.s.out;
        for (int64_t n = n0; n < last; ++n) {
          for (int half = 0; half < kPaired; ++half) {
            const int64_t row = n + half * lanes;
            float* const to = taps + half * apart;
            if (count > 0 && row < g.s.out) {
              read_taps<C>(w, w.data + row * w.out + c * w.in, w.in, count, w.out, 1, to);
            } else {
              for (int64_t i = 0; i < apart; ++i) to[i] = 0.0f;
            }
          }
          transform_taps<C>(taps, apart, w.flip, step, [&](int ph) {
            return packed + packed_at(g.s.out, n, ph * g.plane + c);
          });
        }
      }
    }
  }
}

// The gradient of the weights of outputs [begin, end) from sums [place][n][k].
template <class C>
void weight_of_sums(const C& g, const float* sums, int64_t begin, int64_t end,
                    const ConvWeight<float>& w) {
  constexpr int lanes = C::lanes, r = C::r;
  const int64_t row = g.k_panels * C::width, step = g.sums();
  for (int64_t n = begin; n < end; ++n) {
    const float* from = sums + n * row;
    if constexpr (C::Dense) {
      for (int tap = 0; tap < C::Taps; ++tap) {
        const int at = w.flip ? C::Taps - 1 - tap : tap;
        float* to = w.data + n * w.out + at / C::Kernel * w.row + at % C::Kernel * w.column;
        for (int64_t c = 0; c < g.s.in; ++c) to[c * w.in] = from[tap * g.s.in + c];
      }
    } else {
      for (int64_t c = 0; c < g.s.in; c += lanes) {
        alignas(64) float taps[C::Taps * lanes];
        for (int ph = 0; ph < C::Planes; ++ph) {
          Vector<float> v[C::Places], d[r * r];
#pragma GCC unroll 36
          for (int i = 0; i < C::Places; ++i) {
            v[i] = load_vector(from + i * step + ph * g.plane + c);
          }
          FASTGAN_TRANSFORM(C::F, C::a, r, weight_transposed, v, d);
#pragma GCC unroll 9
          for (int i = 0; i < r * r; ++i) {
            store_vector(taps + tap_of<C>(ph, i / r, i % r, w.flip) * lanes, d[i]);
          }
        }
        const int64_t count = g.s.in - c < lanes ? g.s.in - c : lanes;
        write_taps<C>(w, w.data + n * w.out + c * w.in, w.in, count, taps);
      }
    }
  }
}
