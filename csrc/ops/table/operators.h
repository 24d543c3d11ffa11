// What the operators of a table's generator are on every device: their arguments, checked, and the
// names they are registered under. A device brings heads, heads_backward, surprise, norm,
// norm_backward, add_columns and sum_columns. All tensors are float32, categories int64; rows may
// lie apart, the numbers of a row together.
#pragma once

#include <cmath>
#include <optional>

#include "ops/product/operators.h"
#include "ops/table/shape.h"

namespace fastgan {

// [rows, columns] with numbers of a row together, the rows in any distance.
inline void check_rows(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, name, " has shape ", shape_of(t), "; expected two dimensions");
  check_float(t, name);
  STD_TORCH_CHECK(is_injective(t) && (t.size(1) <= 1 || t.stride(1) == 1), name,
                  "'s columns lie apart; make it contiguous");
}

inline void check_rows_like(const Tensor& t, const char* name, const Tensor& other,
                            const char* other_name) {
  check_rows(t, name);
  check_same(t, name, other, other_name);
}

inline void check_units(const Tensor& t, const char* name, int64_t width, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == width && t.is_contiguous(), name, " has shape ",
                  shape_of(t), "; expected a contiguous [", width, "]");
  check_like(t, name, like, "x");
}

inline int64_t row_step(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : t.size(1); }

inline void check_places(const Tensor& t, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.is_contiguous(), name,
                  " must be a contiguous int64 tensor of one dimension");
  STD_TORCH_CHECK(t.device() == like.device(), name, " is on another device; move it");
  check_memory(t, name);
}

// blocks: kind (0: tanh, 1: softmax), size and how many, one after another.
inline std::vector<HeadBlock> check_blocks(const std::vector<int64_t>& blocks, int64_t row,
                                           double temperature) {
  STD_TORCH_CHECK(blocks.size() % 3 == 0, "blocks has ", blocks.size(),
                  " numbers; expected three for each: kind, size, many");
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature), "temperature is ", temperature,
                  "; expected a positive number");
  std::vector<HeadBlock> found;
  int64_t all = 0;
  for (size_t i = 0; i < blocks.size(); i += 3) {
    const int64_t kind = blocks[i], size = blocks[i + 1], many = blocks[i + 2];
    STD_TORCH_CHECK((kind == 0 || kind == 1) && size >= 1 && many >= 1 && size <= row &&
                        many <= row && size <= (row - all) / many,
                    "blocks: ", kind, ", ", size, ", ", many, " is no block of a row of ", row,
                    "; expected kind 0 or 1, size, many");
    all += size * many;
    found.push_back({kind == 1, size, many});
  }
  STD_TORCH_CHECK(all == row, "blocks have ", all, " numbers and rows ", row);
  return found;
}

template <class Device>
struct TableOperators {
  static void heads(const Tensor& rows, const Tensor& logits, const std::optional<Tensor>& normals,
                    const std::vector<int64_t>& blocks, double temperature) {
    check_contiguous(rows, "rows");
    check_contiguous(logits, "logits");
    check_same(logits, "logits", rows, "rows");
    check_apart(rows, "rows", logits, "logits");
    const std::vector<HeadBlock> own = check_blocks(blocks, rows.size(1), temperature);
    const HeadsShape s = heads_shape(rows, own, temperature);
    STD_TORCH_CHECK(normals.has_value() || s.choices == 0, "there are ", s.choices,
                    " choices and no normals");
    if (normals.has_value()) {
      check_contiguous(*normals, "normals");
      check_like(*normals, "normals", rows, "rows");
      STD_TORCH_CHECK(normals->size(0) == s.batch && normals->size(1) == s.choices,
                      "normals has shape ", shape_of(*normals), "; expected [", s.batch, ", ",
                      s.choices, "]");
      check_apart(rows, "rows", *normals, "normals");
    }
    if (rows.numel() > 0) Device::heads(s, logits, normals, rows);
  }

  static void heads_backward(const Tensor& grad, const Tensor& rows,
                             const std::vector<int64_t>& blocks, double temperature) {
    check_contiguous(grad, "grad");
    check_contiguous(rows, "rows");
    check_same(rows, "rows", grad, "grad");
    check_apart(grad, "grad", rows, "rows");
    const std::vector<HeadBlock> own = check_blocks(blocks, rows.size(1), temperature);
    const HeadsShape s = heads_shape(rows, own, temperature);
    if (rows.numel() > 0) Device::heads_backward(s, rows, grad);
  }

  static Tensor surprise(const Tensor& grad, const Tensor& logits, const Tensor& category,
                         const Tensor& first, const Tensor& wide, double scale) {
    check_contiguous(grad, "grad");
    check_contiguous(logits, "logits");
    check_same(logits, "logits", grad, "grad");
    check_apart(grad, "grad", logits, "logits");
    check_places(category, "category", grad);
    check_places(first, "first", grad);
    check_places(wide, "wide", grad);
    STD_TORCH_CHECK(category.size(0) == grad.size(0), "category has shape ", shape_of(category),
                    "; expected [", grad.size(0), "]");
    STD_TORCH_CHECK(same_shape(first, wide) && first.size(0) <= grad.size(1),
                    "first and wide have shapes ", shape_of(first), " and ", shape_of(wide),
                    "; expected one number for each category, of at most ", grad.size(1));
    Tensor losses = torch::stable::new_empty(grad, std::vector<int64_t>{grad.size(0)});
    Device::surprise({grad.size(1), static_cast<float>(scale)}, logits, category, first, wide, grad,
                     losses);
    return losses;
  }

