// What every operator demands of its arguments, whoever calls it and with whatever. Messages name
// the argument, what was found and what was expected.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

// Torch 2.11 has the check without the reason of a failure.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#  define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastgan {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(t.size(i));
  }
  return text + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

inline bool same_shape(const Tensor& a, const Tensor& b) { return sizes_of(a) == sizes_of(b); }

// A storage can have been resized under a tensor, and torch.frombuffer starts at any byte: either
// would be read without a word.
inline void check_memory(const Tensor& t, const char* name) {
  if (t.numel() == 0) return;
  int64_t bytes = 0, last = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &last));
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  const auto width = static_cast<int64_t>(t.element_size());
  STD_TORCH_CHECK(last < bytes / width, name, " has shape ", shape_of(t),
                  ", but its storage was resized to ", bytes, " bytes; pass a tensor that fits");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % width == 0, name,
                  " starts at an address that is no multiple of its elements' size; clone it");
}

inline void check_like(const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  STD_TORCH_CHECK(t.scalar_type() == other.scalar_type(), name, " and ", other_name,
                  " have different dtypes; convert one of them");
  STD_TORCH_CHECK(t.device() == other.device(), name, " and ", other_name,
                  " are on different devices; move one of them");
  check_memory(t, name);
}

inline void check_same(const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  check_like(t, name, other, other_name);
  STD_TORCH_CHECK(same_shape(t, other), name, " has shape ", shape_of(t), "; expected that of ",
                  other_name, ", ", shape_of(other));
}

// Strides of the dimensions that are more than one element long, with their sizes, smallest first.
inline std::vector<std::pair<int64_t, int64_t>> steps_of(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> steps;
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) > 1) steps.emplace_back(t.stride(i), t.size(i));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

// Whether the elements fill one block of memory, in whatever order of the dimensions.
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  int64_t expected = 1;
  for (const auto& [stride, size] : steps_of(t)) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Whether equal indices find their elements at equal places; both have the same shape.
inline bool same_order(const Tensor& a, const Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) > 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

// The memory of an operator's arguments, all of them dense: what is written may not be read or
// written through another argument.
class Touched {
 public:
  void reads(const Tensor& t) { add(t, false); }
  void writes(const Tensor& t) { add(t, true); }
  void reads(const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) reads(t);
  }
  void writes(const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) writes(t);
  }

  // written: the names of the arguments that are.
  void check(const char* written) {
    std::sort(spans_.begin(), spans_.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin; });
    uintptr_t end = 0, written_end = 0;
    for (const Span& span : spans_) {
      STD_TORCH_CHECK(span.begin >= (span.written ? end : written_end), written,
                      " share memory with one another or with another argument; clone what is "
                      "shared, because it is written to");
      end = std::max(end, span.end);
      if (span.written) written_end = std::max(written_end, span.end);
    }
  }

 private:
  struct Span {
    uintptr_t begin, end;
    bool written;
  };

  void add(const Tensor& t, bool written) {
    if (t.numel() == 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    spans_.push_back({begin, begin + t.numel() * t.element_size(), written});
  }

  std::vector<Span> spans_;
};

// One number on the device of `other`.
inline void check_number(const Tensor& t, const char* name, ScalarType dtype,
                         const char* dtype_name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype; expected ", dtype_name);
  STD_TORCH_CHECK(t.numel() == 1, name, " has shape ", shape_of(t), "; expected one element");
  STD_TORCH_CHECK(t.device() == other.device(), name, " and ", other_name,
                  " are on different devices; move one of them");
  check_memory(t, name);
}

// The same in float32 or in float64.
inline void check_real(const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  const bool wide = t.scalar_type() == ScalarType::Double;
  check_number(t, name, wide ? ScalarType::Double : ScalarType::Float, "float32 or float64", other,
               other_name);
}

inline void check_counter(const Tensor& counter, const Tensor& other, const char* other_name) {
  check_number(counter, "counter", ScalarType::Long, "int64", other, other_name);
}

}  // namespace fastgan
