#include "cpu/workspace.h"

#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

namespace fastgan::cpu {

namespace {

// A huge page of Linux, if it has them: the planes of a transform are far apart, and the entries of
// small pages for all of them do not fit the nearest table.
constexpr int64_t kPage = int64_t{2} << 20;

struct Block {
  void* memory;
  int64_t bytes;
};

struct Store {
  std::mutex mutex;
  std::vector<Block> blocks;
};

// Never destroyed: threads may still hold blocks when the process ends.
Store& store() {
  static Store& only = *new Store;
  return only;
}

void* allocate(int64_t bytes) {
  void* memory = ::operator new(bytes, std::align_val_t{kPage});
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void deallocate(void* memory) { ::operator delete(memory, std::align_val_t{kPage}); }

}  // namespace

Workspace::Workspace(int64_t floats) {
  // Vectors may be read beyond the last number, within a cache line or two.
  constexpr int64_t kMost = int64_t{1} << 44, kBeyond = 256;
  if (floats < 0 || floats > kMost) throw std::bad_alloc();
  bytes_ = (floats * 4 + kBeyond + kPage - 1) / kPage * kPage;
  memory_ = nullptr;
  void* too_small = nullptr;
  {
    Store& all = store();
    const std::lock_guard<std::mutex> lock(all.mutex);
    // The smallest that is large enough; else the largest is replaced, so that there are never more
    // than were held at once.
    auto best = all.blocks.end(), largest = all.blocks.end();
    for (auto b = all.blocks.begin(); b != all.blocks.end(); ++b) {
      if (b->bytes >= bytes_ && (best == all.blocks.end() || b->bytes < best->bytes)) best = b;
      if (largest == all.blocks.end() || b->bytes > largest->bytes) largest = b;
    }
    const auto taken = best != all.blocks.end() ? best : largest;
    if (taken != all.blocks.end()) {
      (taken == best ? memory_ : too_small) = taken->memory;
      if (taken == best) bytes_ = taken->bytes;
      all.blocks.erase(taken);
    }
  }
  if (too_small != nullptr) deallocate(too_small);
  if (memory_ == nullptr) memory_ = allocate(bytes_);
}

Workspace::~Workspace() {
  try {
    Store& all = store();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.blocks.push_back({memory_, bytes_});
  } catch (const std::exception&) {
    deallocate(memory_);
  }
}

int64_t release_workspaces() {
  std::vector<Block> idle;
  {
    Store& all = store();
    const std::lock_guard<std::mutex> lock(all.mutex);
    idle.swap(all.blocks);
  }
  int64_t bytes = 0;
  for (const Block& block : idle) {
    bytes += block.bytes;
    deallocate(block.memory);
  }
  return bytes;
}

}  // namespace fastgan::cpu
