// The phases of a step, compiled once per way of taking products: included with FASTGAN_VARIANT (a
// namespace), FASTGAN_VECTOR_BYTES and FASTGAN_VECTOR_REGISTERS defined, and FASTGAN_PRODUCTS as in
// step_products.h. step.h states the layout and the division among threads.
//
// As in kernels_impl.h no function of the standard library is called here, and every function is in
// the variant's namespace.

namespace fastgan::cpu::step::FASTGAN_VARIANT {

namespace {

#include "cpu/microkernel.h"
#include "cpu/step_vector.h"

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#include "cpu/step_products.h"

constexpr Sizes kSizes = sizes_of(static_cast<Products>(FASTGAN_PRODUCTS));

struct Range {
  int64_t begin, end;
};
Range share(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}
int64_t length(Range r) { return r.end - r.begin; }

// Features are shared out in panels of 32.
int64_t panels(int64_t width) { return (width + kBlock - 1) / kBlock; }
Range features_of(Range shared, int64_t width) {
  return {shared.begin * kBlock, smaller(shared.end * kBlock, width)};
}

// The even pieces, of whole units, in which a long range is gone through.
struct Pieces {
  Range range;
  int64_t unit, units, count;
  Pieces(Range whole, int64_t longest, int64_t multiple)
      : range(whole),
        unit(multiple),
        units((length(whole) + multiple - 1) / multiple),
        count((units * multiple + longest - 1) / longest) {}
  Range operator[](int64_t i) const {
    const Range r = share(units, i, count);
    return {range.begin + r.begin * unit, smaller(range.begin + r.end * unit, range.end)};
  }
};

// --- One thread's part of a step ---

class Stepper {
 public:
  Stepper(Job& job, int thread, Barrier& barrier)
      : job_(job),
        thread_(thread),
        threads_(static_cast<int>(job.threads)),
        barrier_(barrier),
        scratch_(job.scratch + thread * job.scratch_stride) {}

  void run();

 private:
  struct Grid {
    Range features, others;
    bool idle;
  };
  Grid divide(int64_t features, int64_t others) const;

  void inputs(int64_t update, int64_t step, bool last);
  void latents(uint32_t stream, uint64_t step, int segment, int64_t block);
  void mask(const Layer& layer, int use, uint64_t step, int segment, int64_t block);
  void images(int64_t update);

  struct Rows;
  struct Weight;
  template <bool Turned, class After>
  void rows_product(const Rows& a, Range terms, const Weight& w, Range columns, Range blocks,
                    const Rows& c, After after);

  void forward_all(const Network& network, int from, int segments);
  void forward(const Layer& layer, int from, int segments);
  void activate_rows(const Layer& layer, Range features, Range within, int segment,
                     const float* shift);
  void normalise(const Layer& layer, Range features, int from, int segments);
  void judge(int from, int segments);
  void judge_rows(int segment, Range within);
  void score(int segment, Range within, const float* logits);

  void backward_all(const Network& network, const Field* stop, int from, int segments);
  void backward(const Layer& layer, const Layer& lower, int from, int segments);
  void sum_backward(const Layer& layer, const Layer& lower, int from, int segments);
  void spread_logit_grads(const Layer& layer, const Layer& lower, int from, int segments);
  void finish_grads(const Layer& lower, Range features, int from, int segments);
  void differentiate(const Layer& lower, Range features, Range within, int segment);
  void normalise_backward(const Layer& lower, Range features, int segment, bool first);

  struct Held;
  Held held(int64_t terms) const;
  void update_all(const Network& network, const Adam<float>& adam, int from, int segments);
  void update_part(const Layer& layer, const Adam<float>& adam, Range out, Range in, int from,
                   int segments);
  void weight_grads(const Layer& layer, const Held& held, Range out, Range in, int from,
                    int segments);
  void logit_update(const Layer& layer, const Adam<float>& adam, int from, int segments);
  void vector_updates(const Layer& layer, const Adam<float>& adam, Range out, int from,
                      int segments);
  void apply(const Adam<float>& adam, const Parameter& p, int64_t at, int64_t n,
             const float* grad) const;

  float mean_loss(int segment) const;
  void copy_statistics(const Layer& layer) const;
  void end_phase();

  float* rows(const Field& field, float* form, int segment) const {
    return form + segment * job_.padded * field.stride;
  }
  int64_t rows_in(int64_t block) const { return smaller(kBlock, batch_ - block * kBlock); }

  // Calls use(segment of `segments`, rows) for this thread's rows, which are shared out in eights.
  template <class Use>
  void each_own_rows(int segments, Use use) const {
    const int64_t per = (batch_ + kRowUnit - 1) / kRowUnit;
    const Range mine = share(segments * per, thread_, threads_);
    for (int64_t u = mine.begin; u < mine.end; ++u) {
      const int64_t first = u % per * kRowUnit;
      use(static_cast<int>(u / per), Range{first, smaller(first + kRowUnit, batch_)});
    }
  }
  Range own_features(int64_t width) const {
    return features_of(share(panels(width), thread_, threads_), width);
  }

