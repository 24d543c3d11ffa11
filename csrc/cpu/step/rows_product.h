// Products whose rows are the batch; part of stepper.h.

// Rows of a field: those of `segment` begin at form + segment * padded_ * stride.
struct Stepper::Rows {
  float* form;
  int64_t stride;
  int segment;
};
struct Stepper::Weight {
  const float* at;
  int64_t stride;
};

// C [rows][columns] = A [rows][terms] B [terms][columns] on some blocks of the batch, counted over
// the segments. B is the weight: B[k][n] = w[k][n], or w[n][k] if it is Turned. The batch goes
// through in chunks of blocks and the sum in pieces of terms, so that a piece of A stays in the
// second-level cache; of the weight a panel of 32 columns of the piece is packed, to be read from
// the nearer caches by every tile. after(columns of the panel, blocks) follows the last term.
template <bool Turned, class After>
void Stepper::rows_product(const Rows& a, Range terms, const Weight& w, Range columns, Range blocks,
                           const Rows& c, After after) {
  if (columns.begin >= columns.end) return;
  const auto row_of = [&](const Rows& rows, int64_t block) {
    return rows.form +
           ((rows.segment + block / blocks_) * padded_ + block % blocks_ * kBlock) * rows.stride;
  };
  const Pieces batches(blocks, kSizes.batch / kBlock, 1), depths(terms, kSizes.depth, kChunk);
  const int64_t across = panels(length(columns)), visits = batches.count * depths.count;
  const auto panel_of = [&](int64_t i) {
    const int64_t n = columns.begin + i % across * kBlock;
    return Range{n, smaller(n + kBlock, columns.end)};
  };
#if FASTGAN_INSTRUCTIONS >= 2
  // A visit is one chunk of the batch with one piece of the sum. While it is multiplied, the next
  // panel and the next visit's A are packed.
  uint16_t* const left = reinterpret_cast<uint16_t*>(scratch_);
  uint16_t* const right = reinterpret_cast<uint16_t*>(scratch_ + kSizes.left);
  int64_t next_left = 0, left_unit = 0, left_units = 0;
  int64_t next_right = 0, right_done = 0, right_units = 0;
  const auto start_left = [&](int64_t visit) {
    next_left = visit;
    left_unit = 0;
    left_units = visit < visits ? 2 * length(batches[visit / depths.count]) *
                                      chunks_of(length(depths[visit % depths.count]))
                                : 0;
  };
  const auto pack_left = [&] {
    const auto [k, end] = depths[next_left % depths.count];
    const int64_t chunks = chunks_of(end - k);
    const int64_t tile = left_unit / chunks, at = left_unit % chunks * kChunk;
    const int64_t block = batches[next_left / depths.count].begin + tile / 2, row = tile % 2 * 16;
    left_rows(row_of(a, block) + row * a.stride + k + at, a.stride, rows_in(block % blocks_) - row,
              end - k - at, left + next_left % 2 * kSizes.left + left_unit * kTileParts);
    ++left_unit;
  };
  const auto start_right = [&](int64_t i) {
    next_right = i;
    right_done = 0;
    right_units =
        i < visits * across ? 2 * chunks_of(length(depths[i / across % depths.count])) : 0;
  };
  const auto pack_right = [&] {
    const auto [k, end] = depths[next_right / across % depths.count];
    const auto [n, last] = panel_of(next_right);
    right_unit<Turned>(right_done++, w.at + (Turned ? n * w.stride + k : k * w.stride + n),
                       w.stride, end - k, last - n, right + next_right % 2 * kSizes.right);
  };
  const auto between = [&] {
    if (right_done < right_units)
      pack_right();
    else if (left_unit < left_units)
      pack_left();
  };
  start_left(0);
  start_right(0);
#else
  float* const right = scratch_ + kSizes.left;
#endif
  for (int64_t visit = 0; visit < visits; ++visit) {
    const int64_t depth = visit % depths.count;
    const Range rows = batches[visit / depths.count];
    const auto [k, end] = depths[depth];
#if FASTGAN_INSTRUCTIONS >= 2
    while (left_unit < left_units) pack_left();
    start_left(visit + 1);
    const uint16_t* const packed = left + visit % 2 * kSizes.left;
    const int64_t chunks = chunks_of(end - k), tile_row = chunks * kTileParts;
#endif
    for (int64_t i = visit * across; i < (visit + 1) * across; ++i) {
      const Range panel = panel_of(i);
#if FASTGAN_INSTRUCTIONS >= 2
      while (right_done < right_units) pack_right();
      start_right(i + 1);
      const uint16_t* const b = right + i % 2 * kSizes.right;
#else
      if (Turned)
        right_columns(w.at + panel.begin * w.stride + k, w.stride, end - k, length(panel), right);
      else
        right_rows<kRounded>(w.at + k * w.stride + panel.begin, w.stride, end - k, length(panel),
                             right);
#endif
      // Blocks that lie together in memory go together.
      for (int64_t block = rows.begin; block < rows.end;) {
        const int64_t last = smaller(rows.end, (block / blocks_ + 1) * blocks_);
        float* const to = row_of(c, block) + panel.begin;
#if FASTGAN_INSTRUCTIONS >= 2
        const uint16_t* const from = packed + 2 * (block - rows.begin) * tile_row;
        const int64_t height = (last - block) * kBlock;
        if (depth == 0)
          product_packed<false>(height, chunks, from, tile_row, b, to, c.stride, between);
        else
          product_packed<true>(height, chunks, from, tile_row, b, to, c.stride, between);
#else
        const float* const from = row_of(a, block) + k;
        const int64_t height = (last - 1 - block) * kBlock + rows_in((last - 1) % blocks_);
        if (depth == 0)
          product<false>(height, length(panel), end - k, from, a.stride, 1, right, kBlock, to,
                         c.stride);
        else
          product<true>(height, length(panel), end - k, from, a.stride, 1, right, kBlock, to,
                        c.stride);
#endif
        block = last;
      }
      if (depth + 1 == depths.count) after(panel, rows);
    }
  }
}
