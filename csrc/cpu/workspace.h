// Working memory that outlives the calls that use it.
#pragma once

#include <stdint.h>

namespace fastgan::cpu {

// Memory for `floats` floats, aligned to a cache line, with anything in it. It belongs to the
// holder and goes back to the process's store with it: fresh pages of this size would cost as much
// as the arithmetic on them. Throws std::bad_alloc.
class Workspace {
 public:
  explicit Workspace(int64_t floats);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return static_cast<float*>(memory_); }

 private:
  void* memory_;
  int64_t bytes_;
};

// Frees what nobody holds; returns its bytes.
int64_t release_workspaces();

}  // namespace fastgan::cpu
