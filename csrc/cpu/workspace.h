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

// Memory of a tensor's own, for `floats` floats; give_back when it ends. What is given back is kept
// for tensors of about the same size, and never more is kept than was lent at once: a training step
// makes the same tensors over and over. Throws std::bad_alloc.
void* lend(int64_t floats);
void give_back(void* memory) noexcept;

// Frees what nobody holds; returns its bytes.
int64_t release_workspaces();

}  // namespace fastgan::cpu
