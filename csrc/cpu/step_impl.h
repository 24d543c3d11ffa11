// The phases of a step, compiled once per instruction set: included with
// FASTGAN_VARIANT (a namespace), FASTGAN_VECTOR_BYTES and
// FASTGAN_VECTOR_REGISTERS defined, and FASTGAN_BF16 as 0 (products in
// float32), 1 (in bfloat16 with AVX-512's dot products) or 2 (with AMX). step.h
// states the layout.
//
// As in kernels_impl.h no function of the standard library is called here, and
// every function is in the variant's namespace.

namespace fastgan::cpu::step::FASTGAN_VARIANT {

namespace {

#include "cpu/microkernel.h"

using F = Vector<float>;
constexpr int kFloats = kLanes<float>;

struct Range {
  int64_t begin, end;
};
Range share(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr bool kBf16 = FASTGAN_BF16 > 0;

// Features are shared out in sixteens, so that no two threads write to one
// cache line of a row; for products in bfloat16 in whole panels.
constexpr int64_t kUnit = 16, kShare = kBf16 ? kBlock : kUnit;
int64_t units(int64_t width) { return (width + kShare - 1) / kShare; }
Range features_of(Range shared, int64_t width) {
  return {shared.begin * kShare, smaller(shared.end * kShare, width)};
}

// --- Transposition ---

// One vector out of the lower (Half 0) or upper halves of a and b, alternating.
template <int Half, class V>
FASTGAN_INLINE V interleave(V a, V b) {
  constexpr int n = kFloats, h = Half * kFloats / 2;
  if constexpr (n == 16) {
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3,
                                   n + h + 3, h + 4, n + h + 4, h + 5, n + h + 5, h + 6, n + h + 6,
                                   h + 7, n + h + 7);
  } else if constexpr (n == 8) {
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3,
                                   n + h + 3);
  } else {
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1);
  }
}

// A square of vectors: every round interleaves row i with row i + n / 2, which
// rotates the bits of an element's (row, column) by one place; log2 n rounds
// exchange the two.
FASTGAN_INLINE void transpose_square(const float* from, int64_t from_row, float* to,
                                     int64_t to_row) {
  F a[kFloats], b[kFloats];
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) a[i] = load_vector(from + i * from_row);
#pragma GCC unroll 4
  for (int round = 1; round < kFloats; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kFloats / 2; ++i) {
      b[2 * i] = interleave<0>(a[i], a[i + kFloats / 2]);
      b[2 * i + 1] = interleave<1>(a[i], a[i + kFloats / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) store_vector(to + i * to_row, a[i]);
}

// to[j][i] = from[i][j]; both counts are rounded up to 16, which the fields
// have room for.
void transpose(int64_t rows, int64_t columns, const float* from, int64_t from_row, float* to,
               int64_t to_row) {
  for (int64_t i = 0; i < rows; i += kUnit)
    for (int64_t j = 0; j < columns; j += kUnit)
      for (int64_t u = i; u < i + kUnit; u += kFloats)
        for (int64_t v = j; v < j + kUnit; v += kFloats)
          transpose_square(from + u * from_row + v, from_row, to + v * to_row + u, to_row);
}

// --- Arithmetic on vectors ---

FASTGAN_INLINE F spread(float x) { return x - F{}; }

// NaN passes through both.
FASTGAN_INLINE F at_least(F x, F low) { return x < low ? low : x; }
FASTGAN_INLINE F at_most(F x, F high) { return x > high ? high : x; }

#if FASTGAN_VECTOR_BYTES == 64
// The exact instructions take 16 cycles or more a vector, and wait for nothing
// but themselves.
#  define FASTGAN_APPROXIMATIONS 1
FASTGAN_INLINE F divide(F a, F b) {
  const F q = (F)_mm512_rcp14_ps((__m512)b);
  return a * (q + q * (spread(1.f) - q * b));
}
FASTGAN_INLINE F square_root(F x) {
  const F r = (F)_mm512_rsqrt14_ps((__m512)x);
  const F s = x * r;
  return s + (spread(0.5f) * r) * (x - s * s);
}
#else
#  define FASTGAN_APPROXIMATIONS 0
FASTGAN_INLINE F divide(F a, F b) { return a / b; }
#endif

// math::tanh() on a vector, with its polynomials: an odd one near zero, 1 - 2 /
// (e^2|x| + 1) beyond. The quotient by divide() makes it a quarter faster than
// the loop over the scalar function.
FASTGAN_INLINE F tanh_vector(F x) {
  typedef int32_t Ints __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
  const Ints sign = (Ints)x & (Ints{} + INT32_MIN);
  const F a = (F)((Ints)x & (Ints{} + INT32_MAX));
  const F z = x * x;
  F near = spread(-5.70498872745e-3f);
  near = near * z + spread(2.06390887954e-2f);
  near = near * z + spread(-5.37397155531e-2f);
  near = near * z + spread(1.33314422036e-1f);
  near = near * z + spread(-3.33332819422e-1f);
  near = x + x * z * near;
  // Beyond 10 the result is 1 to the last place.
  const F twice = at_most(a + a, spread(20.f));
  const F shifted = twice * spread(1.44269504f) + spread(12582912.f);
  const F n = shifted - spread(12582912.f);
  const F r = (twice - n * spread(0.693359375f)) - n * spread(-2.12194440e-4f);
  F p = spread(1.9875691500e-4f);
  p = p * r + spread(1.3981999507e-3f);
  p = p * r + spread(8.3334519073e-3f);
  p = p * r + spread(4.1665795894e-2f);
  p = p * r + spread(1.6666665459e-1f);
  p = p * r + spread(5.0000001201e-1f);
  const F y = p * (r * r) + (r + spread(1.f));
  const F e = (F)((Ints)y + (Ints)((Ints)shifted << 23));
  const F far = spread(1.f) - divide(spread(2.f), e + spread(1.f));
  return a < spread(0.625f) ? near : (F)((Ints)far | sign);
}

// --- Activations ---

// Calls f with the activation as a constant, so that no loop over elements
// holds a switch.
template <Activation Value>
struct Constant {
  static constexpr Activation value = Value;
};
template <class Use>
FASTGAN_INLINE void with_activation(Activation activation, Use use) {
  switch (activation) {
    case Activation::none:
      return use(Constant<Activation::none>{});
    case Activation::leaky_relu:
      return use(Constant<Activation::leaky_relu>{});
    case Activation::tanh:
      return use(Constant<Activation::tanh>{});
    case Activation::sigmoid:
      return use(Constant<Activation::sigmoid>{});
    case Activation::elu:
      return use(Constant<Activation::elu>{});
  }
}

template <Activation A>
FASTGAN_INLINE float activate(float x, float slope) {
  if constexpr (A == Activation::leaky_relu) return leaky_relu(x, slope);
  if constexpr (A == Activation::sigmoid) return sigmoid(x);
  if constexpr (A == Activation::elu) return elu(x, slope);
  return x;
}

// The derivative in terms of the output y.
template <Activation A>
FASTGAN_INLINE float derivative(float grad, float y, float slope) {
  if constexpr (A == Activation::leaky_relu) return leaky_relu_grad(grad, y, slope);
  if constexpr (A == Activation::tanh) return tanh_grad(grad, y);
  if constexpr (A == Activation::sigmoid) return sigmoid_grad(grad, y);
  if constexpr (A == Activation::elu) return elu_grad(grad, y, slope);
  return grad;
}

#if FASTGAN_BF16
#  include "cpu/step_bf16.h"
#else
FASTGAN_INLINE void start_tiles() {}
FASTGAN_INLINE void stop_tiles() {}
#endif

// A read that the compiler may not drop.
FASTGAN_INLINE void keep_value(float x) {
#if defined(__x86_64__)
  asm volatile("" : : "x"(x));
#else
  asm volatile("" : : "r"(x));
#endif
}

// Reads rows once in the order of memory. About half of them were written by other threads, and
// only in this order does the hardware fetch ahead from their caches; panel by panel each line
// would cost a round trip between the cores.
constexpr int64_t kResident = 1 << 20;  // what stays in the second-level cache
void gather_rows(const float* from, int64_t stride, int64_t count, int64_t width) {
  if (count * width * 4 > kResident) return;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < width; j += kUnit) keep_value(from[i * stride + j]);
}