  static Tensor normed_relu(const Tensor& out, const Tensor& x, const Tensor& weight,
                            const Tensor& bias, const std::optional<Tensor>& running_mean,
                            const std::optional<Tensor>& running_var, double momentum, double eps) {
    check_rows(x, "x");
    check_rows_like(out, "out", x, "x");
    check_apart(out, "out", x, "x");
    const int64_t width = x.size(1);
    STD_TORCH_CHECK(x.size(0) >= 2, "x has shape ", shape_of(x),
                    "; expected at least two rows, which have a variance");
    STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                    "running_mean and running_var go together; pass both or none");
    check_units(weight, "weight", width, x);
    check_units(bias, "bias", width, x);
    check_apart(out, "out", weight, "weight");
    check_apart(out, "out", bias, "bias");
    if (running_mean.has_value()) {
      Touched touched;
      check_units(*running_mean, "running_mean", width, x);
      check_units(*running_var, "running_var", width, x);
      for (const Tensor* t : {&weight, &bias}) touched.reads(*t);
      for (const Tensor* t : {&*running_mean, &*running_var}) {
        touched.writes(*t);
        check_apart(*t, "running_mean or running_var", x, "x");
        check_apart(*t, "running_mean or running_var", out, "out");
      }
      touched.check("running_mean and running_var");
    }
    Tensor statistics = torch::stable::new_empty(x, std::vector<int64_t>{2, width});
    const NormShape s{x.size(0), width, row_step(x), row_step(out), 0};
    if (width > 0) {
      Device::norm(s, x, weight, bias, running_mean, running_var, momentum, eps, out, statistics);
    }
    return statistics;
  }

  static Tensor normed_relu_backward(const Tensor& grad, const Tensor& out, const Tensor& x,
                                     const Tensor& weight, const Tensor& statistics) {
    check_rows(x, "x");
    check_rows_like(out, "out", x, "x");
    check_rows_like(grad, "grad", x, "x");
    const int64_t width = x.size(1);
    check_units(weight, "weight", width, x);
    check_contiguous(statistics, "statistics");
    check_like(statistics, "statistics", x, "x");
    STD_TORCH_CHECK(statistics.size(0) == 2 && statistics.size(1) == width, "statistics has shape ",
                    shape_of(statistics), "; expected [2, ", width, "]");
    check_apart(grad, "grad", out, "out");
    check_apart(grad, "grad", x, "x");
    check_apart(grad, "grad", weight, "weight");
    check_apart(grad, "grad", statistics, "statistics");
    Tensor found = torch::stable::new_empty(x, std::vector<int64_t>{2, width});
    const NormShape s{x.size(0), width, row_step(x), row_step(out), row_step(grad)};
    if (width > 0) Device::norm_backward(s, out, x, weight, statistics, grad, found);
    return found;
  }

  static void add_columns(const Tensor& out, const Tensor& columns, const Tensor& category) {
    check_of_category(out, "out", columns, "columns", out, "out", columns, "columns", category);
    if (out.numel() > 0) Device::add_columns(columns, category, out);
  }

  static void sum_columns(const Tensor& out, const Tensor& grad, const Tensor& category) {
    check_of_category(out, "out", grad, "grad", grad, "grad", out, "out", category);
    if (out.numel() > 0) Device::sum_columns(grad, category, out);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("heads_", TORCH_BOX(&heads));
    m.impl("heads_backward_", TORCH_BOX(&heads_backward));
    m.impl("surprise_", TORCH_BOX(&surprise));
    m.impl("normed_relu_", TORCH_BOX(&normed_relu));
    m.impl("normed_relu_backward_", TORCH_BOX(&normed_relu_backward));
    m.impl("add_columns_", TORCH_BOX(&add_columns));
    m.impl("sum_columns_", TORCH_BOX(&sum_columns));
  }

 private:
  static void check_contiguous(const Tensor& t, const char* name) {
    check_rows(t, name);
    STD_TORCH_CHECK(t.is_contiguous(), name, "'s rows lie apart; make it contiguous");
  }

  static HeadsShape heads_shape(const Tensor& rows, const std::vector<HeadBlock>& blocks,
                                double temperature) {
    int64_t choices = 0;
    for (const HeadBlock& block : blocks) choices += block.softmax ? block.size * block.many : 0;
    return {rows.size(0),
            rows.size(1),
            choices,
            blocks.data(),
            static_cast<int64_t>(blocks.size()),
            static_cast<float>(temperature)};
  }

  // rows [batch, units] and columns [units, categories].
  static void check_of_category(const Tensor& written, const char* written_name, const Tensor& read,
                                const char* read_name, const Tensor& rows, const char* rows_name,
                                const Tensor& columns, const char* columns_name,
                                const Tensor& category) {
    check_rows(rows, rows_name);
    check_rows(columns, columns_name);
    check_like(read, read_name, written, written_name);
    check_places(category, "category", rows);
    STD_TORCH_CHECK(category.size(0) == rows.size(0) && rows.size(1) == columns.size(0), rows_name,
                    ", ", columns_name, " and category have shapes ", shape_of(rows), ", ",
                    shape_of(columns), " and ", shape_of(category),
                    "; expected [batch, units], [units, categories] and [batch]");
    check_apart(written, written_name, read, read_name);
    check_apart(written, written_name, category, "category");
  }
};

}  // namespace fastgan