  Job& job_;
  const int thread_, threads_;
  Barrier& barrier_;
  float* const scratch_;

  int64_t batch_ = 0, blocks_ = 0;  // of the update at hand
  int64_t fed_ = 0;                 // rows of fed images used so far
  int64_t phase_ = 0;
  double clock_ = 0;
};

// Cuts features x others among the threads: along the features while there are enough of them,
// along both otherwise.
Stepper::Grid Stepper::divide(int64_t features, int64_t others) const {
  const int64_t across = smaller(threads_, features);
  const int64_t along = smaller(threads_ / across, others);
  if (thread_ >= across * along) return {{0, 0}, {0, 0}, true};
  return {share(features, thread_ % across, across), share(others, thread_ / across, along), false};
}

void Stepper::end_phase() {
  if (job_.profile == nullptr || thread_ != 0) {
    barrier_.wait();
    return;
  }
  const double worked = seconds();
  barrier_.wait();
  const double now = seconds();
  job_.profile[2 * phase_] += worked - clock_;
  job_.profile[2 * phase_ + 1] += now - worked;
  clock_ = now;
  ++phase_;
}

// --- Inputs: latents, masks, images ---

// A block of 32 rows begins at a multiple of 4 words and of 8 halves of words,
// whatever the width, so each block draws its own part of the stream.
void Stepper::latents(uint32_t stream, uint64_t step, int segment, int64_t block) {
  const Field& z = job_.latents;
  const int64_t at = block * kBlock * z.width;
  kernels().philox_normal(make_philox(job_.seed, stream, step), at, kBlock * z.width, scratch_);
  float* const to = rows(z, z.rows, segment) + block * kBlock * z.stride;
  for (int64_t i = 0; i < kBlock; ++i)
    for (int64_t j = 0; j < z.width; ++j) to[i * z.stride + j] = scratch_[i * z.width + j];
}

constexpr int kDraws = 32;  // Philox blocks at a time

void Stepper::mask(const Layer& layer, int use, uint64_t step, int segment, int64_t block) {
  const int64_t width = layer.out;
  uint8_t* const keep = layer.keep + (segment * job_.padded + block * kBlock) * width;
  const Philox g = make_philox(job_.seed, layer.drop_stream + static_cast<uint32_t>(use), step);
  const int64_t first = block * (kBlock / 8) * width,
                count = kBlock / 8 * width;  // of eight elements
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
    const int64_t n = 8 * smaller(kDraws, count - at);
    uint8_t* const to = keep + 8 * at;
    if (n == 8 * kDraws) {
      for (int64_t i = 0; i < 8 * kDraws; ++i) to[i] = halves[i] <= threshold;
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = halves[i] <= threshold;
    }
  }
  if (layer.drop_threshold == 0) __builtin_memset(keep, 0, static_cast<size_t>(kBlock * width));
}

constexpr int64_t kFetchImages = 4;

void Stepper::images(int64_t update) {
  const Field& x = job_.images;
  const int64_t per_epoch = (job_.count + job_.batch - 1) / job_.batch;
  const int64_t first = job_.first_step * job_.d_steps / per_epoch;
  const int64_t* const order = job_.order ? job_.order + (update / per_epoch - first) * job_.count +
                                                update % per_epoch * job_.batch
                                          : nullptr;
  const Grid grid = divide(panels(x.width), batch_);
  if (grid.idle) return;
  const auto [begin, end] = features_of(grid.features, x.width);
  const int64_t width = end - begin;
  for (int64_t row = grid.others.begin; row < grid.others.end; ++row) {
    const int64_t from = (order ? order[row] : fed_ + row) * x.width + begin;
    float* const line = rows(x, x.rows, 0) + row * x.stride + begin;
    if (job_.bytes) {
      const uint8_t* const bytes = job_.bytes + from;
      // Images lie anywhere in memory; a few of them are on their way at a time.
      if (order && row + kFetchImages < grid.others.end) {
        const uint8_t* const later = job_.bytes + order[row + kFetchImages] * x.width + begin;
        for (int64_t j = 0; j < width; j += 64) __builtin_prefetch(later + j);
      }
      for (int64_t j = 0; j < width; ++j)
        line[j] = static_cast<float>(bytes[j]) * static_cast<float>(2.0 / 255.0) - 1.f;
    } else {
      const float* const floats = job_.floats + from;
      for (int64_t j = 0; j < width; ++j) line[j] = floats[j];
    }
  }
}

// Everything random or read from outside that an update needs; with `last`,
// what G's update needs too.
void Stepper::inputs(int64_t update, int64_t step, bool last) {
  // Use numbers of the masks: D on real, D on fake, D for G, G for D, G for G.
  int64_t unit = 0;
  const auto mine = [&] { return unit++ % threads_ == thread_; };
  for (int64_t block = 0; block < blocks_; ++block) {
    if (mine()) latents(0, static_cast<uint64_t>(update), 0, block);
    if (last && mine()) latents(1, static_cast<uint64_t>(step), 1, block);
    for (const Layer& layer : job_.d.layers) {
      if (!layer.drop) continue;
      if (mine()) mask(layer, 0, static_cast<uint64_t>(update), 0, block);
      if (mine()) mask(layer, 1, static_cast<uint64_t>(update), 1, block);
      if (last && mine()) mask(layer, 2, static_cast<uint64_t>(step), 2, block);
    }
    for (const Layer& layer : job_.g.layers) {
      if (!layer.drop) continue;
      if (mine()) mask(layer, 3, static_cast<uint64_t>(update), 0, block);
      if (last && mine()) mask(layer, 4, static_cast<uint64_t>(step), 1, block);
    }
  }
  images(update);
}

// --- Products whose rows are the batch ---

// Rows of a field: those of `segment` begin at form + segment * padded * stride.
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
    return rows.form + ((rows.segment + block / blocks_) * job_.padded + block % blocks_ * kBlock) *
                           rows.stride;
  };
  const Pieces batches(blocks, kSizes.batch / kBlock, 1), depths(terms, kSizes.depth, kChunk);
  const int64_t across = panels(length(columns)), visits = batches.count * depths.count;
  const auto panel_of = [&](int64_t i) {
    const int64_t n = columns.begin + i % across * kBlock;
    return Range{n, smaller(n + kBlock, columns.end)};
  };
