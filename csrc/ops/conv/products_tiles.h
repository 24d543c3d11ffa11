// The products of the convolutions on AMX tiles, each factor as the sum of three bfloat16 numbers:
// see cpu/step/products_packed.h. Included inside the namespace of an instruction set, in place of
// products_vector.h, which says what each of the names is.

#define FASTGAN_INSTRUCTIONS 4
using F = Vector<float>;
FASTGAN_INLINE void transpose_vectors(F (&rows)[kLanes<float>]) { transpose<float>(rows); }
#include "cpu/step/packing.h"
#include "cpu/step/products_packed.h"
#undef FASTGAN_INSTRUCTIONS

constexpr int64_t kPlaneUnit = kChunk, kGroupRows = 16;
constexpr int kPaired = 2;
constexpr int64_t kRowUnit = 16;
// Each block packs the other factor anew.
constexpr int64_t kBlockRows = 128;

constexpr int64_t kConvDepth = 128;
constexpr int64_t kGroup = kConvDepth * kGroupRows + 16;
constexpr int64_t kPanel = kConvDepth * kTileColumns<float> + 16;

// Tiles that go through a product together: few where the second cache has all of V beside them,
// else so many that what is read of V for them is worth the way from the third.
constexpr int64_t together(int, int64_t packed) { return packed <= 1 << 18 ? 32 : 128; }

// Chunks of the sum that two tiles of rows are split for at a time: they stay in the nearest cache.
constexpr int64_t kChunksAtATime = 8;
constexpr int64_t kSplitRows = 4 * kChunksAtATime * kTileParts;  // two in use, two to come

inline int64_t panel_floats(int64_t depth) { return chunks_of(depth) * kPanelParts / 2; }
FASTGAN_INLINE int64_t packed_at(int64_t depth, int64_t term, int64_t column) {
  constexpr int64_t width = kTileColumns<float>;
  return (column / width * chunks_of(depth) + term / kChunk) * (kPanelParts / 2) +
         column % width / 16 * (kTile / 2) + term % kChunk * (kChunk / 2);
}
// Two vectors, of terms that are 16 apart.
FASTGAN_INLINE void store_packed(float* to, F first, F second) {
  store_pairs(pair(first, second), reinterpret_cast<uint16_t*>(to), 2 * kTile);
}

inline int64_t memory_of_rows() { return kSplitRows / 2; }
inline int64_t memory_of_groups(int64_t rows) {
  return (rows + 2 * kPanelParts / kTileParts * 16) * kConvDepth * kParts / 2;
}

