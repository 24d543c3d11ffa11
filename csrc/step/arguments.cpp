#include "step/arguments.h"

#include <algorithm>

namespace fastgan {

int64_t times(int64_t a, int64_t b) {
  int64_t product;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), "plan and arguments ask for ", a,
                  " times ", b, " of something, which no machine has");
  return product;
}

void check_given(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.defined(), name, " is None; expected a tensor");
}

void Apart::add(const Tensor& t, const char* name, int64_t number, bool written) {
  check_given(t, name);
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const auto bytes = static_cast<uintptr_t>(t.numel()) * static_cast<uintptr_t>(t.element_size());
  if (bytes > 0) spans_.push_back({begin, begin + bytes, name, number, written});
}

void Apart::check() {
  std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) {
    return a.begin < b.begin || (a.begin == b.begin && a.number < b.number);
  });
  const auto named = [](const Span& s) {
    return s.number < 0 ? std::string(s.name)
                        : std::string(s.name) + "[" + std::to_string(s.number) + "]";
  };
  // Of those so far, the ones that reach furthest: of all, and of those that are written.
  const Span *any = nullptr, *written = nullptr;
  for (const Span& s : spans_) {
    const Span* const before = s.written ? any : written;
    STD_TORCH_CHECK(!before || before->end <= s.begin, named(*before), " and ", named(s),
                    " share memory; give a tensor of its own for each");
    if (!any || s.end > any->end) any = &s;
    if (s.written && (!written || s.end > written->end)) written = &s;
  }
}

void check_table(const Tensor& t, const char* name, ScalarType dtype, const char* dtype_name,
                 const Tensor& like, const char* like_name) {
  check_given(t, name);
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous(), name,
                  " must be a contiguous tensor of ", dtype_name);
  STD_TORCH_CHECK(t.device() == like.device(), name, " and ", like_name,
                  " are on different devices; move one of them");
}

void check_elements(const Tensor& t, const char* name, int64_t least) {
  STD_TORCH_CHECK(t.numel() >= least, name, " has ", t.numel(), " elements; expected ", least,
                  " or more");
}

int64_t check_statistics(const Tensor& statistics, const Tensor& like) {
  check_table(statistics, "statistics", ScalarType::Float, "float32", like, "memory");
  STD_TORCH_CHECK(statistics.dim() == 2 && statistics.size(1) == kStatistics,
                  "statistics has shape ", shape_of(statistics), "; expected [steps, ", kStatistics,
                  "]");
  return statistics.size(0);
}

void* check_memory(const Tensor& memory, size_t needed, size_t alignment) {
  check_table(memory, "memory", ScalarType::Byte, "uint8", memory, "memory");
  STD_TORCH_CHECK(static_cast<uint64_t>(memory.numel()) >= needed, "memory has ", memory.numel(),
                  " bytes; expected ", needed, " or more");
  void* const base = memory.mutable_data_ptr();
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(base) % alignment == 0,
                  "memory must begin at a multiple of ", alignment, " bytes");
  return base;
}

void check_steps(int64_t first_step, int64_t steps, int64_t d_steps, int64_t g_steps) {
  STD_TORCH_CHECK(first_step >= 0, "first_step is ", first_step, "; expected 0 or more");
  STD_TORCH_CHECK(steps >= 0, "steps is ", steps, "; expected 0 or more");
  constexpr int64_t most = INT64_MAX / 4;
  for (const auto& [updates, name] : {std::pair{d_steps, "D"}, std::pair{g_steps, "G"}})
    STD_TORCH_CHECK(first_step <= most && steps <= most && first_step + steps <= most / updates,
                    "first_step is ", first_step, ", of which ", steps, " steps with ", updates,
                    " updates of ", name, " each do not end within 2**61 updates");
}

ImageSource check_images(const Tensor& images, int64_t rows, int64_t width,
                         const std::optional<Tensor>& order, int64_t entries, const Tensor& like) {
  ImageSource source;
  check_given(images, "images");
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || images.scalar_type() == ScalarType::Float,
                  "images must be uint8 or float32");
  STD_TORCH_CHECK(!bytes || order, "images fed without an order must be float32");
  check_table(images, "images", bytes ? ScalarType::Byte : ScalarType::Float,
              bytes ? "uint8" : "float32", like, "memory");
  check_elements(images, "images", times(rows, width));
  source.stored = images.numel() / width;
  if (bytes) {
    source.bytes = static_cast<const uint8_t*>(images.const_data_ptr());
  } else {
    source.floats = static_cast<const float*>(images.const_data_ptr());
  }
  if (order) {
    check_table(*order, "order", ScalarType::Long, "int64", like, "memory");
    check_elements(*order, "order", entries);
    source.order = static_cast<const int64_t*>(order->const_data_ptr());
  }
  return source;
}

void check_order(const int64_t* order, int64_t n, int64_t count) {
  bool outside = false;
  for (int64_t i = 0; i < n; ++i)
    outside |= static_cast<uint64_t>(order[i]) >= static_cast<uint64_t>(count);
  STD_TORCH_CHECK(!outside, "order names an image outside 0 to ", count - 1,
                  "; give permutations of the images");
}

}  // namespace fastgan