#if FASTGAN_PRODUCTS
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
#if FASTGAN_PRODUCTS
    while (left_unit < left_units) pack_left();
    start_left(visit + 1);
    const uint16_t* const packed = left + visit % 2 * kSizes.left;
    const int64_t chunks = chunks_of(end - k), tile_row = chunks * kTileParts;
#endif
    for (int64_t i = visit * across; i < (visit + 1) * across; ++i) {
      const Range panel = panel_of(i);
#if FASTGAN_PRODUCTS
      while (right_done < right_units) pack_right();
      start_right(i + 1);
      const uint16_t* const b = right + i % 2 * kSizes.right;
#else
      if (Turned)
        right_columns(w.at + panel.begin * w.stride + k, w.stride, end - k, length(panel), right);
      else
        right_rows(w.at + k * w.stride + panel.begin, w.stride, end - k, length(panel), right);
#endif
      // Blocks that lie together in memory go together.
      for (int64_t block = rows.begin; block < rows.end;) {
        const int64_t last = smaller(rows.end, (block / blocks_ + 1) * blocks_);
        float* const to = row_of(c, block) + panel.begin;
#if FASTGAN_PRODUCTS
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

// --- Forward ---

void Stepper::forward(const Layer& layer, int from, int segments) {
  const Field &below = *layer.below, &above = *layer.above;
  // Batch statistics need all rows of a feature in one place.
  const Grid grid = divide(panels(layer.out), layer.norm ? 1 : segments * blocks_);
  if (grid.idle) return;
  const Range blocks = layer.norm ? Range{0, segments * blocks_} : grid.others;
  const Range out = features_of(grid.features, layer.out);
  rows_product<true>(
      {below.rows, below.stride, from}, {0, layer.in}, {layer.weight.value, layer.in}, out, blocks,
      {above.rows, above.stride, from + layer.lift}, [&](Range features, Range done) {
        if (layer.norm) return;
        for (int64_t i = done.begin; i < done.end; ++i) {
          const int64_t row = i % blocks_ * kBlock;
          activate_rows(layer, features, {row, row + rows_in(i % blocks_)},
                        from + static_cast<int>(i / blocks_), layer.bias.value);
        }
      });
  if (layer.norm) normalise(layer, out, from, segments);
}

// Bias, activation and dropout on products. `segment` counts as below the layer.
void Stepper::activate_rows(const Layer& layer, Range features, Range within, int segment,
                            const float* shift) {
  const Field& field = *layer.above;
  const int64_t begin = features.begin, width = length(features);
  const float* const scale = layer.norm ? layer.gamma.value : nullptr;
  const float slope = layer.slope;
  const float kept = layer.drop ? keep_scale(layer.drop_threshold) : 1.f;
  with_activation(layer.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t i = within.begin; i < within.end; ++i) {
      float* __restrict const x =
          rows(field, field.rows, segment + layer.lift) + i * field.stride + begin;
      if (scale)
        for (int64_t j = 0; j < width; ++j) x[j] *= scale[begin + j];
      if (shift)
        for (int64_t j = 0; j < width; ++j) x[j] += shift[begin + j];
      if constexpr (kind == Activation::tanh) {
        // The field has room for whole vectors; what lies beyond the width stays zero.
        for (int64_t j = 0; j < width; j += kFloats)
          store_vector(x + j, tanh_vector(load_vector(x + j)));
      } else if constexpr (kind != Activation::none) {
        for (int64_t j = 0; j < width; ++j) x[j] = activate<kind>(x[j], slope);
      }
      if (layer.drop) {
        const uint8_t* const keep = layer.keep + (segment * job_.padded + i) * layer.out + begin;
        for (int64_t j = 0; j < width; ++j) x[j] = keep[j] ? x[j] * kept : 0.f;
      }
    }
  });
}