// The products of a place go on from those of the one before it: the rows that come next, of this
// place or of the next, are split between the tile instructions.
inline void products_of_rows(const RowProducts& g, float* memory) {
  const auto right = reinterpret_cast<const uint16_t*>(g.b);
  const auto left = reinterpret_cast<uint16_t*>(memory);
  const int64_t all = chunks_of(g.depth);
  // A product of no terms still has a result: one pass over an empty block.
  const int64_t blocks = all > 0 ? (all + kChunksAtATime - 1) / kChunksAtATime : 1;
  constexpr int64_t half = 2 * kChunksAtATime * kTileParts;

  // Two tiles of rows of a block of the sum.
  struct At {
    int64_t place = 0, block = 0, row = 0, number = 0;
  };
  const auto first_of = [&](int64_t block) FASTGAN_LAMBDA_INLINE { return all * block / blocks; };
  const auto after = [&](At at) FASTGAN_LAMBDA_INLINE {
    ++at.number;
    if ((at.row += 32) < g.rows) return at;
    at.row = 0;
    if (++at.block < blocks) return at;
    at.block = 0;
    ++at.place;
    return at;
  };
  const auto units_of = [&](const At& at) FASTGAN_LAMBDA_INLINE {
    if (at.place == g.places) return int64_t{0};
    return (g.rows - at.row > 16 ? 8 : 4) * (first_of(at.block + 1) - first_of(at.block));
  };
  const auto split = [&](const At& at, int64_t unit) FASTGAN_LAMBDA_INLINE {
    const int64_t first = first_of(at.block), chunks = first_of(at.block + 1) - first;
    const int64_t tile = unit / 4 / chunks, q = unit / 4 % chunks, k = (first + q) * kChunk;
    const int64_t i = at.row + tile * 16;
    left_rows_quarter(unit % 4, g.a + at.place * g.a_place + i * g.a_row + k, g.a_row, g.rows - i,
                      g.depth - k, left + at.number % 2 * half + (tile * chunks + q) * kTileParts);
  };

  // Of the next place's part of V, which is asked for meanwhile, for each call of between below.
  const int64_t groups = (g.rows + 31) / 32;
  const int64_t lines = groups > 1 ? (kPanelParts / 128 + groups - 1) / groups : 0;
  const char* ahead = nullptr;
  At at;
  for (int64_t unit = 0; unit < units_of(at); ++unit) split(at, unit);
  while (at.place < g.places) {
    if (at.row == 0 && at.block == 0) {
      ahead = reinterpret_cast<const char*>(g.b + (at.place + 1) % g.places * g.b_place);
    }
    const At next = after(at);
    const int64_t units = units_of(next), first = first_of(at.block);
    const int64_t chunks = first_of(at.block + 1) - first, tile_row = chunks * kTileParts;
    int64_t unit = 0;
    const auto between = [&]() FASTGAN_LAMBDA_INLINE {
      if (unit < units) split(next, unit++);
      for (int64_t i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    };
    const int64_t height = g.rows - at.row < 32 ? g.rows - at.row : 32;
    const uint16_t* const rows = left + at.number % 2 * half;
    const uint16_t* const panels = right + 2 * at.place * g.b_place;
    float* const out = g.c + at.place * g.c_place + at.row * g.c_row;
    for (int64_t p = 0; p < g.panels; ++p) {
      const uint16_t* panel = panels + (p * all + first) * kPanelParts;
      float* const to = out + p * kTileColumns<float>;
      if (at.block > 0) {
        product_packed<true, 4>(height, chunks, rows, tile_row, panel, to, g.c_row, between);
      } else {
        product_packed<false, 4>(height, chunks, rows, tile_row, panel, to, g.c_row, between);
      }
    }
    while (unit < units) split(next, unit++);
    at = next;
  }
}

inline void product_of_groups(int64_t rows, int64_t terms, int64_t panels, const float* a,
                              const float* b, float* c, int64_t c_row, bool add, float* memory) {
  constexpr int64_t width = kTileColumns<float>;
  const int64_t chunks = chunks_of(terms), tile_row = chunks * kTileParts;
  const auto left = reinterpret_cast<uint16_t*>(memory);
  uint16_t* const right = left + (rows + 15) / 16 * tile_row;
  for (int64_t i = 0; i < rows; i += 16) {
    for (int64_t q = 0; q < chunks; ++q) {
      left_columns(a + i / 16 * kGroup + q * kChunk * kGroupRows, kGroupRows, 16,
                   terms - q * kChunk, left + i / 16 * tile_row + q * kTileParts);
    }
  }
  // A panel is packed between the tile instructions of the one before it.
  const auto pack_unit = [&](int64_t p, int64_t unit) {
    right_quarter(unit, b + p * kPanel, width, terms, width, right + p % 2 * chunks * kPanelParts);
  };
  const int64_t all = 8 * chunks;
  for (int64_t unit = 0; unit < all; ++unit) pack_unit(0, unit);
  for (int64_t p = 0; p < panels; ++p) {
    int64_t unit = p + 1 < panels ? 0 : all;
    const auto next = [&]() FASTGAN_LAMBDA_INLINE {
      if (unit < all) pack_unit(p + 1, unit++);
    };
    const uint16_t* panel = right + p % 2 * chunks * kPanelParts;
    if (add) {
      product_packed<true, 4>(rows, chunks, left, tile_row, panel, c + p * width, c_row, next);
    } else {
      product_packed<false, 4>(rows, chunks, left, tile_row, panel, c + p * width, c_row, next);
    }
    while (unit < all) pack_unit(p + 1, unit++);
  }
}
