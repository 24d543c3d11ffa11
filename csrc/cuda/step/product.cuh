// One tile of a matrix product C = A B, of a block of 256 threads: operands come into shared memory
// by asynchronous copies, several pieces of the sum ahead; the warps share out the tile and, where
// it is small, the sum too; their parts are added up in a fixed order.
#pragma once

#include <type_traits>

#include "common/bf16.h"
#include "cuda/device.cuh"
#include "cuda/mma.cuh"
#include "cuda/step/job.h"

namespace fastgan::cuda::step {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct alignas(16) Four {
  float v[4];
};

// A matrix in memory with element (i, k) at base[i * stride + k] if its sums run along its rows,
// else at base[k * stride + i]; i counts the rows of A or the columns of B.
// Lines and columns fit into 32 bits (step/decode.h), places in memory do not.
struct Operand {
  const float* base;
  int stride, count;
  bool vector;  // base is aligned to 16 bytes and stride a multiple of 4
};

__device__ __forceinline__ bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}
__device__ __forceinline__ Operand operand(const float* base, int64_t stride, int64_t count) {
  return {base, static_cast<int>(stride), static_cast<int>(count),
          stride % 4 == 0 && aligned(base)};
}

// The sizes of a tile: the block's, a warp's, how much of the sum a piece has, and how many pieces
// stand in shared memory.
template <int Rows_, int Columns_, int WarpRows_, int WarpColumns_, int Depth_, int Stages_>
struct Tile {
  static constexpr int Rows = Rows_, Columns = Columns_, Depth = Depth_, Stages = Stages_;
  static constexpr int WarpRows = WarpRows_, WarpColumns = WarpColumns_;
  static constexpr int Down = Rows / WarpRows, Across = Columns / WarpColumns;
  static constexpr int Groups =
      kWarps / (Down * Across);  // of warps, each with its part of a piece
  static constexpr int Part = Depth / Groups;
  static constexpr int Own = WarpRows * WarpColumns / 32;  // results of a thread
  // Floats of a piece of an operand of so many lines; with `Along` its sums run along the lines.
  template <int Lines, bool Along>
  static constexpr int Piece = Along ? Lines * (Depth + 4) : Depth * (Lines + 8);
  template <bool AAlong, bool BAlong>
  static constexpr int Stage = Piece<Rows, AAlong> + Piece<Columns, BAlong>;
  static constexpr int OutStride = Columns + 4;
  static constexpr int Parts = Groups * Rows * OutStride;
  template <bool AAlong, bool BAlong>
  static constexpr int Bytes =
      4 * (Stages * Stage<AAlong, BAlong> > Parts ? Stages * Stage<AAlong, BAlong> : Parts);
  static_assert(Down * Across * Groups == kWarps && Part % 16 == 0);
};
// Pieces enough that what is under way covers the time from the L2 cache.
using SmallTile = Tile<16, 16, 16, 16, 128, 5>;
using MiddleTile = Tile<32, 32, 32, 32, 128, 3>;
using LargeTile = Tile<64, 64, 32, 32, 32, 3>;

// Blocks with so much shared memory that fit on a multiprocessor of an H100: 228 KiB, of which the
// system takes one for each block.
constexpr int blocks_that_fit(int bytes) { return 228 * 1024 / (bytes + 1024); }
template <class T>
constexpr bool kTwoFitInPasses = blocks_that_fit(T::template Bytes<true, true>) >= 2 &&
                                 blocks_that_fit(T::template Bytes<true, false>) >= 2;
static_assert(kTwoFitInPasses<SmallTile> && kTwoFitInPasses<MiddleTile> &&
              kTwoFitInPasses<LargeTile>);

// How far apart the lines of an operand stand in shared memory. Fragments are read with lanes
// 4 g + t at line g (or t) and place t (or g): these distances put them into 32 banks.
template <int Lines, int Depth, bool Along>
constexpr int kLineStride = Along ? Depth + 4 : Lines + 8;