constexpr int64_t kShort = 8;

// Sums over the rows of up to 32 columns, value(row, column): short sums in float, their sum in
// double.
template <class Value>
FASTGAN_INLINE void sum_columns(int64_t count, int64_t width, double* total, Value value) {
  for (int64_t first = 0; first < count; first += kShort) {
    float part[kBlock] = {};
    for (int64_t i = first; i < smaller(first + kShort, count); ++i)
      for (int64_t j = 0; j < width; ++j) part[j] += value(i, j);
    for (int64_t j = 0; j < width; ++j) total[j] += static_cast<double>(part[j]);
  }
}

// Batch statistics per feature, then what activate_rows() does.
void Stepper::normalise(const Layer& layer, Range features, int from, int segments) {
  const Field& field = *layer.above;
  const double n = static_cast<double>(batch_);
  for (int64_t f = features.begin; f < features.end; f += kBlock) {
    const Range panel{f, smaller(f + kBlock, features.end)};
    const int64_t width = length(panel);
    for (int segment = from; segment < from + segments; ++segment) {
      float* const x = rows(field, field.rows, segment + layer.lift) + f;
      float* const normed = rows(field, layer.normed, segment) + f;
      for (int64_t i = 0; layer.bias.value && i < batch_; ++i)
        for (int64_t j = 0; j < width; ++j) x[i * field.stride + j] += layer.bias.value[f + j];
      double sums[kBlock] = {}, squares[kBlock] = {};
      sum_columns(batch_, width, sums,
                  [&](int64_t i, int64_t j) { return x[i * field.stride + j]; });
      float centre[kBlock], by[kBlock];
      for (int64_t j = 0; j < width; ++j) centre[j] = static_cast<float>(sums[j] / n);
      sum_columns(batch_, width, squares, [&](int64_t i, int64_t j) {
        const float d = x[i * field.stride + j] - centre[j];
        return d * d;
      });
      for (int64_t j = 0; j < width; ++j) {
        const double mean = sums[j] / n, variance = squares[j] / n;
        by[j] = static_cast<float>(1.0 / __builtin_sqrt(variance + layer.norm_eps));
        layer.inv_std[segment * layer.out + f + j] = by[j];
        if (!layer.running_mean) continue;
        const double batches = static_cast<double>(*layer.batches + segment - from + 1);
        const double part = layer.norm_momentum < 0 ? 1.0 / batches : layer.norm_momentum;
        float& m = layer.running_mean[f + j];
        float& v = layer.running_var[f + j];
        m = static_cast<float>((1 - part) * m + part * mean);
        v = static_cast<float>((1 - part) * v + part * (variance * n / (n - 1)));
      }
      for (int64_t i = 0; i < batch_; ++i)
        for (int64_t j = 0; j < width; ++j) {
          const float value = (x[i * field.stride + j] - centre[j]) * by[j];
          x[i * field.stride + j] = normed[i * field.stride + j] = value;
        }
      activate_rows(layer, panel, {0, batch_}, segment, layer.beta.value);
    }
  }
}

FASTGAN_INLINE float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t lanes = 4 * kFloats;
  F sums[4] = {};
  int64_t k = 0;
  for (; k + lanes <= n; k += lanes)
    for (int64_t v = 0; v < 4; ++v)
      sums[v] += load_vector(a + k + v * kFloats) * load_vector(b + k + v * kFloats);
  const F sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0;
  for (; k < n; ++k) total += a[k] * b[k];
  for (int64_t j = 0; j < kFloats; ++j) total += sum[j];
  return total;
}

void Stepper::judge_rows(int segment, Range within) {
  const Layer& layer = job_.d.layers.back();
  const Field &below = *layer.below, &field = *layer.above;
  float logits[kRowUnit];
  with_activation(layer.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t i = within.begin; i < within.end; ++i) {
      const float sum =
          dot(rows(below, below.rows, segment) + i * below.stride, layer.weight.value, layer.in) +
          (layer.bias.value ? *layer.bias.value : 0.f);
      logits[i - within.begin] =
          kind == Activation::tanh ? math::tanh(sum) : activate<kind>(sum, layer.slope);
    }
  });
  score(segment, within, logits);
  if (!judges_backward(job_)) return;
  const Layer& lower = job_.d.layers[job_.d.layers.size() - 2];
  for (int64_t i = within.begin; i < within.end; ++i) {
    const float grad = rows(field, field.grads, segment)[i * field.stride];
    float* __restrict const to = rows(below, below.grads, segment) + i * below.stride;
    const float* const weight = layer.weight.value;
    for (int64_t j = 0; j < layer.in; ++j) to[j] = grad * weight[j];
  }
  differentiate(lower, {0, lower.out}, within, segment);
}

void Stepper::judge(int from, int segments) {
  each_own_rows(segments, [&](int s, Range within) { judge_rows(from + s, within); });
}

