// One launch over a list of tensors: a table of their pointers goes by value with the launch, and
// every block takes a chunk of one tensor.
#pragma once

#include "cuda/grid.cuh"

namespace fastgan::cuda {

// What a thread moves at once where the pointers allow it: 16 bytes.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

template <class T>
__device__ inline bool packable(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// `Lists` lists of up to `Capacity` tensors. Tensor i has size[i] elements and the chunks
// [first_chunk[i], first_chunk[i + 1]).
template <class T, int Lists, int Capacity>
struct TensorTable {
  int64_t chunk;  // elements, a multiple of every Pack's
  int64_t size[Capacity];
  T* data[Lists][Capacity];
  unsigned first_chunk[Capacity + 1];
  int count;
};

// Calls f(pointers, n, packed) in every block with where its chunk of the lists lies.
template <class T, int Lists, int Capacity, class F>
__device__ inline void with_chunk(const TensorTable<T, Lists, Capacity>& table, const F& f) {
  int low = 0, high = table.count - 1;  // the last tensor whose first chunk is not after this one
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_chunk[low]) * table.chunk;
  const int64_t rest = table.size[low] - begin;
  T* pointers[Lists];
  bool packed = true;
  for (int i = 0; i < Lists; ++i) {
    pointers[i] = table.data[i][low] + begin;
    packed = packed && packable(pointers[i]);
  }
  f(pointers, rest < table.chunk ? rest : table.chunk, packed);
}

// Calls one(packs) with packs of one element or of Pack<T>::kSize, for every element of the chunk;
// what one() leaves in the first `Written` lists is stored.
template <class T, int Written, int Lists, class One>
__device__ inline void for_elements(T* const (&pointers)[Lists], int64_t n, bool packed,
                                    const One& one) {
  constexpr int kSize = Pack<T>::kSize;
  int64_t done = 0;
  if (packed) {
    done = n - n % kSize;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * kSize; i < done;
         i += static_cast<int64_t>(blockDim.x) * kSize) {
      Pack<T> packs[Lists];
      for (int list = 0; list < Lists; ++list) {
        packs[list] = *reinterpret_cast<const Pack<T>*>(pointers[list] + i);
      }
      for (int at = 0; at < kSize; ++at) {
        T values[Lists];
        for (int list = 0; list < Lists; ++list) values[list] = packs[list].v[at];
        one(values);
        for (int list = 0; list < Written; ++list) packs[list].v[at] = values[list];
      }
      for (int list = 0; list < Written; ++list) {
        *reinterpret_cast<Pack<T>*>(pointers[list] + i) = packs[list];
      }
    }
  }
  for (int64_t i = done + threadIdx.x; i < n; i += blockDim.x) {
    T values[Lists];
    for (int list = 0; list < Lists; ++list) values[list] = pointers[list][i];
    one(values);
    for (int list = 0; list < Written; ++list) pointers[list][i] = values[list];
  }
}

// The whole table of lists[l][i] with sizes[i] elements, `count` tensors (1 <= count <= Capacity,
// none of them empty). At most 2^20 chunks, at least one pack a thread.
template <class T, int Lists, int Capacity>
TensorTable<T, Lists, Capacity> make_table(T* const* const (&lists)[Lists], const int64_t* sizes,
                                           int count) {
  TensorTable<T, Lists, Capacity> table{};
  int64_t total = 0;
  for (int i = 0; i < count; ++i) total += sizes[i];
  constexpr int64_t kLeast = static_cast<int64_t>(kThreads) * Pack<T>::kSize;
  table.chunk = ((total >> 20) / kLeast + 1) * kLeast;
  table.count = count;
  for (int i = 0; i < count; ++i) {
    table.size[i] = sizes[i];
    for (int list = 0; list < Lists; ++list) table.data[list][i] = lists[list][i];
    const int64_t chunks = (sizes[i] + table.chunk - 1) / table.chunk;
    table.first_chunk[i + 1] = table.first_chunk[i] + static_cast<unsigned>(chunks);
  }
  return table;
}

// Calls run(table) for the tensors of the lists that are not empty: once if they are no more than
// 640, and once for each 640 otherwise. A short list gets a short table, which every launch copies.
template <class T, int Lists, class Run>
cudaError_t for_tables(T* const* const (&lists)[Lists], const int64_t* sizes, int64_t count,
                       const Run& run) {
  constexpr int kShort = 32, kLong = 640;  // 640 tensors take 27 KB of the 32 KB of parameters
  T* kept[Lists][kLong];
  T* const* pointers[Lists];
  for (int list = 0; list < Lists; ++list) pointers[list] = kept[list];
  int64_t kept_sizes[kLong];
  for (int64_t i = 0; i < count;) {
    int filled = 0;
    for (; i < count && filled < kLong; ++i) {
      if (sizes[i] == 0) continue;
      for (int list = 0; list < Lists; ++list) kept[list][filled] = lists[list][i];
      kept_sizes[filled++] = sizes[i];
    }
    if (filled == 0) continue;
    const cudaError_t error = filled <= kShort
                                  ? run(make_table<T, Lists, kShort>(pointers, kept_sizes, filled))
                                  : run(make_table<T, Lists, kLong>(pointers, kept_sizes, filled));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace fastgan::cuda
