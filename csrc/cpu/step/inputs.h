// Latents, masks and images of an update; part of stepper.h.

// Normals of a stream from `at` on, in the scratch. They come in pairs.
const float* Stepper::normals(const Philox& philox, int64_t at, int64_t n) {
  const int64_t before = at & 1;
  kernels().philox_normal(philox, at - before, n + before, scratch_);
  return scratch_ + before;
}

// Each block of 32 rows draws its own part of the stream.
void Stepper::latents(int segment, int64_t block) {
  const Field& z = job_.latents;
  const Philox philox = latent_philox(job_.seed, drawn_as(segment), update_number_, g_number_);
  const int64_t width = job_.g.own();
  const float* const drawn = normals(philox, (first_ + block * kBlock) * width, kBlock * width);
  const int64_t start = block * kBlock * z.stride + job_.g.own_at;
  float* const to = rows(z, z.rows, segment) + start;
  float* const factors = rows(z, z.row_factors, segment) + start;
  for (int64_t i = 0; i < kBlock; ++i) {
    for (int64_t j = 0; j < width; ++j) to[i * z.stride + j] = drawn[i * width + j];
    for (const PlannedUniform& part : job_.g.uniforms) {
      float* __restrict const own = to + i * z.stride + part.at;
      for (int64_t j = 0; j < part.width; ++j) own[j] = part.low + part.spread * uniform_of(own[j]);
    }
    round_row(to + i * z.stride, factors + i * z.stride, width);
  }
  if (job_.g.parts.empty()) return;
  for (int64_t i = 0; i < rows_in(block); ++i)
    condition_row(job_.g, z, segment, block * kBlock + i);
}

constexpr int kDraws = 32;  // Philox blocks at a time

void Stepper::mask(const Layer& layer, bool in_g, int segment, int64_t block) {
  const int64_t width = layer.out;
  uint8_t* const keep = layer.keep + (segment * layer.above->padded + block * kBlock) * width;
  const Philox g = mask_philox(job_.seed, layer.drop_index, in_g,
                               in_g ? drawn_as(segment) : segment, update_number_, g_number_);
  // Elements are drawn in eights, of which the first may have some of the rows before.
  const int64_t start = (first_ + block * kBlock) * width, before = start & 7;
  const int64_t first = start / 8, wanted = kBlock * width;
  const int64_t count = (before + wanted + 7) / 8;
  for (int64_t at = 0; at < count; at += kDraws) {
    // Words stand in memory in the order of their halves (little-endian, as all
    // supported processors).
    uint32_t w[4][kDraws];
    alignas(64) uint32_t words[4 * kDraws];
    for (int i = 0; i < kDraws; ++i)
      philox_block(g, static_cast<uint32_t>(first + at + i), w[0][i], w[1][i], w[2][i], w[3][i]);
    for (int i = 0; i < kDraws; ++i)
      for (int j = 0; j < 4; ++j) words[4 * i + j] = w[j][i];
    uint16_t halves[8 * kDraws];
    __builtin_memcpy(halves, words, sizeof halves);
    const uint16_t threshold = static_cast<uint16_t>(layer.drop_threshold - 1);
    const int64_t to = 8 * at - before;
    if (to >= 0 && to + 8 * kDraws <= wanted) {
      for (int64_t i = 0; i < 8 * kDraws; ++i) keep[to + i] = halves[i] <= threshold;
    } else {
      const int64_t end = smaller(8 * kDraws, wanted - to);
      for (int64_t i = larger(-to, 0); i < end; ++i) keep[to + i] = halves[i] <= threshold;
    }
  }
  if (layer.drop_threshold == 0) __builtin_memset(keep, 0, static_cast<size_t>(kBlock * width));
}

constexpr int64_t kFetchImages = 4;

void Stepper::images() {
  const Field& x = job_.images;
  const int64_t* const order = order_;
  const int64_t own = job_.d.own(), own_at = job_.d.own_at;
  const Grid grid = divide(panels(own), samples_);
  if (grid.idle) return;
  const auto [begin, end] = features_of(grid.features, own);
  const int64_t width = end - begin;
  for (int64_t row = grid.others.begin; row < grid.others.end; ++row) {
    const int64_t from = (order ? order[row] : fed_from_ + row) * own + begin;
    const int64_t at = row_of_sample(x, row) + own_at + begin;
    float* const line = rows(x, x.rows, 0) + at;
    if (job_.bytes) {
      const uint8_t* const bytes = job_.bytes + from;
      // Images lie anywhere in memory; a few of them are on their way at a time.
      if (order && row + kFetchImages < grid.others.end) {
        const uint8_t* const later = job_.bytes + order[row + kFetchImages] * own + begin;
        for (int64_t j = 0; j < width; j += 64) __builtin_prefetch(later + j);
      }
      for (int64_t j = 0; j < width; ++j)
        line[j] = static_cast<float>(bytes[j]) * static_cast<float>(2.0 / 255.0) - 1.f;
    } else {
      const float* const floats = job_.floats + from;
      for (int64_t j = 0; j < width; ++j) line[j] = floats[j];
    }
    round_row(line, rows(x, x.row_factors, 0) + at, width);
    if (begin == 0 && !job_.d.parts.empty()) condition_row(job_.d, x, kReal, row);
  }
}

// What is random in a later one of G's updates.
void Stepper::more_inputs() {
  int64_t unit = 0;
  const auto mine = [&] { return unit++ % threads_ == thread_; };
  for (int64_t block = 0; block < blocks_; ++block) {
    if (mine()) latents(1, block);
    for (const Layer& layer : job_.g.layers)
      if (layer.drop && mine()) mask(layer, true, 1, block);
  }
  take_rows(job_.d);
  for (int64_t block = 0; block < blocks_; ++block)
    for (const Layer& layer : job_.d.layers)
      if (layer.drop && mine()) mask(layer, false, kFakeForG, block);
}

// Everything random or read from outside that an update of D needs; if it is a step's last, what
// G's first update needs too.
void Stepper::inputs() {
  int64_t unit = 0;
  const auto mine = [&] { return unit++ % threads_ == thread_; };
  for (int64_t block = 0; block < blocks_; ++block) {
    if (!shared_ && mine()) latents(0, block);
    if (last_ && mine()) latents(1, block);
    for (const Layer& layer : job_.g.layers) {
      if (!layer.drop) continue;
      if (!shared_ && mine()) mask(layer, true, 0, block);
      if (last_ && mine()) mask(layer, true, 1, block);
    }
  }
  take_rows(job_.d);
  for (int64_t block = 0; block < blocks_; ++block) {
    if (due(kBetween) && mine()) mix(block);
    for (const Layer& layer : job_.d.layers) {
      if (!layer.drop) continue;
      if (due(kBetween) && mine()) mask(layer, false, kBetween, block);
      if (mine()) mask(layer, false, kReal, block);
      if (mine()) mask(layer, false, kFake, block);
      if (last_ && mine()) mask(layer, false, kFakeForG, block);
    }
  }
  images();
}