// Losses of a few logits, and their gradients as the last field's.
void Stepper::score(int segment, Range within, const float* logits) {
  const Layer& last = job_.d.layers.back();
  const Field& field = *last.above;
  const int64_t n = length(within);
  const double scale = 1.0 / static_cast<double>(batch_);
  float grads[kRowUnit];
  double loss = 0;
  if (job_.game == Game::non_saturating || job_.game == Game::minimax) {
    // The saturating G minimises the negative of D's loss on its images.
    const bool negative = segment == 2 && job_.game == Game::minimax;
    const double label = segment == 0 ? job_.real_label : segment == 2 && !negative ? 1.0 : 0.0;
    loss = kernels().bce_f32(logits, n, label, negative ? -scale : scale, grads);
    if (negative) loss = -loss;
  } else {
    const float s = static_cast<float>(scale);
    for (int64_t i = 0; i < n; ++i) {
      const float l = logits[i];
      if (job_.game == Game::least_squares) {
        const float d = segment == 1 ? l : l - 1.f;
        loss += 0.5 * static_cast<double>(d * d);
        grads[i] = s * d;
      } else {
        const float sign = segment == 1 ? 1.f : -1.f;
        const float margin = 1.f + sign * l;
        const bool hinge = job_.game == Game::hinge && segment != 2;
        const bool flat = hinge && margin <= 0.f;
        loss += hinge ? (flat ? 0.0 : static_cast<double>(margin)) : static_cast<double>(sign * l);
        grads[i] = flat ? 0.f : sign * s;
      }
    }
  }
  job_.loss_parts[segment * job_.units + within.begin / kRowUnit] = loss;
  float* const to = rows(field, field.grads, segment) + within.begin * field.stride;
  with_activation(last.activation, [&](auto activation) {
    for (int64_t i = 0; i < n; ++i)
      to[i * field.stride] =
          derivative<decltype(activation)::value>(grads[i], logits[i], last.slope);
  });
}

void Stepper::forward_all(const Network& network, int from, int segments) {
  for (const Layer& layer : network.layers) {
    if (&layer == &job_.d.layers.back()) {
      judge(from, segments);
      end_phase();
      continue;
    }
    forward(layer, from, segments);
    end_phase();
    if (layer.norm && layer.batches && thread_ == 0) *layer.batches += segments;
  }
}

// --- Backward ---

// From the gradient after `lower`'s dropout and activation to the one before
// them.
void Stepper::differentiate(const Layer& lower, Range features, Range within, int segment) {
  const Field& field = *lower.above;
  const int64_t begin = features.begin, width = features.end - begin;
  const float slope = lower.slope;
  const float scale = lower.drop ? keep_scale(lower.drop_threshold) : 1.f;
  const float inverse = scale > 0 ? 1.f / scale : 0.f;
  with_activation(lower.activation, [&](auto activation) {
    constexpr Activation kind = decltype(activation)::value;
    for (int64_t b = within.begin; b < within.end; ++b) {
      const int64_t at = b * field.stride + begin;
      float* const g = rows(field, field.grads, segment + lower.lift) + at;
      const float* const y = rows(field, field.rows, segment + lower.lift) + at;
      if (lower.drop) {
        const uint8_t* const keep = lower.keep + (segment * job_.padded + b) * lower.out + begin;
        for (int64_t j = 0; j < width; ++j)
          g[j] = keep[j] ? derivative<kind>(g[j] * scale, y[j] * inverse, slope) : 0.f;
      } else {
        for (int64_t j = 0; j < width; ++j) g[j] = derivative<kind>(g[j], y[j], slope);
      }
    }
  });
}

void Stepper::normalise_backward(const Layer& lower, Range features, int segment, bool first) {
  const Field& field = *lower.above;
  const int64_t begin = features.begin, width = features.end - begin;
  float* const grads = rows(field, field.grads, segment + lower.lift) + begin;
  const float* const normed = rows(field, lower.normed, segment) + begin;
  double sums[kBlock] = {}, products[kBlock] = {};
  for (int64_t b = 0; b < batch_; ++b)
    for (int64_t j = 0; j < width; ++j) {
      const double g = grads[b * field.stride + j];
      sums[j] += g;
      products[j] += g * normed[b * field.stride + j];
    }
  float mean[kBlock], slant[kBlock], by[kBlock];
  for (int64_t j = 0; j < width; ++j) {
    float& beta = lower.grad_beta[begin + j];
    float& gamma = lower.grad_gamma[begin + j];
    beta = (first ? 0.f : beta) + static_cast<float>(sums[j]);
    gamma = (first ? 0.f : gamma) + static_cast<float>(products[j]);
    mean[j] = static_cast<float>(sums[j] / static_cast<double>(batch_));
    slant[j] = static_cast<float>(products[j] / static_cast<double>(batch_));
    by[j] = lower.inv_std[segment * lower.out + begin + j] *
            (lower.gamma.value ? lower.gamma.value[begin + j] : 1.f);
  }
  for (int64_t b = 0; b < batch_; ++b) {
    float* const g = grads + b * field.stride;
    const float* const x = normed + b * field.stride;
    for (int64_t j = 0; j < width; ++j) g[j] = by[j] * (g[j] - mean[j] - x[j] * slant[j]);
  }
}

