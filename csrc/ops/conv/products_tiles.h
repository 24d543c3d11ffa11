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

constexpr int64_t kConvDepth = 128;
constexpr int64_t kGroup = kConvDepth * kGroupRows + 16;
constexpr int64_t kPanel = kConvDepth * kTileColumns<float> + 16;

// Tiles that go through a product together, by the places of each: what is read of V for them is
// then worth the way from the third cache.
constexpr int64_t together(int) { return 128; }

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

inline void product_of_rows(int64_t rows, int64_t depth, int64_t panels, const float* a,
                            int64_t a_row, const float* b, float* c, int64_t c_row, float* memory) {
  const auto right = reinterpret_cast<const uint16_t*>(b);
  const auto left = reinterpret_cast<uint16_t*>(memory);
  const int64_t all = chunks_of(depth), blocks = (all + kChunksAtATime - 1) / kChunksAtATime;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = all * block / blocks, chunks = all * (block + 1) / blocks - first;
    const int64_t tile_row = chunks * kTileParts;
    const auto place = [&](int64_t row)
                           FASTGAN_LAMBDA_INLINE { return left + row / 32 % 2 * 2 * tile_row; };
    const auto pack_unit = [&](int64_t row, int64_t unit) {
      const int64_t i = row + unit / chunks * 16, q = unit % chunks, k = (first + q) * kChunk;
      if (i >= rows) return;
      left_rows(a + i * a_row + k, a_row, rows - i, depth - k,
                place(row) + unit / chunks * tile_row + q * kTileParts);
    };
    for (int64_t unit = 0; unit < 2 * chunks; ++unit) pack_unit(0, unit);
    // Rows are split between the tile instructions of those before them.
    for (int64_t row = 0; row < rows; row += 32) {
      int64_t unit = row + 32 < rows ? 0 : 2 * chunks;
      const auto next = [&]() FASTGAN_LAMBDA_INLINE {
        if (unit < 2 * chunks) pack_unit(row + 32, unit++);
      };
      const int64_t height = rows - row < 32 ? rows - row : 32;
      for (int64_t p = 0; p < panels; ++p) {
        const uint16_t* panel = right + (p * all + first) * kPanelParts;
        float* const out = c + row * c_row + p * kTileColumns<float>;
        if (block > 0) {
          product_packed<true>(height, chunks, place(row), tile_row, panel, out, c_row, next);
        } else {
          product_packed<false>(height, chunks, place(row), tile_row, panel, out, c_row, next);
        }
      }
      while (unit < 2 * chunks) pack_unit(row + 32, unit++);
    }
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
    right_unit<false>(unit, b + p * kPanel, width, terms, width,
                      right + p % 2 * chunks * kPanelParts);
  };
  for (int64_t unit = 0; unit < 2 * chunks; ++unit) pack_unit(0, unit);
  for (int64_t p = 0; p < panels; ++p) {
    int64_t unit = p + 1 < panels ? 0 : 2 * chunks;
    const auto next = [&]() FASTGAN_LAMBDA_INLINE {
      if (unit < 2 * chunks) pack_unit(p + 1, unit++);
    };
    const uint16_t* panel = right + p % 2 * chunks * kPanelParts;
    if (add) {
      product_packed<true>(rows, chunks, left, tile_row, panel, c + p * width, c_row, next);
    } else {
      product_packed<false>(rows, chunks, left, tile_row, panel, c + p * width, c_row, next);
    }
    while (unit < 2 * chunks) pack_unit(p + 1, unit++);
  }
}
