#include "cpu/workspace.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <unordered_map>
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

// Whole pages for so many numbers. Vectors may be read beyond the last of them, within a cache line
// or two.
int64_t bytes_of(int64_t floats) {
  constexpr int64_t kMost = int64_t{1} << 44, kBeyond = 256;
  if (floats < 0 || floats > kMost) throw std::bad_alloc();
  return (floats * 4 + kBeyond + kPage - 1) / kPage * kPage;
}

// What tensors hold and have given back, the oldest first.
struct Lent {
  std::mutex mutex;
  std::unordered_map<void*, int64_t> held;
  std::vector<Block> idle;
  int64_t bytes_held = 0, bytes_idle = 0, most_held = 0;
};

Lent& lent() {
  static Lent& only = *new Lent;
  return only;
}

}  // namespace

Workspace::Workspace(int64_t floats) {
  bytes_ = bytes_of(floats);
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

void* lend(int64_t floats) {
  const int64_t bytes = bytes_of(floats);
  Lent& all = lent();
  std::vector<Block> surplus;
  void* memory = nullptr;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    // The latest of that size, which a cache may still hold.
    const auto found = std::find_if(all.idle.rbegin(), all.idle.rend(),
                                    [&](const Block& b) { return b.bytes == bytes; });
    if (found != all.idle.rend()) {
      memory = found->memory;
      all.held.emplace(memory, bytes);
      all.idle.erase(std::next(found).base());
      all.bytes_idle -= bytes;
    } else {
      size_t n = 0;
      for (; n < all.idle.size(); ++n) {
        if (all.bytes_held + all.bytes_idle + bytes <= all.most_held) break;
        all.bytes_idle -= all.idle[n].bytes;
      }
      surplus.assign(all.idle.begin(), all.idle.begin() + n);
      all.idle.erase(all.idle.begin(), all.idle.begin() + n);
    }
    if (memory != nullptr) {
      all.bytes_held += bytes;
      all.most_held = std::max(all.most_held, all.bytes_held);
    }
  }
  for (const Block& block : surplus) deallocate(block.memory);
  if (memory != nullptr) return memory;
  memory = allocate(bytes);
  try {
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.idle.reserve(all.idle.size() + all.held.size() + 1);  // so that give_back does not fail
    all.held.emplace(memory, bytes);
    all.bytes_held += bytes;
    all.most_held = std::max(all.most_held, all.bytes_held);
  } catch (...) {
    deallocate(memory);
    throw;
  }
  return memory;
}

void give_back(void* memory) noexcept {
  Lent& all = lent();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.held.find(memory);
  all.idle.push_back({memory, found->second});
  all.bytes_held -= found->second;
  all.bytes_idle += found->second;
  all.held.erase(found);
}

int64_t release_workspaces() {
  std::vector<Block> idle;
  {
    Store& all = store();
    const std::lock_guard<std::mutex> lock(all.mutex);
    idle.swap(all.blocks);
  }
  {
    Lent& all = lent();
    const std::lock_guard<std::mutex> lock(all.mutex);
    idle.insert(idle.end(), all.idle.begin(), all.idle.end());
    all.idle.clear();
    all.bytes_idle = 0;
    all.most_held = all.bytes_held;
  }
  int64_t bytes = 0;
  for (const Block& block : idle) {
    bytes += block.bytes;
    deallocate(block.memory);
  }
  return bytes;
}

}  // namespace fastgan::cpu