// `from` counts above the lower layer.
void Stepper::finish_grads(const Layer& lower, Range features, int from, int segments) {
  for (int s = 0; s < segments; ++s)
    differentiate(lower, features, {0, batch_}, from + s - lower.lift);
  if (!lower.norm) return;
  for (int64_t f = features.begin; f < features.end; f += kBlock)
    for (int s = 0; s < segments; ++s)
      normalise_backward(lower, {f, smaller(f + kBlock, features.end)}, from + s - lower.lift,
                         s == 0);
}

// Gradients of `layer`'s inputs, taken through `lower`, the layer that made them. `from` is the
// first segment below `layer`. The sum over the outputs is taken in two halves, so that a thread
// meets the rows of the weight again that it used forward: the first goes to its place, the second
// into job_.halves, and sum_backward() adds them up.
void Stepper::backward(const Layer& layer, const Layer& lower, int from, int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  const int64_t n = panels(layer.in);
  const bool summed = layer.middle > 0, whole = lower.norm && !summed;
  const Grid grid = divide(summed ? 2 * n : n, whole ? 1 : segments * blocks_);
  if (grid.idle) return;
  const Range blocks = whole ? Range{0, segments * blocks_} : grid.others;
  for (int half = 0; half < (summed ? 2 : 1); ++half) {
    const Range terms = !summed ? Range{0, layer.out}
                        : half  ? Range{layer.middle, layer.out}
                                : Range{0, layer.middle};
    // Of the cells [half][panel] those of this half.
    const Range cells{larger(grid.features.begin - half * n, 0),
                      smaller(grid.features.end - half * n, n)};
    const Range in = features_of(cells, layer.in);
    rows_product<false>(
        {above.grads, above.stride, from + layer.lift}, terms, {layer.weight.value, layer.in}, in,
        blocks, half ? Rows{job_.halves, below.stride, 0} : Rows{below.grads, below.stride, from},
        [&](Range features, Range done) {
          if (summed || whole) return;
          for (int64_t i = done.begin; i < done.end; ++i) {
            const int64_t row = i % blocks_ * kBlock;
            differentiate(lower, features, {row, row + rows_in(i % blocks_)},
                          from + static_cast<int>(i / blocks_) - lower.lift);
          }
        });
    if (whole) finish_grads(lower, in, from, segments);
  }
}

void add_rows(float* to, const float* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] += from[j];
}

void Stepper::sum_backward(const Layer& layer, const Layer& lower, int from, int segments) {
  const Field& below = *layer.below;
  const auto add = [&](int s, Range within, Range features) {
    float* const to = rows(below, below.grads, from + s);
    const float* const half = rows(below, job_.halves, s);
    for (int64_t i = within.begin; i < within.end; ++i)
      add_rows(to + i * below.stride + features.begin, half + i * below.stride + features.begin,
               length(features));
  };
  if (lower.norm) {
    const Range features = own_features(layer.in);
    for (int s = 0; s < segments; ++s) add(s, {0, batch_}, features);
    finish_grads(lower, features, from, segments);
    return;
  }
  each_own_rows(segments, [&](int s, Range within) {
    add(s, within, {0, layer.in});
    differentiate(lower, {0, layer.in}, within, from + s - lower.lift);
  });
}

// The gradients of one logit's inputs, where judge_rows() could not take them along.
void Stepper::spread_logit_grads(const Layer& layer, const Layer& lower, int from, int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  const auto [begin, end] = own_features(layer.in);
  for (int s = from; s < from + segments; ++s)
    for (int64_t i = 0; i < batch_; ++i) {
      const float grad = rows(above, above.grads, s)[i * above.stride];
      float* const to = rows(below, below.grads, s) + i * below.stride;
      for (int64_t j = begin; j < end; ++j) to[j] = grad * layer.weight.value[j];
    }
  finish_grads(lower, {begin, end}, from, segments);
}

// From the network's last layer down to the gradients of the field `stop`.
void Stepper::backward_all(const Network& network, const Field* stop, int from, int segments) {
  const std::vector<Layer>& layers = network.layers;
  for (size_t l = layers.size(); l-- > 0 && layers[l].below != stop;) {
    const Layer& layer = layers[l];
    const Layer& lower = l ? layers[l - 1] : job_.g.layers.back();
    if (&layer == &job_.d.layers.back()) {
      if (judges_backward(job_)) continue;
      spread_logit_grads(layer, lower, from, segments);
      end_phase();
      continue;
    }
    backward(layer, lower, from, segments);
    end_phase();
    if (layer.middle > 0) {
      sum_backward(layer, lower, from, segments);
      end_phase();
    }
  }
}

// --- Update ---