// --- Pieces of long sums ---

// Long sums are taken in even pieces, so that the panel of B at hand stays in
// the first-level cache; the partial sums wait in C.
int64_t pieces_of(int64_t terms) { return (terms + kDepth - 1) / kDepth; }

// What is read next lies in rows far apart, where no hardware looks ahead:
// kAhead rows are fetched before each tile.
constexpr int kAhead = 64;
FASTGAN_INLINE void fetch_line_pair(const float* p) {
  __builtin_prefetch(p);
  __builtin_prefetch(p + kUnit);
}

void copy_panel(const float* from, int64_t stride, int64_t rows, int64_t width, float* to) {
  for (int64_t k = 0; k < rows; ++k, from += stride, to += kBlock) {
    if (width == kBlock) {
      for (int64_t j = 0; j < kBlock; ++j) to[j] = from[j];
    } else {
      for (int64_t j = 0; j < width; ++j) to[j] = from[j];
    }
  }
}

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
  Grid divide(int64_t width, int64_t others, bool whole) const;

  void narrow_weights(const Layer& layer, Range out, Range in) const;
  bool weights_unchanged() const;
  void narrow_values(const Field& field, Range features, int segment, int64_t block) const;
  void narrow_grads(const Field& field, Range features, Range within, int segment) const;

  void inputs(int64_t update, int64_t step, bool last);
  void latents(uint32_t stream, uint64_t step, int segment, int64_t block);
  void mask(const Layer& layer, int use, uint64_t step, int segment, int64_t block);
  void images(int64_t update);

  void forward(const Layer& layer, int from, int segments, bool judge);
  void finish(const Layer& layer, Range features, int segment, int64_t block);
  void activate_block(const Layer& layer, Range features, const float* shift, int segment,
                      int64_t block);
  void normalise(const Layer& layer, Range features, int from, int segments);
  void score(int segment, int64_t block);

  void backward(const Layer& layer, const Layer& lower, int from, int segments);
  Range rows_of(Range blocks, int s) const;
  void differentiate(const Layer& lower, Range features, Range rows, int segment);
  void normalise_backward(const Layer& lower, Range features, int segment, bool first);

  struct Held;
  Held held(int64_t terms) const;
  void weight_grads(const Layer& layer, const Held& held, Range out, Range in, int from,
                    int segments);
  void update(const Layer& layer, const Adam<float>& adam, int from, int segments);
  void apply(const Adam<float>& adam, const Parameter& p, int64_t at, int64_t n,
             const float* grad) const;

  void forward_all(const Network& network, int from, int segments, bool judge);
  float mean_loss(int segment) const;
  void copy_statistics(const Layer& layer) const;
  void end_phase();

  float* columns(const Field& field, int segment, int64_t block) const {
    return field.columns + (segment * job_.blocks + block) * field.block;
  }
  float* rows(const Field& field, float* form, int segment) const {
    return form + segment * job_.padded * field.stride;
  }
  int64_t rows_in(int64_t block) const { return smaller(kBlock, batch_ - block * kBlock); }

  Job& job_;
  const int thread_, threads_;
  Barrier& barrier_;
  float* const scratch_;

  int64_t batch_ = 0, blocks_ = 0;  // of the update at hand
  int64_t fed_ = 0;                 // rows of fed images used so far
  int64_t phase_ = 0;
  double clock_ = 0;
};

