// Products of a small linear layer: tensor cores on tiles of 32 x 32, fed by asynchronous copies.
// Small tiles, so that a layer of a few hundred features still gives every multiprocessor one.
#include <type_traits>

#include "common/activation.h"
#include "cuda/device.cuh"
#include "cuda/mma.cuh"
#include "ops/linear/launch.h"
#include "ops/random/mask.cuh"

namespace fastgan::cuda {

namespace {

constexpr int kTile = 32, kDepth = 32;  // of the result in both directions; of the sum
constexpr int kStages = 3;              // tiles under way
constexpr int kTileThreads = 128;       // four warps, each 16 x 16 of the result

// One factor of a product, [outer, sum] or [sum, outer] as it lies in memory.
template <class T>
struct Factor {
  const T* data;
  int64_t outer, sum;
};

// A tile of it in shared memory, lying as in global memory. SumInner: [outer, sum].
template <class T, bool SumInner>
struct FactorTile {
  // Rows begin at multiples of 16 bytes, and the lanes of a warp that read a fragment find
  // themselves in different banks.
  static constexpr int kPitch = sizeof(T) == 4 && SumInner ? 36 : 40;
  alignas(16) T values[kTile * kPitch];

  __device__ const T& at(int outer, int sum) const {
    return values[SumInner ? outer * kPitch + sum : sum * kPitch + outer];
  }
};

// Begins to fill the tile whose corner is (outer, sum); beyond the matrix it is zero.
template <class T, bool SumInner>
__device__ void load_tile(FactorTile<T, SumInner>& tile, const Factor<T>& f, int64_t outer,
                          int64_t sum, bool packed) {
  using Tile = FactorTile<T, SumInner>;
  constexpr int kPack = 16 / sizeof(T);
  const int64_t rows = SumInner ? f.outer : f.sum, columns = SumInner ? f.sum : f.outer;
  const int64_t row = SumInner ? outer : sum, column = SumInner ? sum : outer;
  if (packed) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile / kPack; i += kTileThreads) {
      const int down = i / (kTile / kPack), across = i % (kTile / kPack) * kPack;
      const bool inside = row + down < rows && column + across < columns;
      const T* from = inside ? f.data + (row + down) * columns + column + across : f.data;
      copy_async<16>(tile.values + down * Tile::kPitch + across, from, inside);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kTileThreads) {
    const int down = i / kTile, across = i % kTile;
    const bool inside = row + down < rows && column + across < columns;
    T value{};
    if (inside) value = f.data[(row + down) * columns + column + across];
    tile.values[down * Tile::kPitch + across] = value;
  }
}

// Rows of 16 bytes that lie whole inside or outside of the matrix.
template <class T, bool SumInner>
__device__ bool packed_rows(const Factor<T>& f) {
  const int64_t columns = SumInner ? f.sum : f.outer;
  return columns % static_cast<int64_t>(16 / sizeof(T)) == 0 &&
         reinterpret_cast<uintptr_t>(f.data) % 16 == 0;
}

// Two neighbours along the sum as one register.
template <class T, bool SumInner>
__device__ uint32_t pair(const FactorTile<T, SumInner>& tile, int outer, int sum) {
  return tile.at(outer, sum).bits | static_cast<uint32_t>(tile.at(outer, sum + 1).bits) << 16;
}

// x as the sum of two tf32 values, which together keep its precision. An infinite x becomes NaN.
__device__ inline void split(float x, uint32_t& high, uint32_t& low) {
  high = to_tf32(x);
  low = to_tf32(x - math::from_bits(high));
}

// d[j] += the warp's 16 rows of a times columns 8 j .. 8 j + 7 of its 16 columns of b.
template <class T, bool AInner, bool BInner>
__device__ void multiply(const FactorTile<T, AInner>& a, const FactorTile<T, BInner>& b, int row,
                         int column, float (&d)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  if constexpr (std::is_same_v<T, float>) {
    for (int k = 0; k < kDepth; k += 8) {
      uint32_t high[4], low[4];
      for (int i = 0; i < 4; ++i) {
        split(a.at(row + g + i % 2 * 8, k + t + i / 2 * 4), high[i], low[i]);
      }
      for (int j = 0; j < 2; ++j) {
        uint32_t b_high[2], b_low[2];
        for (int i = 0; i < 2; ++i) {
          split(b.at(column + 8 * j + g, k + t + 4 * i), b_high[i], b_low[i]);
        }
        mma_tf32(d[j], low, b_high);  // the small products first
        mma_tf32(d[j], high, b_low);
        mma_tf32(d[j], high, b_high);
      }
    }
  } else {
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t ra[4];
      for (int i = 0; i < 4; ++i) ra[i] = pair(a, row + g + i % 2 * 8, k + 2 * t + i / 2 * 8);
      for (int j = 0; j < 2; ++j) {
        uint32_t rb[2];
        for (int i = 0; i < 2; ++i) rb[i] = pair(b, column + 8 * j + g, k + 2 * t + 8 * i);
        if constexpr (std::is_same_v<T, bf16>) {
          mma_bf16(d[j], ra, rb);
        } else {
          mma_fp16(d[j], ra, rb);
        }
      }
    }
  }
}

template <class T, bool AInner, bool BInner>
struct Stages {
  FactorTile<T, AInner> a[kStages];
  FactorTile<T, BInner> b[kStages];
};