void Stepper::apply(const Adam<float>& adam, const Parameter& p, int64_t at, int64_t n,
                    const float* __restrict grad) const {
  const Adam<float> constants = adam;
  float* __restrict value = p.value + at;
  float* __restrict exp_avg = p.exp_avg + at;
  float* __restrict exp_avg_sq = p.exp_avg_sq + at;
  int64_t i = 0;
#if FASTGAN_APPROXIMATIONS
  for (; i + kFloats <= n; i += kFloats)
    adam_vector(constants, grad + i, value + i, exp_avg + i, exp_avg_sq + i);
#endif
  for (; i < n; ++i) adam_update(constants, grad[i], value[i], exp_avg[i], exp_avg_sq[i]);
  if (p.average) {
    const float share = static_cast<float>(1.0 - job_.average_decay);
    float* __restrict average = p.average + at;
    for (int64_t j = 0; j < n; ++j) average[j] += share * (value[j] - average[j]);
  }
}

// How much of a weight's gradient is held in the scratch, and after how many terms of the sum.
struct Stepper::Held {
  int64_t rows, columns, stride;
};
#if FASTGAN_PRODUCTS

Stepper::Held Stepper::held(int64_t) const {
  return {kSizes.held_rows, kSizes.held_columns, kSizes.held_columns + 16};
}