// Cuts width x others among the threads: along the features while there are
// enough of them, along both otherwise. With `whole` the others stay together.
Stepper::Grid Stepper::divide(int64_t width, int64_t others, bool whole) const {
  const int64_t n = units(width);
  const int64_t across = smaller(threads_, n);
  const int64_t along = whole ? 1 : smaller(threads_ / across, others);
  if (thread_ >= across * along) return {{0, 0}, {0, 0}, true};
  return {features_of(share(n, thread_ % across, across), width),
          share(others, thread_ / across, along), false};
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

// --- Operands in bfloat16 ---

#if FASTGAN_BF16
// A block of fp32 values [rows][columns] (whole vectors readable) as pairs of
// rows; rows beyond `rows` count as zero.
void to_pairs(const float* from, int64_t stride, int64_t rows, int64_t columns, uint16_t* to) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t j = 0; j < columns; j += kFloats) {
      const float* const x = from + i * stride + j;
      pair_rows(load_vector(x), i + 1 < rows ? load_vector(x + stride) : F{},
                to + (i * kBlock + 2 * j));
    }
}

void Stepper::narrow_weights(const Layer& layer, Range out, Range in) const {
  const int64_t depth = layer.below->depth, pairs = layer.above->depth;
  alignas(64) float block[kBlock * kBlock];
  for (int64_t f = out.begin; f < out.end; f += kBlock)
    for (int64_t c = in.begin; c < in.end; c += kBlock) {
      const int64_t rows = smaller(kBlock, out.end - f), width = smaller(kBlock, in.end - c);
      const float* from = layer.weight.value + f * layer.in + c;
      int64_t stride = layer.in;
      if (width < kBlock) {  // a copy with zeros beyond the last column
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < kBlock; ++j)
            block[i * kBlock + j] = j < width ? from[i * stride + j] : 0.f;
        from = block;
        stride = kBlock;
      }
      for (int64_t i = 0; i < rows; ++i)
        store_row(load_vector(from + i * stride), load_vector(from + i * stride + kFloats),
                  layer.weight_rows + (f + i) * depth + c);
      to_pairs(from, stride, rows, kBlock, layer.weight_pairs + c * pairs + f * kBlock);
    }
}

// Whether the copies are still those of the weights, going by one value in 257:
// the caller has no reason to doubt it, but a weight may be changed in ways
// that leave no trace.
bool Stepper::weights_unchanged() const {
  for (const Network* network : {&job_.g, &job_.d})
    for (const Layer& layer : network->layers) {
      const int64_t depth = layer.below->depth;
      for (int64_t i = 0; i < layer.out * layer.in; i += 257) {
        const uint16_t copy = layer.weight_rows[i / layer.in * depth + i % layer.in];
        if (narrow_bf16(layer.weight.value[i]).bits != copy) return false;
      }
    }
  return true;
}

void Stepper::narrow_values(const Field& field, Range features, int segment, int64_t block) const {
  const int64_t begin = features.begin, width = features.end - begin;
  to_pairs(columns(field, segment, block) + begin * kBlock, kBlock, width, kBlock,
           field.column_pairs + ((segment * job_.blocks + block) * field.depth + begin) * kBlock);
  const float* const from = rows(field, field.rows, segment) + block * kBlock * field.stride;
  const int64_t at = segment * job_.padded + block * kBlock;
  for (int64_t c = begin; c < features.end; c += kBlock)
    to_pairs(from + c, field.stride, kBlock, kBlock,
             field.row_pairs + c * field.total + at * kBlock);
}

// Rows beyond the batch become zeros, so that sums may run over whole blocks.
void Stepper::narrow_grads(const Field& field, Range features, Range within, int segment) const {
  const int64_t begin = features.begin, width = features.end - begin;
  alignas(64) float block[kBlock * kBlock], turned[kBlock * kBlock];
  for (int64_t b = within.begin; b < within.end; b += kBlock) {
    const int64_t valid = smaller(kBlock, within.end - b);
    const float* const from = rows(field, field.grads, segment) + b * field.stride + begin;
    for (int64_t i = 0; i < kBlock; ++i)
      for (int64_t j = 0; j < kBlock; ++j)
        block[i * kBlock + j] = i < valid && j < width ? from[i * field.stride + j] : 0.f;
    transpose(kBlock, kBlock, block, kBlock, turned, kBlock);
    const int64_t at = segment * job_.padded + b;
    for (int64_t i = 0; i < kBlock; ++i) {
      const float* const line = block + i * kBlock;
      store_row(load_vector(line), load_vector(line + kFloats),
                field.grad_rows + (at + i) * field.depth + begin);
      const float* const other = turned + i * kBlock;
      store_row(load_vector(other), load_vector(other + kFloats),
                field.grad_columns + (begin + i) * field.total + at);
    }
  }
}
#else
void Stepper::narrow_values(const Field&, Range, int, int64_t) const {}
void Stepper::narrow_grads(const Field&, Range, Range, int) const {}
void Stepper::narrow_weights(const Layer&, Range, Range) const {}
bool Stepper::weights_unchanged() const { return true; }
#endif

// --- Inputs: latents, masks, images ---

