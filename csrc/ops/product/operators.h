// What the operator of a product is on every device: its arguments, checked, and its name. A device
// brings
//   void product(shape, a, b, bias, out)
#pragma once

#include <optional>

#include "ops/product/shape.h"
#include "ops/tensors.h"

namespace fastgan {

// Whether no two indices find one element.
inline bool is_injective(const Tensor& t) {
  int64_t extent = 1;
  for (const auto& [stride, size] : steps_of(t)) {
    if (stride < extent) return false;
    extent += (size - 1) * stride;
  }
  return true;
}

// [begin, end) of the memory between a tensor's first element and its last.
inline std::pair<uintptr_t, uintptr_t> span_of(const Tensor& t) {
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  if (t.numel() == 0) return {begin, begin};
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return {begin, begin + static_cast<uintptr_t>((last + 1) * t.element_size())};
}

// What is written may not lie between what is read.
inline void check_apart(const Tensor& written, const char* name, const Tensor& read,
                        const char* read_name) {
  const auto [a, a_end] = span_of(written);
  const auto [b, b_end] = span_of(read);
  STD_TORCH_CHECK(a_end <= b || b_end <= a, name, " shares memory with ", read_name,
                  "; clone one of them");
}

inline void check_float(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32");
  check_memory(t, name);
}

inline void check_matrices(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 || t.dim() == 3, name, " has shape ", shape_of(t),
                  "; expected two or three dimensions");
  check_float(t, name);
  STD_TORCH_CHECK(is_injective(t), name,
                  " has elements that share memory; make it contiguous, or leave out the first "
                  "dimension that is the same for all");
}

inline ProductShape check_product(const Tensor& out, const Tensor& a, const Tensor& b,
                                  const std::optional<Tensor>& bias, bool add) {
  check_matrices(out, "out");
  check_matrices(a, "a");
  check_matrices(b, "b");
  check_like(a, "a", out, "out");
  check_like(b, "b", out, "out");
  const auto many_of = [](const Tensor& t) { return t.dim() == 3 ? t.size(0) : int64_t{1}; };
  const auto step = [](const Tensor& t, int64_t from_end) {
    const int64_t i = t.dim() - from_end;
    return i >= 0 && t.size(i) > 1 ? t.stride(i) : int64_t{i < 0 ? 0 : 1};
  };
  const auto size = [](const Tensor& t, int64_t from_end) { return t.size(t.dim() - from_end); };
  ProductShape s{};
  s.many = a.dim() == 3 ? many_of(a) : many_of(b);
  s.rows = size(a, 2);
  s.depth = size(a, 1);
  s.columns = size(b, 1);
  s.sum = out.dim() == 2 && (a.dim() == 3 || b.dim() == 3);
  s.add = add;
  STD_TORCH_CHECK(size(b, 2) == s.depth && (a.dim() == 2 || b.dim() == 2 || many_of(b) == s.many),
                  "a and b have shapes ", shape_of(a), " and ", shape_of(b),
                  "; expected [n, rows, depth] and [n, depth, columns]");
  const bool fits = out.dim() == 2 || many_of(out) == s.many;
  STD_TORCH_CHECK(fits && size(out, 2) == s.rows && size(out, 1) == s.columns, "out has shape ",
                  shape_of(out), "; expected [", s.rows, ", ", s.columns,
                  "], or one such for each of ", s.many, " products");
  STD_TORCH_CHECK(s.columns <= 1 || out.stride(out.dim() - 1) == 1,
                  "out's columns lie apart; expected a last stride of 1");
  STD_TORCH_CHECK(!s.sum || s.many > 0, "a and b have shapes ", shape_of(a), " and ", shape_of(b),
                  "; expected at least one product in a sum");
  if (s.sum && s.depth == 0) s.many = 1;  // of no terms, however many
  s.a_many = a.dim() == 3 ? a.stride(0) : 0;
  s.b_many = b.dim() == 3 ? b.stride(0) : 0;
  s.out_many = out.dim() == 3 ? out.stride(0) : 0;
  s.a_row = step(a, 2);
  s.a_term = step(a, 1);
  s.out_row = step(out, 2);
  s.b_term = step(b, 2);
  s.b_column = step(b, 1);
  // Of one column, or one term, the step says nothing: the other may be anything.
  if (s.columns == 1 && s.b_term != 1) s.b_column = 1;
  if (s.depth == 1 && s.b_column != 1) s.b_term = 1;
  STD_TORCH_CHECK(s.b_column == 1 || s.b_term == 1, "b's rows and columns both lie apart, by ",
                  s.b_term, " and ", s.b_column, "; make it contiguous");
  check_apart(out, "out", a, "a");
  check_apart(out, "out", b, "b");
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == s.columns && bias->is_contiguous(),
                    "bias has shape ", shape_of(*bias), "; expected a contiguous [", s.columns,
                    "]");
    check_like(*bias, "bias", out, "out");
    check_apart(out, "out", *bias, "bias");
  }
  return s;
}

template <class Device>
struct ProductOperators {
  static void product(const Tensor& out, const Tensor& a, const Tensor& b,
                      const std::optional<Tensor>& bias, bool add) {
    const ProductShape s = check_product(out, a, b, bias, add);
    if (out.numel() > 0) Device::product(s, a, b, bias, out);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("product_", TORCH_BOX(&product));
  }
};

}  // namespace fastgan