// Begins to copy elements (first .. first + Lines, k .. k + Depth) of an operand whose sums are
// `depth` long; what lies outside becomes zero.
template <int Lines, int Depth, bool Along>
__device__ void load_operand(float* to, const Operand& o, int first, int k, int depth) {
  constexpr int kInner = (Along ? Depth : Lines) / 4;
  constexpr int kStride = kLineStride<Lines, Depth, Along>;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < Lines * Depth / 4; chunk += kThreads) {
    const int line = chunk / kInner, at = chunk % kInner * 4;
    float* const target = to + line * kStride + at;
    const int row = (Along ? first : k) + line, column = (Along ? k : first) + at;
    const bool inside = row < (Along ? o.count : depth);
    const int left = (Along ? depth : o.count) - column;
    const int valid = !inside || left <= 0 ? 0 : left < 4 ? left : 4;
    const float* const from =
        valid ? o.base + static_cast<int64_t>(row) * o.stride + column : o.base;
    if (o.vector && valid % 4 == 0) {
      copy_async<16>(target, from, valid > 0);
    } else {
      for (int e = 0; e < 4; ++e) {
        copy_async<4>(target + e, e < valid ? from + e : o.base, e < valid);
      }
    }
  }
}

// Where a warp stands in a tile, and a lane in the warp.
template <class T>
struct Place {
  int lane, row, column, group;
  __device__ Place() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    lane = thread % 32;
    group = warp / (T::Down * T::Across);
    row = warp % T::Down * T::WarpRows;
    column = warp / T::Down % T::Across * T::WarpColumns;
  }
};

// --- Products in float32: a thread has Count lines of each operand, four places along the sum at a
// time. Lines are interleaved among the Lanes lanes where the sum runs along them, else together,
// so that both kinds are read by vectors.
template <int Count, int Lanes, bool Along>
__device__ __forceinline__ int fma_line(int lane, int i) {
  return Along ? lane + Lanes * i : lane * Count + i;
}
template <int Count, int Lanes, bool Along, int Stride>
__device__ __forceinline__ void fma_fragment(float (&to)[Count][4], const float* from, int lane,
                                             int k) {
  if constexpr (Along) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const Four f = *reinterpret_cast<const Four*>(from + (lane + Lanes * i) * Stride + k);
#pragma unroll
      for (int q = 0; q < 4; ++q) to[i][q] = f.v[q];
    }
  } else {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float* const line = from + (k + q) * Stride + lane * Count;
      if constexpr (Count % 4 == 0) {
#pragma unroll
        for (int i = 0; i < Count; i += 4) {
          const Four f = *reinterpret_cast<const Four*>(line + i);
#pragma unroll
          for (int j = 0; j < 4; ++j) to[i + j][q] = f.v[j];
        }
      } else {
#pragma unroll
        for (int i = 0; i < Count; ++i) to[i][q] = line[i];
      }
    }
  }
}

template <class T, bool AAlong, bool BAlong>
__device__ __forceinline__ void multiply_fp32(const Place<T>& place, const float* a, const float* b,
                                              float (&sums)[T::Own]) {
  constexpr int kRows = T::WarpRows / 4, kColumns = T::WarpColumns / 8;
  constexpr int kA = kLineStride<T::Rows, T::Depth, AAlong>;
  constexpr int kB = kLineStride<T::Columns, T::Depth, BAlong>;
  a += AAlong ? place.row * kA : place.row;
  b += BAlong ? place.column * kB : place.column;
#pragma unroll
  for (int k = 0; k < T::Part; k += 4) {
    float x[kRows][4], y[kColumns][4];
    fma_fragment<kRows, 4, AAlong, kA>(x, a, place.lane / 8, place.group * T::Part + k);
    fma_fragment<kColumns, 8, BAlong, kB>(y, b, place.lane % 8, place.group * T::Part + k);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[i * kColumns + j] += x[i][q] * y[j][q];
      }
    }
  }
}

// --- Products on tensor cores

__device__ __forceinline__ uint32_t pair_of_bf16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return narrow_bf16(low).bits | static_cast<uint32_t>(narrow_bf16(high).bits) << 16;
#endif
}