// A block of 32 rows begins at a multiple of 4 words and of 8 halves of words,
// whatever the width, so each block draws its own part of the stream.
void Stepper::latents(uint32_t stream, uint64_t step, int segment, int64_t block) {
  const Field& z = job_.latents;
  float* const lines = scratch_;
  const int64_t at = block * kBlock * z.width;
  kernels().philox_normal(make_philox(job_.seed, stream, step), at, kBlock * z.width, lines);
  float* const to = rows(z, z.rows, segment) + block * kBlock * z.stride;
  for (int64_t i = 0; i < kBlock; ++i)
    for (int64_t j = 0; j < z.width; ++j) to[i * z.stride + j] = lines[i * z.width + j];
  transpose(kBlock, z.width, to, z.stride, columns(z, segment, block), kBlock);
  narrow_values(z, {0, z.width}, segment, block);
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
  // Four bytes travel as one float: the transposition only moves them.
  const int64_t words = (width + 63) / 64 * 16;
  float* const to = reinterpret_cast<float*>(layer.keep_columns) +
                    (segment * job_.blocks + block) * words * kBlock;
  const int64_t whole = width / 64 * 16;
  const float* const from = reinterpret_cast<const float*>(keep);
  if (layer.drop_threshold == 0) __builtin_memset(keep, 0, static_cast<size_t>(kBlock * width));
  if (width % 4 == 0) {
    for (int64_t i = 0; i < kBlock; i += kFloats)
      for (int64_t j = 0; j < whole; j += kFloats)
        transpose_square(from + i * (width / 4) + j, width / 4, to + j * kBlock + i, kBlock);
  }
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(to);
  for (int64_t j = width % 4 ? 0 : whole * 4; j < width; ++j)
    for (int64_t i = 0; i < kBlock; ++i)
      bytes[(j / 4 * kBlock + i) * 4 + j % 4] = keep[i * width + j];
}

constexpr int64_t kFetchImages = 4;

