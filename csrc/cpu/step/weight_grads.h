// The gradients of some rows and columns of a weight; part of stepper.h.

// How much of a weight's gradient is held in the scratch, and after how many terms of the sum.
struct Stepper::Held {
  int64_t rows, columns, stride;
};
#if FASTGAN_INSTRUCTIONS >= 2

Stepper::Held Stepper::held(int64_t) const {
  return {kSizes.held_rows, kSizes.held_columns, kSizes.held_columns + 16};
}

// The gradient of some rows and columns of a weight: one of its terms, summed over its segments,
// and added to what is there if it is `more`.
void Stepper::weight_grads(const Layer& layer, const Held& held, Range out, Range in,
                           const Term& term, bool more) {
  const Field &above = *layer.above, &below = *layer.below;
  const int from = term.from, segments = term.segments;
  uint16_t* const left = reinterpret_cast<uint16_t*>(scratch_);
  uint16_t* const right = reinterpret_cast<uint16_t*>(scratch_ + kSizes.left);
  float* const grads = scratch_ + kSizes.left + kSizes.right;
  const int64_t height = length(out), across = panels(length(in));
  // A block of the batch is a chunk of the sum.
  const Pieces pieces({0, segments * blocks_}, kSizes.depth / kBlock, 1);
  const auto row_of = [&](const float* form, int64_t stride, int64_t block, int lift) {
    return form + ((from + lift + block / blocks_) * padded_ + block % blocks_ * kBlock) * stride;
  };
  for (int64_t piece = 0; piece < pieces.count; ++piece) {
    const Range blocks = pieces[piece];
    const int64_t chunks = length(blocks), tile_row = chunks * kTileParts;
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t block = blocks.begin + i;
      const float* const at = row_of(above.*term.left, above.stride, block, layer.lift) + out.begin;
      for (int64_t m = 0; m < height; m += 16)
        left_columns(at + m, above.stride, height - m, rows_in(block % blocks_),
                     left + m / 16 * tile_row + i * kTileParts);
    }
    // While a panel is multiplied, the next one is packed.
    int64_t panel = 0, unit = 0;
    const auto pack_right = [&] {
      const int64_t i = unit / 2, block = blocks.begin + i, c = panel * kBlock;
      right_unit<false>(unit % 2, row_of(below.*term.right, below.stride, block, 0) + in.begin + c,
                        below.stride, rows_in(block % blocks_), length(in) - c,
                        right + panel % 2 * kSizes.right + i * kPanelParts);
      ++unit;
    };
    for (int64_t j = 0; j < across; ++j) {
      while (unit < 2 * chunks && panel == j) pack_right();
      const uint16_t* const b = right + j % 2 * kSizes.right;
      panel = j + 1;
      unit = panel < across ? 0 : 2 * chunks;
      const auto between = [&] {
        if (unit < 2 * chunks) pack_right();
      };
      float* const to = grads + j * kBlock;
      if (piece == 0 && !more)
        product_packed<false>(height, chunks, left, tile_row, b, to, held.stride, between);
      else
        product_packed<true>(height, chunks, left, tile_row, b, to, held.stride, between);
    }
  }
}
#else

// Short sums: one tile high and long, because Adam likes long rows. Long sums: many tiles high, so
// that what is read for a panel of columns serves them all; both operands of a piece of the sum are
// then copied together.
Stepper::Held Stepper::held(int64_t terms) const {
  constexpr int64_t longest = 1024;
  static_assert(kTileRows * (longest + 16) <= kSizes.held_rows * (kSizes.held_columns + 16));
  if (terms <= kSizes.depth) return {kTileRows, longest, longest + 16};
  return {kHeldTiles * kTileRows, kSizes.held_columns, kSizes.held_columns + 16};
}

// What is read next lies in rows far apart, where no hardware looks ahead: kAhead rows are fetched
// before each tile.
constexpr int kAhead = 64;

void Stepper::weight_grads(const Layer& layer, const Held& held, Range out, Range in,
                           const Term& term, bool more) {
  const Field &above = *layer.above, &below = *layer.below;
  const int from = term.from, segments = term.segments;
  const int64_t height = length(out);
  // Whole batches in one sum where they lie together, else one after another.
  const bool joined = batch_ == padded_;
  const int sums = joined ? 1 : segments;
  const Pieces pieces({0, joined ? segments * batch_ : batch_}, kSizes.depth, 1);
  float* const grads = scratch_ + kSizes.left + kSizes.right;
  float* const packed_a = scratch_;
  float* const packed_b = scratch_ + kSizes.left;
  for (int s = 0; s < sums; ++s)
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      const auto [k, end] = pieces[piece];
      const int64_t depth = end - k;
      const float* const a =
          rows(above, above.*term.left, from + s + layer.lift) + k * above.stride + out.begin;
      const float* const b = rows(below, below.*term.right, from + s) + k * below.stride;
      // Copies pay where many rows are summed: read in place, each would cost a
      // page table look-up and more for every tile.
      const bool copied = pieces.count > 1;
      constexpr int64_t unit = 16;
      if (copied) {
        float* to = packed_a;
        each_tile(height, [&](long first, int) {
          for (int64_t i = 0; i < depth; ++i)
            for (int64_t j = 0; j < unit; j += kFloats)
              store_vector(to + i * unit + j, load_vector(a + i * above.stride + first + j));
          to += kSizes.depth * unit;
        });
      }
      for (int64_t c = in.begin; c < in.end; c += kBlock) {
        const int64_t width = smaller(kBlock, in.end - c);
        if (copied) right_rows<false>(b + c, below.stride, depth, width, packed_b);
        const float* const panel = copied ? packed_b : b + c;
        const int64_t panel_row = copied ? kBlock : below.stride;
        const int64_t a_column = copied ? unit : above.stride;
        int64_t fetched = copied && c + kBlock < in.end ? 0 : depth;
        int64_t number = 0;
        each_tile(height, [&](long first, int rows_here) {
          for (int i = 0; i < kAhead && fetched < depth; ++i, ++fetched) {
            __builtin_prefetch(b + fetched * below.stride + c + kBlock);
            __builtin_prefetch(b + fetched * below.stride + c + kBlock + 16);
          }
          const float* const tile_a =
              copied ? packed_a + number++ * kSizes.depth * unit : a + first;
          float* const to = grads + first * held.stride + (c - in.begin);
          if (s == 0 && piece == 0 && !more)
            product<false>(rows_here, width, depth, tile_a, 1, a_column, panel, panel_row, to,
                           held.stride);
          else
            product<true>(rows_here, width, depth, tile_a, 1, a_column, panel, panel_row, to,
                          held.stride);
        });
      }
    }
}
#endif