template <class T, bool AAlong, bool BAlong, Precision precision>
__device__ __forceinline__ void multiply_mma(const Place<T>& place, const float* a, const float* b,
                                             float (&sums)[T::Own]) {
  constexpr int kRows = T::WarpRows / 16, kColumns = T::WarpColumns / 8;
  constexpr int kA = kLineStride<T::Rows, T::Depth, AAlong>;
  constexpr int kB = kLineStride<T::Columns, T::Depth, BAlong>;
  constexpr int kStep = precision == Precision::tf32 ? 8 : 16;
  const int g = place.lane / 4, t = place.lane % 4;
  const auto a_at = [&](int i, int k) {
    return AAlong ? a[(place.row + i) * kA + k] : a[k * kA + place.row + i];
  };
  const auto b_at = [&](int j, int k) {
    return BAlong ? b[(place.column + j) * kB + k] : b[k * kB + place.column + j];
  };
  // A register of a fragment: one tf32 value, or two neighbours along the sum.
  const auto word = [&](const auto& at, int line, int k, int half) {
    if constexpr (precision == Precision::tf32) {
      return to_tf32(at(line, k + t + 4 * half));
    } else {
      return pair_of_bf16(at(line, k + 2 * t + 8 * half), at(line, k + 2 * t + 8 * half + 1));
    }
  };
#pragma unroll
  for (int at = 0; at < T::Part; at += kStep) {
    const int k = place.group * T::Part + at;
    uint32_t y[kColumns][2];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) y[j][half] = word(b_at, 8 * j + g, k, half);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      uint32_t x[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) x[r] = word(a_at, 16 * i + g + 8 * (r % 2), k, r / 2);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        float (&d)[4] = *reinterpret_cast<float (*)[4]>(&sums[4 * (i * kColumns + j)]);
        if constexpr (precision == Precision::tf32) {
          mma_tf32(d, x, y[j]);
        } else {
          mma_bf16(d, x, y[j]);
        }
      }
    }
  }
}

// Where a thread's n-th result stands in its warp's tile.
template <class T, bool AAlong, bool BAlong, Precision precision>
__device__ __forceinline__ void result_place(int lane, int n, int& row, int& column) {
  if constexpr (precision == Precision::fp32) {
    constexpr int kColumns = T::WarpColumns / 8;
    row = fma_line<T::WarpRows / 4, 4, AAlong>(lane / 8, n / kColumns);
    column = fma_line<kColumns, 8, BAlong>(lane % 8, n % kColumns);
  } else {
    constexpr int kColumns = T::WarpColumns / 8;
    const int of = n / 4, r = n % 4;
    row = of / kColumns * 16 + lane / 4 + r / 2 * 8;
    column = of % kColumns * 8 + lane % 4 * 2 + r % 2;
  }
}

// Sums of the lines of A over its pieces: the gradient of a bias beside that of its weight. A line
// has kShare neighbouring threads.
template <class T>
class LineSum {
 public:
  static constexpr int kShare = kThreads / T::Rows;
  static_assert(kShare >= 2 && kShare <= 32 && T::Depth % kShare == 0);

  __device__ explicit LineSum(bool wanted) : wanted_(wanted) {}