// The gradient of some rows and columns of a weight, summed over the segments.
void Stepper::weight_grads(const Layer& layer, const Held& held, Range out, Range in, int from,
                           int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  uint16_t* const left = reinterpret_cast<uint16_t*>(scratch_);
  uint16_t* const right = reinterpret_cast<uint16_t*>(scratch_ + kSizes.left);
  float* const grads = scratch_ + kSizes.left + kSizes.right;
  const int64_t height = length(out), across = panels(length(in));
  // A block of the batch is a chunk of the sum.
  const Pieces pieces({0, segments * blocks_}, kSizes.depth / kBlock, 1);
  const auto row_of = [&](const float* form, int64_t stride, int64_t block, int lift) {
    return form +
           ((from + lift + block / blocks_) * job_.padded + block % blocks_ * kBlock) * stride;
  };
  for (int64_t piece = 0; piece < pieces.count; ++piece) {
    const Range blocks = pieces[piece];
    const int64_t chunks = length(blocks), tile_row = chunks * kTileParts;
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t block = blocks.begin + i;
      const float* const at = row_of(above.grads, above.stride, block, layer.lift) + out.begin;
      for (int64_t m = 0; m < height; m += 16)
        left_columns(at + m, above.stride, height - m, rows_in(block % blocks_),
                     left + m / 16 * tile_row + i * kTileParts);
    }
    // While a panel is multiplied, the next one is packed.
    int64_t panel = 0, unit = 0;
    const auto pack_right = [&] {
      const int64_t i = unit / 2, block = blocks.begin + i, c = panel * kBlock;
      right_unit<false>(unit % 2, row_of(below.rows, below.stride, block, 0) + in.begin + c,
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
      if (piece == 0)
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

void Stepper::weight_grads(const Layer& layer, const Held& held, Range out, Range in, int from,
                           int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  const int64_t height = length(out);
  // Whole batches in one sum where they lie together, else one after another.
  const bool joined = batch_ == job_.padded;
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
          rows(above, above.grads, from + s + layer.lift) + k * above.stride + out.begin;
      const float* const b = rows(below, below.rows, from + s) + k * below.stride;
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
        if (copied) right_rows(b + c, below.stride, depth, width, packed_b);
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
          if (s == 0 && piece == 0)
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

// Gradients wait in the scratch until Adam runs along their rows: the weights and moments, which
// together outgrow the second-level cache, are then read in the order in which the hardware fetches
// ahead.
void Stepper::update_part(const Layer& layer, const Adam<float>& adam, Range out, Range in,
                          int from, int segments) {
  const bool joined = batch_ == job_.padded;
  const Held hold = held(joined ? segments * batch_ : batch_);
  const float* const grads = scratch_ + kSizes.left + kSizes.right;
  const Pieces heights(out, hold.rows, kTiled ? kBlock : 1);
  const Pieces widths(in, hold.columns, kBlock);
  for (int64_t i = 0; i < heights.count; ++i)
    for (int64_t j = 0; j < widths.count; ++j) {
      const Range f = heights[i], c = widths[j];
      weight_grads(layer, hold, f, c, from, segments);
      for (int64_t m = f.begin; m < f.end; ++m)
        apply(adam, layer.weight, m * layer.in + c.begin, length(c),
              grads + (m - f.begin) * hold.stride);
    }
}

// Bias, gamma and beta.
void Stepper::vector_updates(const Layer& layer, const Adam<float>& adam, Range out, int from,
                             int segments) {
  const Field& above = *layer.above;
  for (int64_t f = out.begin; layer.bias.value && f < out.end; f += kBlock) {
    const int64_t width = smaller(kBlock, out.end - f);
    // As exact as torch's cascade.
    double total[kBlock] = {};
    for (int s = from; s < from + segments; ++s) {
      const float* const g = rows(above, above.grads, s + layer.lift) + f;
      sum_columns(batch_, width, total,
                  [&](int64_t i, int64_t j) { return g[i * above.stride + j]; });
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
    apply(adam, layer.bias, f, width, sum);
  }
  if (layer.gamma.value && length(out) > 0) {
    apply(adam, layer.gamma, out.begin, length(out), layer.grad_gamma + out.begin);
    apply(adam, layer.beta, out.begin, length(out), layer.grad_beta + out.begin);
  }
}

void Stepper::logit_update(const Layer& layer, const Adam<float>& adam, int from, int segments) {
  const Field &above = *layer.above, &below = *layer.below;
  const auto [begin, end] = own_features(layer.in);
  for (int64_t c = begin; c < end; c += kBlock) {
    const int64_t width = smaller(kBlock, end - c);
    double total[kBlock] = {};
    for (int s = from; s < from + segments; ++s) {
      const float* const g = rows(above, above.grads, s);
      const float* const x = rows(below, below.rows, s) + c;
      sum_columns(batch_, width, total, [&](int64_t i, int64_t j) {
        return g[i * above.stride] * x[i * below.stride + j];
      });
    }
    float sum[kBlock];
    for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
    apply(adam, layer.weight, c, width, sum);
  }
  if (thread_ == threads_ - 1) vector_updates(layer, adam, {0, 1}, from, segments);
}

void Stepper::update_all(const Network& network, const Adam<float>& adam, int from, int segments) {
  for (const Layer& layer : network.layers) {
    if (&layer == &job_.d.layers.back()) {
      logit_update(layer, adam, from, segments);
      continue;
    }
    // As in forward(), each thread has its own rows of the weight.
    const Grid grid = divide(panels(layer.out), panels(layer.in));
    if (grid.idle) continue;
    const Range out = features_of(grid.features, layer.out);
    const Range in = features_of(grid.others, layer.in);
    update_part(layer, adam, out, in, from, segments);
    if (in.begin == 0) vector_updates(layer, adam, out, from, segments);
  }
}

// --- The step ---

// The parts are added in the order of the rows, whoever computed them.
float Stepper::mean_loss(int segment) const {
  double sum = 0;
  for (int64_t i = 0; i * kRowUnit < batch_; ++i) sum += job_.loss_parts[segment * job_.units + i];
  return static_cast<float>(sum / static_cast<double>(batch_));
}

// The averaged network takes the statistics over as they are.
void Stepper::copy_statistics(const Layer& layer) const {
  if (layer.average_mean == nullptr) return;
  for (int64_t f = 0; f < layer.out; ++f) {
    layer.average_mean[f] = layer.running_mean[f];
    layer.average_var[f] = layer.running_var[f];
  }
  *layer.average_batches = *layer.batches;
}

void Stepper::run() {
  const int64_t per_epoch = (job_.count + job_.batch - 1) / job_.batch;
  const auto adam = [&](const Network& network, int64_t done, int64_t step, int column) {
    const double lr = job_.rates[(job_.rates_vary ? 2 * step : 0) + column];
    return make_adam<float>(network.updates + done + 1, lr, network.beta1, network.beta2,
                            network.eps, network.weight_decay, network.decoupled);
  };
  start_tiles();
  if (job_.profile) clock_ = seconds();
  for (int64_t i = 0; i < job_.steps; ++i) {
    const int64_t step = job_.first_step + i;
    for (int64_t k = 0; k < job_.d_steps; ++k) {
      const int64_t done = i * job_.d_steps + k, number = step * job_.d_steps + k;
      const bool last = k + 1 == job_.d_steps;
      phase_ = 0;
      batch_ = smaller(job_.batch, job_.count - number % per_epoch * job_.batch);
      blocks_ = (batch_ + kBlock - 1) / kBlock;
      inputs(number, step, last);
      fed_ += batch_;
      end_phase();
      // G does not change before its own update, so both its batches go through
      // it at once.
      forward_all(job_.g, 0, last ? 2 : 1);
      forward_all(job_.d, 0, 2);
      backward_all(job_.d, &job_.images, 0, 2);
      update_all(job_.d, adam(job_.d, done, i, 0), 0, 2);
      end_phase();
      if (thread_ == 0) job_.losses[2 * i] = mean_loss(0) + mean_loss(1);
    }
    forward_all(job_.d, 2, 1);
    backward_all(job_.d, nullptr, 2, 1);
    backward_all(job_.g, &job_.latents, 1, 1);
    update_all(job_.g, adam(job_.g, i, i, 1), 1, 1);
    if (thread_ == 0) {
      job_.losses[2 * i + 1] = mean_loss(2);
      for (const Layer& layer : job_.g.layers) copy_statistics(layer);
    }
    end_phase();
  }
  stop_tiles();
}

}  // namespace

void run_thread(void* job, int thread, Barrier& barrier) {
  Stepper(*static_cast<Job*>(job), thread, barrier).run();
}

}  // namespace fastgan::cpu::step::FASTGAN_VARIANT
