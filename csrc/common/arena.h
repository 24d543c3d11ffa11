// Lays the pieces of a working memory out. No torch here.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fastgan {

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Hands out pieces of one block of memory, or only measures them. A piece begins at a multiple of
// `line` bytes, and `gap` bytes are left free after it.
class Arena {
 public:
  Arena(void* base, int64_t line, int64_t gap)
      : base_(static_cast<char*>(base)), line_(line), gap_(gap) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), line_) + gap_;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* base_;
  int64_t line_, gap_, used_ = 0;
};

}  // namespace fastgan
