// Kernels that try the emulator itself, right ones and wrong ones; tests/test_emulator.py.
#include <cuda_runtime.h>

#include "cuda/device.cuh"
#include "cuda/mma.cuh"

using namespace fastgan::cuda;

namespace {

// out[i] = in[n - 1 - i] through shared memory; without the barrier if `racy`.
__global__ void reverse_kernel(const float* in, float* out, bool racy) {
  FASTGAN_SHARED(float, tile, [256]);
  tile[threadIdx.x] = in[threadIdx.x];
  if (!racy) __syncthreads();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// Sums by shuffles, then by shared memory of two dimensions.
__global__ void sum_kernel(const float* in, int n, float* out) {
  FASTGAN_SHARED(float, sums, [2][16]);
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
    sum += in[i];
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32 % 2][threadIdx.x / 64] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += sums[w % 2][w / 2];
    *out = total;
  }
}

// Rounds of: every block writes, a barrier over the grid, every block reads its neighbour's.
__global__ void ring_kernel(uint32_t* flag, int* values, int rounds) {
  const int self = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  for (int round = 0; round < rounds; ++round) {
    int* const now = values + round % 2 * blocks;
    const int* const before = values + (round + 1) % 2 * blocks;
    if (threadIdx.x == 0) {
      now[self] = before[(self + 1) % blocks] + self;
      add_release(flag, 1);
      while (load_acquire(flag) < static_cast<uint32_t>((round + 1) * blocks)) spin_wait();
    }
    __syncthreads();
  }
}

__global__ void wrong_kernel(int what, float* out) {
  FASTGAN_DYNAMIC_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  const unsigned i = threadIdx.x;
  switch (what) {
    case 0:  // reads what nobody wrote
      out[i] = shared[i];
      break;
    case 1:  // writes past the end
      shared[blockDim.x] = 1;
      break;
    case 2:  // not all come to the barrier
      if (i < 40) __syncthreads();
      break;
    case 3:  // half a warp shuffles, the other half votes
      out[i] = i % 2 ? __shfl_sync(~0u, 1.f, 0) : static_cast<float>(__any_sync(~0u, 1));
      break;
    case 4:  // the copy is used before it has come
      out[i] = 7;
      copy_async<4>(shared + i, out + i);
      copy_async_commit();
      out[i] = shared[i];
      copy_async_wait<0>();
      break;
    case 5:  // waits for a flag that nobody sets
      while (load_acquire(reinterpret_cast<uint32_t*>(out)) != 5) spin_wait();
      break;
    case 6:  // a lane of the mask has ended
      if (i % 32 == 3) return;
      out[i] = __shfl_sync(~0u, 1.f, 0);
      break;
    case 7:
      copy_async<16>(shared + 4, out + 1);
      break;
    default:
      __trap();
  }
}

// D [16, 8] of one warp: A [16, K] and B [K, 8] row-major, as bits.
template <int K>
__global__ void mma_kernel(int kind, const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  float r[4];
  for (int i = 0; i < 4; ++i) r[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  uint32_t ra[4], rb[2];
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i % 2);
    if constexpr (K == 8) {
      ra[i] = a[row * 8 + t + 4 * (i / 2)];
    } else {
      const int k = 2 * t + 8 * (i / 2);
      ra[i] = a[row * 16 + k] | a[row * 16 + k + 1] << 16;
    }
  }
  for (int i = 0; i < 2; ++i) {
    if constexpr (K == 8) {
      rb[i] = b[(t + 4 * i) * 8 + g];
    } else {
      const int k = 2 * t + 8 * i;
      rb[i] = b[k * 8 + g] | b[(k + 1) * 8 + g] << 16;
    }
  }
  if (kind == 0) mma_tf32(r, ra, rb);
  if (kind == 1) mma_bf16(r, ra, rb);
  if (kind == 2) mma_fp16(r, ra, rb);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = r[i];
}

// The product of a [16, 16] and b [16, 8] of 16-bit values with fragments from load_matrices.
__global__ void tile_kernel(const uint16_t* a, const uint16_t* b, float* d) {
  FASTGAN_SHARED(uint16_t, tile, [16 * 16 + 16 * 16]);
  uint16_t* const tile_b = tile + 256;
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  copy_async<16>(tile + 8 * lane, a + 8 * lane);
  copy_async<16>(tile_b + 16 * (lane / 2) + 8 * (lane % 2), b + 8 * (lane / 2), lane % 2 == 0);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  uint32_t ra[4], both[4];
  // Matrices 0..3 are rows 0..7 and 8..15 of columns 0..7, then of columns 8..15.
  load_matrices(ra, tile + 16 * (lane % 16) + 8 * (lane / 16));
  load_matrices_transposed(both, tile_b + 16 * (lane % 16) + 8 * (lane / 16));
  const uint32_t rb[2] = {both[0], both[1]};
  float r[4] = {};
  mma_bf16(r, ra, rb);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = r[i];
}

}  // namespace

extern "C" {

int reverse(const float* in, float* out, int64_t racy) {
  return launch(reverse_kernel, 1, 256, 0, nullptr, in, out, racy != 0);
}
int sum(const float* in, int64_t n, float* out, int64_t threads) {
  return launch(sum_kernel, 1, static_cast<unsigned>(threads), 0, nullptr, in, static_cast<int>(n),
                out);
}
int ring(uint32_t* flag, int* values, int64_t rounds, int64_t blocks, int64_t cooperative) {
  const dim3 grid(static_cast<unsigned>(blocks));
  const int n = static_cast<int>(rounds);
  return cooperative ? launch_cooperative(ring_kernel, grid, 64, 0, nullptr, flag, values, n)
                     : launch(ring_kernel, grid, 64, 0, nullptr, flag, values, n);
}
int wrong(int64_t what, float* out, int64_t shared_bytes) {
  return launch(wrong_kernel, 1, 64, static_cast<size_t>(shared_bytes), nullptr,
                static_cast<int>(what), out);
}
int allow_shared(int64_t bytes) {
  return cudaFuncSetAttribute(wrong_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}
int mma(int64_t kind, const uint32_t* a, const uint32_t* b, float* d) {
  const int k = static_cast<int>(kind);
  return kind == 0 ? launch(mma_kernel<8>, 1, 32, 0, nullptr, k, a, b, d)
                   : launch(mma_kernel<16>, 1, 32, 0, nullptr, k, a, b, d);
}
int tile(const uint16_t* a, const uint16_t* b, float* d) {
  return launch(tile_kernel, 1, 32, 0, nullptr, a, b, d);
}

}  // extern "C"
