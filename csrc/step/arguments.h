// What the operators of the fused engine demand of their arguments, once for both devices. A tensor
// can be made by anybody, so nothing that decides an address is used before it has been checked
// here or in decode.cpp.
#pragma once

#include <string>
#include <vector>

#include "ops/checks.h"
#include "step/plan.h"

namespace fastgan {

// a * b of numbers that are not negative.
int64_t times(int64_t a, int64_t b);

// Pieces of memory that must lie apart: what a run writes, and what it reads meanwhile.
class Apart {
 public:
  // `number`: of a list, or -1.
  void written(const Tensor& t, const char* name, int64_t number = -1) {
    add(t, name, number, true);
  }
  void read(const Tensor& t, const char* name) { add(t, name, -1, false); }
  void check();

 private:
  struct Span {
    uintptr_t begin, end;
    const char* name;
    int64_t number;
    bool written;
  };
  void add(const Tensor& t, const char* name, int64_t number, bool written);

  std::vector<Span> spans_;
};

// Python's None arrives as a tensor that is not there.
void check_given(const Tensor& t, const char* name);
// Contiguous, of a dtype, and on the device of `like`.
void check_table(const Tensor& t, const char* name, ScalarType dtype, const char* dtype_name,
                 const Tensor& like, const char* like_name);
void check_elements(const Tensor& t, const char* name, int64_t least);
// The rows of a float32 table [rows, kStatistics].
int64_t check_statistics(const Tensor& statistics, const Tensor& like);
// Returns the memory's first byte.
void* check_memory(const Tensor& memory, size_t needed, size_t alignment);

// (first_step + steps) * d_steps must be a number of updates, and likewise for G.
void check_steps(int64_t first_step, int64_t steps, int64_t d_steps, int64_t g_steps = 1);

// `rows`: images to be there, of `width` values. With an order, `entries` of it.
ImageSource check_images(const Tensor& images, int64_t rows, int64_t width,
                         const std::optional<Tensor>& order, int64_t entries, const Tensor& like);
// Every one of n entries must name an image.
void check_order(const int64_t* order, int64_t n, int64_t count);

}  // namespace fastgan
