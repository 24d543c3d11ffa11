// The products of the convolutions on vectors. Included inside the namespace of an instruction set,
// before geometry.h; there is no include guard. products_tiles.h has the same on tiles.

// Terms of the planes, and rows of A^T, come in multiples of these.
constexpr int64_t kPlaneUnit = kLanes<float>, kGroupRows = kTileRows;
// Rows of V that are packed as one, and rows of C that are written as one.
constexpr int kPaired = 1;
constexpr int64_t kRowUnit = 1;
// About the most rows of a block of the products of backward to the weights.
constexpr int64_t kBlockRows = 96;

// Terms of a sum that are added up in registers: a panel of this depth fills half of the nearest
// cache. Longer sums are sums of such sums, which also rounds less than one chain.
constexpr int64_t kConvDepth = 16384 / (kTileColumns<float> * 4);

// Groups and panels are a line more than a power of two apart, which would be the same set of a
// cache for all places of a tile.
constexpr int64_t kGroup = kConvDepth * kGroupRows + 16;
constexpr int64_t kPanel = kConvDepth * kTileColumns<float> + 16;

// Floats of a panel of packed weights, and where in all of them one that is packed begins.
inline int64_t panel_floats(int64_t depth) { return depth * kTileColumns<float>; }
FASTGAN_INLINE int64_t packed_at(int64_t depth, int64_t term, int64_t column) {
  constexpr int width = kTileColumns<float>;
  return (column / width * depth + term) * width + column % width;
}
FASTGAN_INLINE void store_packed(float* to, Vector<float> x) { store_vector(to, x); }

// Tiles that go through a product together, by the places of each and the size of V.
constexpr int64_t together(int places, int64_t) {
  return places > 25 ? 28 : places > 16 ? 84 : 120;
}

// Floats of memory that products take: of rows, and of groups with so many rows.
inline int64_t memory_of_rows() { return 0; }
inline int64_t memory_of_groups(int64_t) { return 0; }

// What a thread does before and after its products.
FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}

// out [height][width] = A B for one panel of B, or += with onto.
FASTGAN_INLINE void product_of_panel(int height, int64_t terms, const float* a, int64_t a_row,
                                     int64_t a_column, const float* panel, float* out,
                                     int64_t out_row, bool onto) {
  tile_of<2, float>(
      height, terms, a, a_row, a_column, panel, kTileColumns<float>,
      [](int, int) FASTGAN_LAMBDA_INLINE { return Vector<float>{}; },
      [&](int i, int v, Vector<float> x) FASTGAN_LAMBDA_INLINE {
        float* to = out + i * out_row + v * kLanes<float>;
        store_vector(to, onto ? load_vector(to) + x : x);
      });
}

inline void products_of_rows(const RowProducts& g, float*) {
  constexpr int width = kTileColumns<float>;
  // A product of no terms still has a result: one pass over an empty block.
  const int64_t blocks = g.depth > 0 ? (g.depth + kConvDepth - 1) / kConvDepth : 1;
  for (int64_t place = 0; place < g.places; ++place) {
    const float *a = g.a + place * g.a_place, *b = g.b + place * g.b_place;
    float* const c = g.c + place * g.c_place;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = g.depth * block / blocks, terms = g.depth * (block + 1) / blocks - k0;
      for (int64_t p = 0; p < g.panels; ++p) {
        each_tile(g.rows, [&](long first, int height) FASTGAN_LAMBDA_INLINE {
          product_of_panel(height, terms, a + first * g.a_row + k0, g.a_row, 1,
                           b + (p * g.depth + k0) * width, c + first * g.c_row + p * width, g.c_row,
                           block > 0);
        });
      }
    }
  }
}

// C [rows][panels x width] = A^T B for at most kConvDepth terms, or += with add. A is in groups
// [terms][kGroupRows], so that a tile reads its part in one run; B in panels [kConvDepth][width].
inline void product_of_groups(int64_t rows, int64_t terms, int64_t panels, const float* a,
                              const float* b, float* c, int64_t c_row, bool add, float*) {
  constexpr int width = kTileColumns<float>;
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      const int height = static_cast<int>(rows - i < kGroupRows ? rows - i : kGroupRows);
      product_of_panel(height, terms, a + i / kGroupRows * kGroup, 1, kGroupRows, b + p * kPanel,
                       c + i * c_row + p * width, c_row, add);
    }
  }
}