  __device__ void add(const float* piece) {
    constexpr int kStride = kLineStride<T::Rows, T::Depth, false>;
    if (!wanted_) return;
#pragma unroll 8
    for (int k = 0; k < T::Depth; k += kShare) sum_ += piece[(k + part()) * kStride + line()];
  }
  // In all threads of the line.
  __device__ float total() const {
    float sum = sum_;
#pragma unroll
    for (int bits = kShare / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    return sum;
  }
  __device__ static int line() { return static_cast<int>(threadIdx.x) / kShare; }
  __device__ static int part() { return static_cast<int>(threadIdx.x) % kShare; }

 private:
  bool wanted_;
  float sum_ = 0;
};

struct NoSum {
  __device__ void add(const float*) {}
};

// Begins to load B's part of the first pieces of a tile, for a product that is then told so: in
// time before what A is made of is there. B must not be written meanwhile.
template <class T, bool AAlong, bool BAlong>
__device__ void load_ahead(const Operand& b, int column, int depth, unsigned char* shared) {
  constexpr int kA = T::template Piece<T::Rows, AAlong>;
  constexpr int kStage = T::template Stage<AAlong, BAlong>;
  float* const stages = reinterpret_cast<float*>(shared);
  __syncthreads();  // what an earlier tile left has been read
#pragma unroll 1
  for (int piece = 0; piece < T::Stages - 1 && piece * T::Depth < depth; ++piece) {
    load_operand<T::Columns, T::Depth, BAlong>(stages + piece * kStage + kA, b, column,
                                               piece * T::Depth, depth);
  }
  copy_async_commit();
}

// What a thread reads early where it needs nothing.
struct Nothing {};

// The first element of a tile: tiles go down the rows first.
struct Corner {
  int row, column;
};
template <class T>
__host__ __device__ __forceinline__ Corner corner_of(unsigned tile, int64_t rows) {
  const unsigned down = (static_cast<unsigned>(rows) + T::Rows - 1) / T::Rows;
  return {static_cast<int>(tile % down * T::Rows), static_cast<int>(tile / down * T::Columns)};
}

// The products that a tile is the sum of: this one alone, of sums `depth` long.
struct OneProduct {
  const Operand &a, &b;
  int depth;
  template <class T>
  __device__ int pieces() const {
    return (depth + T::Depth - 1) / T::Depth;
  }
  // Calls use(a, b, first element of the sum, its length) for a piece.
  template <class T, class Use>
  __device__ void at(int piece, const Use& use) const {
    use(a, b, piece * T::Depth, depth);
  }
  // Whether the lines of A in a piece are summed.
  template <class T>
  __device__ bool lined(int) const {
    return true;
  }
};

// The tile of a corner, of one product or of a sum of them. finish(row, column, four, early) gets
// four neighbours of a row of the product at a time, counted from the corner; rows and columns may
// lie outside the matrices, and the values are then of no meaning. early(row, column) is asked
// while the first pieces are under way for what finish then gets. `loaded`: load_ahead() was called
// for this tile, in all threads. `lines` is shown the pieces of A whose lines are summed.
template <class T, Precision precision, bool AAlong, bool BAlong, class Sum, class Early,
          class Finish, class Lines = NoSum>
__device__ void product(const Sum& sum, const Corner& corner, unsigned char* shared,
                        const Early& early, const Finish& finish, bool loaded = false,
                        Lines&& lines = {}) {
  float* const stages = reinterpret_cast<float*>(shared);
  constexpr int kA = T::template Piece<T::Rows, AAlong>;
  constexpr int kStage = T::template Stage<AAlong, BAlong>;
  const Place<T> place;
  const int pieces = sum.template pieces<T>();
  constexpr int kChunks = T::Rows * T::Columns / 4, kOwn = (kChunks + kThreads - 1) / kThreads;
  using Read = decltype(early(0, 0));
  [[maybe_unused]] constexpr int kUnrolled = std::is_empty_v<Read> ? 1 : kOwn;
  Read read[kOwn]{};
  // Calls use(n, row, column) for the n-th four of this thread.
  const auto each_four = [&](const auto& use) {
#pragma unroll kUnrolled
    for (int n = 0; n < kOwn; ++n) {
      const int chunk = static_cast<int>(threadIdx.x) + n * kThreads;
      if (kChunks % kThreads == 0 || chunk < kChunks)
        use(n, chunk / (T::Columns / 4), chunk % (T::Columns / 4) * 4);
    }
  };
  const auto load = [&](int piece) {
    if (piece < pieces) {
      float* const to = stages + piece % T::Stages * kStage;
      sum.template at<T>(piece, [&](const Operand& a, const Operand& b, int k, int depth) {
        load_operand<T::Rows, T::Depth, AAlong>(to, a, corner.row, k, depth);
        if (!loaded || piece >= T::Stages - 1)
          load_operand<T::Columns, T::Depth, BAlong>(to + kA, b, corner.column, k, depth);
      });
    }
    copy_async_commit();  // an empty group too, so that the count of groups is that of pieces
  };
  float sums[T::Own] = {};
  if (!loaded) __syncthreads();  // what an earlier tile left has been read
  // One loop fills the stages and goes on filling them: the code is in place when it is needed.
#pragma unroll 1
  for (int piece = 1 - T::Stages; piece < pieces; ++piece) {
    if (piece >= 0) {
      copy_async_wait<T::Stages - 2>();
      __syncthreads();  // the piece has come, and the one before it has been read
    }
    load(piece + T::Stages - 1);
    if (piece == -1) each_four([&](int n, int i, int j) { read[n] = early(i, j); });
    if (piece < 0) continue;
    const float* const from = stages + piece % T::Stages * kStage;
    if (sum.template lined<T>(piece)) lines.add(from);
    if constexpr (precision == Precision::fp32) {
      multiply_fp32<T, AAlong, BAlong>(place, from, from + kA, sums);
    } else {
      multiply_mma<T, AAlong, BAlong, precision>(place, from, from + kA, sums);
    }
  }
  copy_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int n = 0; n < T::Own; ++n) {
    int i, j;
    result_place<T, AAlong, BAlong, precision>(place.lane, n, i, j);
    stages[(place.group * T::Rows + place.row + i) * T::OutStride + place.column + j] = sums[n];
  }
  __syncthreads();
  each_four([&](int n, int i, int j) {
    Four total{};
#pragma unroll
    for (int group = 0; group < T::Groups; ++group) {
      const Four part =
          *reinterpret_cast<const Four*>(&stages[(group * T::Rows + i) * T::OutStride + j]);
#pragma unroll
      for (int e = 0; e < 4; ++e) total.v[e] += part.v[e];
    }
    finish(i, j, total, read[n]);
  });
}

}  // namespace fastgan::cuda::step