// The tile of c = a b^T (both as [outer, sum]) whose corner is (row, column); finish(value, row,
// column) is stored.
template <class T, bool AInner, bool BInner, class Finish>
__device__ void product_tile(const Factor<T>& a, const Factor<T>& b, T* c, int64_t row,
                             int64_t column, unsigned char* memory, const Finish& finish) {
  auto& stages = *reinterpret_cast<Stages<T, AInner, BInner>*>(memory);
  const bool packed_a = packed_rows<T, AInner>(a), packed_b = packed_rows<T, BInner>(b);
  const int64_t depth = (a.sum + kDepth - 1) / kDepth;
  const auto begin_load = [&](int64_t step) {
    if (step < depth) {
      load_tile(stages.a[step % kStages], a, row, step * kDepth, packed_a);
      load_tile(stages.b[step % kStages], b, column, step * kDepth, packed_b);
    }
    copy_async_commit();  // an empty group too: the wait below counts groups
  };
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / 2 * 16, warp_column = warp % 2 * 16;
  float d[2][4] = {};
  for (int64_t step = 0; step < kStages - 1; ++step) begin_load(step);
  for (int64_t step = 0; step < depth; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this step's tiles are there, and the last step's are no longer read
    begin_load(step + kStages - 1);
    multiply(stages.a[step % kStages], stages.b[step % kStages], warp_row, warp_column, d);
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int64_t r = row + warp_row + lane / 4 + i / 2 * 8;
      const int64_t k = column + warp_column + 8 * j + lane % 4 * 2 + i % 2;
      if (r < a.outer && k < b.outer) store(c + r * b.outer + k, finish(d[j][i], r, k));
    }
  }
}

__host__ __device__ inline int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    linear_kernel(LinearShape s, const T* x, const T* weight, const T* bias, float slope,
                  const __grid_constant__ Dropout drop, T* y) {
  using Memory = Stages<T, true, true>;
  FASTGAN_SHARED(Memory, memory, [1]);
  const int64_t across = tiles_of(s.out);
  const int64_t row = blockIdx.x / across * kTile, column = blockIdx.x % across * kTile;
  product_tile<T, true, true>(
      {x, s.batch, s.in}, {weight, s.out, s.in}, y, row, column,
      reinterpret_cast<unsigned char*>(&memory[0]), [&](float value, int64_t r, int64_t k) {
        const Mask<float> mask(drop);  // not a register earlier
        const float shift = bias ? widen(bias[k]) : 0.f;
        return mask.apply(mask.kept<1>(r * s.out + k), 0, leaky_relu(value + shift, slope));
      });
}

// Blocks up to x_tiles compute grad_x, the others grad_weight.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    linear_backward_kernel(LinearShape s, int64_t x_tiles, const T* grad_pre, const T* x,
                           const T* weight, T* grad_x, T* grad_weight) {
  union Memory {
    Stages<T, true, false> for_x;
    Stages<T, false, false> for_weight;
  };
  FASTGAN_SHARED(Memory, memory, [1]);
  unsigned char* const shared = reinterpret_cast<unsigned char*>(&memory[0]);
  const int64_t across = tiles_of(s.in), tile = blockIdx.x;
  const auto as_it_is = [](float value, int64_t, int64_t) { return value; };
  if (tile < x_tiles) {
    product_tile<T, true, false>({grad_pre, s.batch, s.out}, {weight, s.in, s.out}, grad_x,
                                 tile / across * kTile, tile % across * kTile, shared, as_it_is);
  } else {
    const int64_t rest = tile - x_tiles;
    product_tile<T, false, false>({grad_pre, s.out, s.batch}, {x, s.in, s.batch}, grad_weight,
                                  rest / across * kTile, rest % across * kTile, shared, as_it_is);
  }
}

}  // namespace

template <class T>
cudaError_t linear_tiles(const LinearShape& s, const T* x, const T* weight, const T* bias,
                         double negative_slope, const Dropout& drop, T* y, cudaStream_t stream) {
  const int64_t tiles = tiles_of(s.batch) * tiles_of(s.out);
  if (tiles == 0) return cudaSuccess;
  return launch(linear_kernel<T>, static_cast<unsigned>(tiles), kTileThreads, 0, stream, s, x,
                weight, bias, static_cast<float>(negative_slope), drop, y);
}

template <class T>
cudaError_t linear_backward_tiles(const LinearShape& s, const T* grad_pre, const T* x,
                                  const T* weight, T* grad_x, T* grad_weight, cudaStream_t stream) {
  const int64_t x_tiles = grad_x ? tiles_of(s.batch) * tiles_of(s.in) : 0;
  const int64_t tiles = x_tiles + (grad_weight ? tiles_of(s.out) * tiles_of(s.in) : 0);
  if (tiles == 0) return cudaSuccess;
  return launch(linear_backward_kernel<T>, static_cast<unsigned>(tiles), kTileThreads, 0, stream, s,
                x_tiles, grad_pre, x, weight, grad_x, grad_weight);
}

#define FASTGAN_INSTANTIATE(T)                                                                    \
  template cudaError_t linear_tiles<T>(const LinearShape&, const T*, const T*, const T*, double,  \
                                       const Dropout&, T*, cudaStream_t);                         \
  template cudaError_t linear_backward_tiles<T>(const LinearShape&, const T*, const T*, const T*, \
                                                T*, T*, cudaStream_t);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(bf16)
FASTGAN_INSTANTIATE(fp16)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