void Stepper::images(int64_t update) {
  const Field& x = job_.images;
  const int64_t per_epoch = (job_.count + job_.batch - 1) / job_.batch;
  const int64_t first = job_.first_step * job_.d_steps / per_epoch;
  const int64_t* const order = job_.order ? job_.order + (update / per_epoch - first) * job_.count +
                                                update % per_epoch * job_.batch
                                          : nullptr;
  const Grid grid = divide(x.width, blocks_, false);
  if (grid.idle) return;
  const int64_t begin = grid.features.begin, width = grid.features.end - begin;
  for (int64_t block = grid.others.begin; block < grid.others.end; ++block) {
    float* const to = rows(x, x.rows, 0) + block * kBlock * x.stride + begin;
    for (int64_t i = 0; i < rows_in(block); ++i) {
      const int64_t row = block * kBlock + i;
      const int64_t from = (order ? order[row] : fed_ + row) * x.width + begin;
      float* const line = to + i * x.stride;
      if (job_.bytes) {
        const uint8_t* const bytes = job_.bytes + from;
        // Images lie anywhere in memory; a few of them are on their way at a
        // time.
        if (order && i + kFetchImages < rows_in(block)) {
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
    transpose(kBlock, width, to, x.stride, columns(x, 0, block) + begin * kBlock, kBlock);
    narrow_values(x, grid.features, 0, block);
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

// --- Forward ---

// Bias, activation and dropout on the products of one block of columns,
// [features][32].
void Stepper::activate_block(const Layer& layer, Range features, const float* shift, int segment,
                             int64_t block) {
  float* const out = columns(*layer.above, segment + layer.lift, block);
  const float* const scale = layer.norm ? layer.gamma.value : nullptr;
  const float slope = layer.slope;
  const uint32_t* const keep = layer.drop
                                   ? layer.keep_columns + (segment * job_.blocks + block) *
                                                              ((layer.out + 63) / 64 * 16) * kBlock
                                   : nullptr;
  const float kept = layer.drop ? keep_scale(layer.drop_threshold) : 1.f;
  with_activation(layer.activation, [&](auto activation) {
    for (int64_t f = features.begin; f < features.end; ++f) {
      float* const x = out + f * kBlock;
      const float by = scale ? scale[f] : 1.f, plus = shift ? shift[f] : 0.f;
      if constexpr (decltype(activation)::value == Activation::tanh) {
        for (int64_t j = 0; j < kBlock; j += kFloats)
          store_vector(x + j, tanh_vector(load_vector(x + j) * spread(by) + spread(plus)));
      } else {
        for (int64_t j = 0; j < kBlock; ++j)
          x[j] = activate<decltype(activation)::value>(x[j] * by + plus, slope);
      }
      if (keep) {
        const uint32_t* const words = keep + f / 4 * kBlock;
        const uint32_t bits = 0xffu << (f % 4 * 8);
        for (int64_t j = 0; j < kBlock; ++j) x[j] = words[j] & bits ? x[j] * kept : 0.f;
      }
    }
  });
}

void Stepper::finish(const Layer& layer, Range features, int segment, int64_t block) {
  const Field& field = *layer.above;
  activate_block(layer, features, layer.norm ? layer.beta.value : layer.bias.value, segment, block);
  transpose(features.end - features.begin, kBlock,
            columns(field, segment + layer.lift, block) + features.begin * kBlock, kBlock,
            rows(field, field.rows, segment + layer.lift) + block * kBlock * field.stride +
                features.begin,
            field.stride);
  narrow_values(field, features, segment + layer.lift, block);
}

// Sum over the 32 positions of a column block in a fixed order.
FASTGAN_INLINE double sum_block(const float* x) {
  double sum = 0;
  for (int64_t j = 0; j < kBlock; ++j) sum += x[j];
  return sum;
}

// Batch statistics per feature, then everything that finish() does. `features`
// is a few dozen, so the values stay in the first-level cache between the
// passes.
void Stepper::normalise(const Layer& layer, Range features, int from, int segments) {
  const Field& field = *layer.above;
  const double n = static_cast<double>(batch_);
  for (int segment = from; segment < from + segments; ++segment) {
    for (int64_t f = features.begin; f < features.end; ++f) {
      const float bias = layer.bias.value ? layer.bias.value[f] : 0.f;
      float sums[kBlock] = {}, squares[kBlock] = {};
      for (int64_t block = 0; block < blocks_; ++block) {
        float* const x = columns(field, segment + layer.lift, block) + f * kBlock;
        const int64_t valid = rows_in(block);
        for (int64_t j = 0; j < kBlock; ++j) x[j] += bias;
        for (int64_t j = 0; j < kBlock; ++j) sums[j] += j < valid ? x[j] : 0.f;
      }
      const double mean = sum_block(sums) / n;
      const float centre = static_cast<float>(mean);
      for (int64_t block = 0; block < blocks_; ++block) {
        const float* const x = columns(field, segment + layer.lift, block) + f * kBlock;
        const int64_t valid = rows_in(block);
        for (int64_t j = 0; j < kBlock; ++j) {
          const float d = j < valid ? x[j] - centre : 0.f;
          squares[j] += d * d;
        }
      }
      const double variance = sum_block(squares) / n;
      const float inv_std = static_cast<float>(1.0 / __builtin_sqrt(variance + layer.norm_eps));
      layer.inv_std[segment * layer.out + f] = inv_std;
      for (int64_t block = 0; block < blocks_; ++block) {
        float* const x = columns(field, segment + layer.lift, block) + f * kBlock;
        for (int64_t j = 0; j < kBlock; ++j) x[j] = (x[j] - centre) * inv_std;
      }
      if (layer.running_mean) {
        const double batches = static_cast<double>(*layer.batches + segment - from + 1);
        const double share = layer.norm_momentum < 0 ? 1.0 / batches : layer.norm_momentum;
        float& m = layer.running_mean[f];
        float& v = layer.running_var[f];
        m = static_cast<float>((1 - share) * m + share * mean);
        v = static_cast<float>((1 - share) * v + share * (variance * n / (n - 1)));
      }
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      transpose(features.end - features.begin, kBlock,
                columns(field, segment + layer.lift, block) + features.begin * kBlock, kBlock,
                rows(field, layer.normed, segment) + block * kBlock * field.stride + features.begin,
                field.stride);
      finish(layer, features, segment, block);
    }
  }
}

// Features go through in groups whose columns stay in the first-level cache.
constexpr int64_t kGroup = kBf16 ? 4 * kBlock : 7 * kUnit;

void Stepper::forward(const Layer& layer, int from, int segments, bool judge) {
  const Grid grid = divide(layer.out, segments * blocks_, layer.norm);
  if (grid.idle) return;
  const auto cell = [&](Range group, int64_t i) {
    const int64_t f = group.begin;
    const int segment = from + static_cast<int>(i / blocks_);
    const int64_t block = i % blocks_;
    float* const to = columns(*layer.above, segment + layer.lift, block) + f * kBlock;
#if FASTGAN_BF16
    const Field& below = *layer.below;
    product16<false>(group.end - f, below.depth, layer.weight_rows + f * below.depth, below.depth,
                     below.column_pairs + (segment * job_.blocks + block) * below.depth * kBlock,
                     to, kBlock);
#else
    const float* const weight = layer.weight.value + f * layer.in;
    const float* const x = columns(*layer.below, segment, block);
    const int64_t pieces = pieces_of(layer.in);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const auto [k, end] = share(layer.in, piece, pieces);
      if (piece == 0)
        product<false>(group.end - f, rows_in(block), end - k, weight + k, layer.in, 1,
                       x + k * kBlock, kBlock, to, kBlock);
      else
        product<true>(group.end - f, rows_in(block), end - k, weight + k, layer.in, 1,
                      x + k * kBlock, kBlock, to, kBlock);
    }
#endif
    if (!layer.norm) finish(layer, group, segment, block);
    if (judge) score(segment, block);
  };
  const auto each_group = [&](auto use) {
    for (int64_t f = grid.features.begin; f < grid.features.end; f += kGroup)
      use(Range{f, smaller(f + kGroup, grid.features.end)});
  };
#if !FASTGAN_BF16
  // Rows a multiple of 2 KiB apart fall into one or two sets of the first-level
  // cache, too few for a tile of them: such weights are copied together piece
  // by piece, for all blocks at once.
  if (layer.in % 512 == 0) {
    constexpr int64_t stride = kDepth + kUnit;
    static_assert(kHeldRows * stride <= kScratch && kGroup <= kHeldRows);
    each_group([&](Range group) {
      const int64_t pieces = pieces_of(layer.in), height = group.end - group.begin;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const auto [k, end] = share(layer.in, piece, pieces);
        for (int64_t m = 0; m < height; ++m) {
          const float* const row = layer.weight.value + (group.begin + m) * layer.in + k;
          for (int64_t j = 0; j < end - k; ++j) scratch_[m * stride + j] = row[j];
        }
        for (int64_t i = grid.others.begin; i < grid.others.end; ++i) {
          const int segment = from + static_cast<int>(i / blocks_);
          const int64_t block = i % blocks_;
          const float* const x = columns(*layer.below, segment, block) + k * kBlock;
          float* const to =
              columns(*layer.above, segment + layer.lift, block) + group.begin * kBlock;
          if (piece == 0)
            product<false>(height, rows_in(block), end - k, scratch_, stride, 1, x, kBlock, to,
                           kBlock);
          else
            product<true>(height, rows_in(block), end - k, scratch_, stride, 1, x, kBlock, to,
                          kBlock);
          if (piece + 1 == pieces && !layer.norm) finish(layer, group, segment, block);
          if (piece + 1 == pieces && judge) score(segment, block);
        }
      }
      if (layer.norm) normalise(layer, group, from, segments);
    });
    return;
  }
#endif
  // Weights that stay in the second-level cache meet one block of the batch
  // after another; larger ones are gone through once, a group of rows meeting
  // all blocks.
  const int64_t bytes = (grid.features.end - grid.features.begin) * layer.in * 4;
  if (!layer.norm && bytes <= kResident) {
    for (int64_t i = grid.others.begin; i < grid.others.end; ++i)
      each_group([&](Range group) { cell(group, i); });
    return;
  }
  each_group([&](Range group) {
    for (int64_t i = grid.others.begin; i < grid.others.end; ++i) cell(group, i);
    if (layer.norm) normalise(layer, group, from, segments);
  });
}

// Losses of one block of logits, and their gradients as the last field's
// gradient rows.
void Stepper::score(int segment, int64_t block) {
  const Layer& last = job_.d.layers.back();
  const Field& field = *last.above;
  const float* const logits = columns(field, segment, block);
  const int64_t n = rows_in(block);
  const double scale = 1.0 / static_cast<double>(batch_);
  float grads[kBlock];
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
  job_.loss_parts[segment * job_.blocks + block] = loss;
  float* const to = rows(field, field.grads, segment) + block * kBlock * field.stride;
  with_activation(last.activation, [&](auto activation) {
    for (int64_t i = 0; i < n; ++i)
      to[i * field.stride] =
          derivative<decltype(activation)::value>(grads[i], logits[i], last.slope);
  });
  narrow_grads(field, {0, 1}, {block * kBlock, block * kBlock + n}, segment);
}

void Stepper::forward_all(const Network& network, int from, int segments, bool judge) {
  for (const Layer& layer : network.layers) {
    forward(layer, from, segments, judge && &layer == &network.layers.back());
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

// The rows of segment s among the blocks counted over all segments.
Range Stepper::rows_of(Range blocks, int s) const {
  const int64_t first = s * blocks_;
  const int64_t begin = (blocks.begin > first ? blocks.begin - first : 0) * kBlock;
  const int64_t end = smaller(smaller(blocks.end - first, blocks_) * kBlock, batch_);
  return {begin, end > begin ? end : begin};
}

// Gradients of `layer`'s inputs, taken through `lower`, the layer that made
// them. `from` is the first segment above; `lower` counts its own.
void Stepper::backward(const Layer& layer, const Layer& lower, int from, int segments) {
  const Field& above = *layer.above;
  const Field& below = *layer.below;
  const Grid grid = divide(layer.in, segments * blocks_, lower.norm);
  if (grid.idle) return;
  if (!kBf16 && threads_ > 1)
    gather_rows(layer.weight.value + grid.features.begin, layer.in, layer.out,
                grid.features.end - grid.features.begin);
  for (int64_t c = grid.features.begin; c < grid.features.end; c += kBlock) {
    const Range panel{c, smaller(c + kBlock, grid.features.end)};
    const int64_t width = panel.end - c;
#if FASTGAN_BF16
    for (int s = 0; s < segments; ++s) {
      const Range mine = rows_of(grid.others, s);
      const int segment = from + s;
      product16<false>(
          mine.end - mine.begin, above.depth,
          above.grad_rows + ((segment + layer.lift) * job_.padded + mine.begin) * above.depth,
          above.depth, layer.weight_pairs + c * above.depth,
          rows(below, below.grads, segment) + mine.begin * below.stride + c, below.stride);
    }
#else
    const int64_t pieces = pieces_of(layer.out);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const auto [k, end] = share(layer.out, piece, pieces);
      const int64_t depth = end - k;
      copy_panel(layer.weight.value + k * layer.in + c, layer.in, depth, width, scratch_);
      // What the next round reads lies far apart in memory, where no hardware
      // looks ahead.
      const bool last = piece + 1 == pieces;
      const int64_t next_c = last ? c + kBlock : c;
      const Range ahead =
          next_c < grid.features.end ? share(layer.out, last ? 0 : piece + 1, pieces) : Range{0, 0};
      int64_t fetched = ahead.begin;
      for (int s = 0; s < segments; ++s) {
        const Range mine = rows_of(grid.others, s);
        const int segment = from + s;
        const float* const a = rows(above, above.grads, segment + layer.lift) + k;
        float* const to = rows(below, below.grads, segment) + c;
        for (int64_t b = mine.begin; b < mine.end; b += kTileRows) {
          const int64_t height = smaller(kTileRows, mine.end - b);
          for (int i = 0; i < kAhead && fetched < ahead.end; ++i, ++fetched)
            fetch_line_pair(layer.weight.value + fetched * layer.in + next_c);
          if (last)
            for (int64_t i = b; i < b + height; ++i)
              fetch_line_pair(rows(below, below.rows, segment) + i * below.stride + c);
          if (k == 0)
            product<false>(height, width, depth, a + b * above.stride, above.stride, 1, scratch_,
                           kBlock, to + b * below.stride, below.stride);
          else
            product<true>(height, width, depth, a + b * above.stride, above.stride, 1, scratch_,
                          kBlock, to + b * below.stride, below.stride);
        }
      }
    }
#endif
    for (int s = 0; s < segments; ++s) {
      const int segment = from + s - lower.lift;
      differentiate(lower, panel, rows_of(grid.others, s), segment);
      if (lower.norm) normalise_backward(lower, panel, segment, s == 0);
      narrow_grads(below, panel, rows_of(grid.others, s), from + s);
    }
  }
}

// --- Update ---

// adam_update() on whole vectors, with a square root and a quotient made from
// the processor's approximations by one step of Newton's method each:
// within 1.5 units in the last place.
#if FASTGAN_APPROXIMATIONS
FASTGAN_INLINE void adam_vector(const Adam<float>& a, const float* grad, float* value,
                                float* exp_avg, float* exp_avg_sq) {
  const F w = load_vector(value) * spread(a.shrink);
  const F g = load_vector(grad) + spread(a.l2) * w;
  const F m = spread(a.beta1) * load_vector(exp_avg) + spread(a.one_minus_beta1) * g;
  const F v = spread(a.beta2) * load_vector(exp_avg_sq) + spread(a.one_minus_beta2) * (g * g);
  store_vector(exp_avg, m);
  store_vector(exp_avg_sq, v);
  // Of zero the approximation is infinite; the smallest normal number has a
  // root far below eps.
  const F x = at_least(v, spread(1.17549435e-38f));
  const F root = square_root(x);
  const F d = root * spread(a.inverse_root) + spread(a.eps);
  store_vector(value, w - divide(spread(a.step_size) * m, d));
}
#endif

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

// How much of a weight's gradient is held in the scratch. Short sums: one tile
// high and long, because Adam likes long rows. Long sums: many tiles high, so
// that what is read for a panel of columns serves them all; both operands of a
// piece of the sum are then copied together behind the gradient.
struct Stepper::Held {
  int64_t rows, columns, stride;
};
Stepper::Held Stepper::held(int64_t terms) const {
  constexpr int64_t longest = 1024;
  static_assert(kBlock * (longest + kUnit) <= kScratch);
  if (kBf16) return {kBlock, longest, longest + kUnit};
  if (pieces_of(terms) == 1) return {kTileRows, longest, longest + kUnit};
  return {kHeldTiles * kTileRows, kHeldColumns, kHeldColumns + kUnit};
}

// The gradient of some rows and columns of a weight, summed over the segments,
// into the scratch.
void Stepper::weight_grads(const Layer& layer, const Held& held, Range out, Range in, int from,
                           int segments) {
  const Field& above = *layer.above;
  const Field& below = *layer.below;
  const int64_t height = out.end - out.begin;
  // Whole batches in one sum where they lie together, else one after another.
  const bool joined = batch_ == job_.padded;
  const int sums = joined ? 1 : segments;
#if FASTGAN_BF16
  const int64_t terms = joined ? segments * batch_ : blocks_ * kBlock;
  for (int64_t c = in.begin; c < in.end; c += kBlock)
    for (int s = 0; s < sums; ++s) {
      const int64_t at = (from + s) * job_.padded;
      const uint16_t* const a =
          above.grad_columns + out.begin * above.total + layer.lift * job_.padded + at;
      const uint16_t* const b = below.row_pairs + c * below.total + at * kBlock;
      float* const to = scratch_ + (c - in.begin);
      if (s == 0)
        product16<false>(height, terms, a, above.total, b, to, held.stride);
      else
        product16<true>(height, terms, a, above.total, b, to, held.stride);
    }
#else
  const int64_t terms = joined ? segments * batch_ : batch_;
  const int64_t pieces = pieces_of(terms);
  float* const packed_a = scratch_ + kHeldRows * (kHeldColumns + kUnit);
  float* const packed_b = packed_a + kHeldTiles * kDepth * kUnit;
  for (int s = 0; s < sums; ++s)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const auto [k, end] = share(terms, piece, pieces);
      const int64_t depth = end - k;
      const float* const a =
          rows(above, above.grads, from + s + layer.lift) + k * above.stride + out.begin;
      const float* const b = rows(below, below.rows, from + s) + k * below.stride;
      // Copies pay where many rows are summed: read in place, each would cost a
      // page table look-up and more for every tile.
      const bool copied = pieces > 1;
      if (copied) {
        float* to = packed_a;
        each_tile(height, [&](long first, int) {
          for (int64_t i = 0; i < depth; ++i)
            for (int64_t j = 0; j < kUnit; j += kFloats)
              store_vector(to + i * kUnit + j, load_vector(a + i * above.stride + first + j));
          to += kDepth * kUnit;
        });
      }
      for (int64_t c = in.begin; c < in.end; c += kBlock) {
        const int64_t width = smaller(kBlock, in.end - c);
        if (copied) copy_panel(b + c, below.stride, depth, width, packed_b);
        const float* const panel = copied ? packed_b : b + c;
        const int64_t panel_row = copied ? kBlock : below.stride;
        const int64_t a_column = copied ? kUnit : above.stride;
        int64_t fetched = copied && c + kBlock < in.end ? 0 : depth;
        int64_t number = 0;
        each_tile(height, [&](long first, int rows_here) {
          for (int i = 0; i < kAhead && fetched < depth; ++i, ++fetched)
            fetch_line_pair(b + fetched * below.stride + c + kBlock);
          const float* const tile_a = copied ? packed_a + number++ * kDepth * kUnit : a + first;
          float* const to = scratch_ + first * held.stride + (c - in.begin);
          if (s == 0 && piece == 0)
            product<false>(rows_here, width, depth, tile_a, 1, a_column, panel, panel_row, to,
                           held.stride);
          else
            product<true>(rows_here, width, depth, tile_a, 1, a_column, panel, panel_row, to,
                          held.stride);
        });
      }
    }
#endif
}

constexpr int64_t kShort = 8;

void Stepper::update(const Layer& layer, const Adam<float>& adam, int from, int segments) {
  const Field& above = *layer.above;
  const Grid grid = divide(layer.out, units(layer.in), false);
  if (grid.idle) return;
  const Range columns = features_of(grid.others, layer.in);
  // Gradients wait in the scratch until Adam runs along their rows: the weights
  // and moments, which together outgrow the second-level cache, are then read
  // in the order in which the hardware fetches ahead.
  const bool joined = batch_ == job_.padded;
  const Held hold = held(joined ? segments * batch_ : batch_);
  const int64_t mine = grid.features.end - grid.features.begin;
  const int64_t rounds = (mine + hold.rows - 1) / hold.rows;
  if (!kBf16 && threads_ > 1) {
    for (int segment = from; segment < from + segments; ++segment)
      gather_rows(rows(*layer.below, layer.below->rows, segment) + columns.begin,
                  layer.below->stride, batch_, columns.end - columns.begin);
  }
  for (int64_t round = 0, f = grid.features.begin; f < grid.features.end; ++round) {
    // Even rounds; whole blocks for products in bfloat16.
    const int64_t height = kBf16 ? smaller(hold.rows, grid.features.end - f)
                                 : mine * (round + 1) / rounds - mine * round / rounds;
    for (int64_t c = columns.begin; c < columns.end; c += hold.columns) {
      const int64_t width = smaller(hold.columns, columns.end - c);
      weight_grads(layer, hold, {f, f + height}, {c, c + width}, from, segments);
      for (int64_t m = 0; m < height; ++m)
        apply(adam, layer.weight, (f + m) * layer.in + c, width, scratch_ + m * hold.stride);
      if (kBf16) narrow_weights(layer, {f, f + height}, {c, c + width});
    }
    f += height;
  }
  if (columns.begin > 0) return;
  if (layer.bias.value) {
    for (int64_t f = grid.features.begin; f < grid.features.end; f += kBlock) {
      const int64_t width = smaller(kBlock, grid.features.end - f);
      // Short sums in float, their sum in double: as exact as torch's cascade.
      double total[kBlock] = {};
      for (int s = 0; s < segments; ++s) {
        const float* const g = rows(above, above.grads, from + s + layer.lift) + f;
        for (int64_t first = 0; first < batch_; first += kShort) {
          float part[kBlock] = {};
          for (int64_t b = first; b < smaller(first + kShort, batch_); ++b)
            for (int64_t j = 0; j < width; ++j) part[j] += g[b * above.stride + j];
          for (int64_t j = 0; j < width; ++j) total[j] += static_cast<double>(part[j]);
        }
      }
      float sum[kBlock];
      for (int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(total[j]);
      apply(adam, layer.bias, f, width, sum);
    }
  }
  if (layer.gamma.value) {
    const int64_t f = grid.features.begin, width = grid.features.end - f;
    apply(adam, layer.gamma, f, width, layer.grad_gamma + f);
    apply(adam, layer.beta, f, width, layer.grad_beta + f);
  }
}

// --- The step ---

// The parts are added in the order of the blocks, whoever computed them.
float Stepper::mean_loss(int segment) const {
  double sum = 0;
  for (int64_t block = 0; block < blocks_; ++block)
    sum += job_.loss_parts[segment * job_.blocks + block];
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
  const std::vector<Layer>&g = job_.g.layers, &d = job_.d.layers;
  const auto adam = [&](const Network& network, int64_t done, int64_t step, int column) {
    const double lr = job_.rates[(job_.rates_vary ? 2 * step : 0) + column];
    return make_adam<float>(network.updates + done + 1, lr, network.beta1, network.beta2,
                            network.eps, network.weight_decay, network.decoupled);
  };
  start_tiles();
  if (kBf16) {
    // All threads look, so all decide alike, before any of them writes.
    const bool fresh = job_.fresh && weights_unchanged();
    barrier_.wait();
    if (!fresh) {
      for (const Network* network : {&job_.g, &job_.d})
        for (const Layer& layer : network->layers) {
          const Range out = features_of(share(units(layer.out), thread_, threads_), layer.out);
          narrow_weights(layer, out, {0, layer.in});
        }
      barrier_.wait();
    }
  }
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
      forward_all(job_.g, 0, last ? 2 : 1, false);
      forward_all(job_.d, 0, 2, true);
      for (size_t l = d.size(); --l > 0;) {
        backward(d[l], d[l - 1], 0, 2);
        end_phase();
      }
      const Adam<float> adam_d = adam(job_.d, done, i, 0);
      for (const Layer& layer : d) update(layer, adam_d, 0, 2);
      end_phase();
      if (thread_ == 0) job_.losses[2 * i] = mean_loss(0) + mean_loss(1);
    }
    forward_all(job_.d, 2, 1, true);
    for (size_t l = d.size(); l-- > 0;) {
      backward(d[l], l ? d[l - 1] : g.back(), 2, 1);
      end_phase();
    }
    for (size_t l = g.size(); --l > 0;) {
      backward(g[l], g[l - 1], 1, 1);
      end_phase();
    }
    const Adam<float> adam_g = adam(job_.g, i, i, 1);
    for (const Layer& layer : g) update(layer, adam_g, 1, 1);
    if (thread_ == 0) {
      job_.losses[2 * i + 1] = mean_loss(2);
      for (const Layer& layer : g) copy_statistics(layer);
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
