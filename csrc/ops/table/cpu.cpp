// What a generator of a table's rows is made of, on the CPU.
#include "cpu/scratch.h"
#include "cpu/workspace.h"
#include "ops/table/operators.h"

namespace fastgan::cpu {

namespace {

// Rows, and units, that a thread takes at a time.
constexpr int64_t kRows = 16, kUnits = 64;

int64_t longest(const HeadsShape& s) {
  int64_t most = 0;
  for (int64_t b = 0; b < s.count; ++b) {
    const HeadBlock& block = s.blocks[b];
    most = std::max(most, block.softmax ? block.size : block.size * block.many);
  }
  return most;
}

template <class F>
void each_row(const HeadsShape& s, const F& f) {
  const int64_t floats = 2 * kRows * longest(s);
  parallel_units(s.batch, kRows, grain_of(32 * kRows * s.row), [&](int64_t begin, int64_t end) {
    const Workspace memory(floats);
    f(begin, end, memory.data());
  });
}

template <class F>
void each_unit(int64_t units, int64_t batch, const F& f) {
  parallel_units(units, kUnits, grain_of(8 * kUnits * batch), f);
}

void check_categories(const Tensor& category, int64_t most) {
  const int64_t* const places = in_ptr<int64_t>(category);
  for (int64_t i = 0; i < category.size(0); ++i) {
    STD_TORCH_CHECK(places[i] >= 0 && places[i] < most, "category[", i, "] is ", places[i],
                    "; expected 0 or more, and less than ", most);
  }
}

struct TableOnCpu {
  static void heads(const HeadsShape& s, const Tensor& logits, const std::optional<Tensor>& normals,
                    const Tensor& rows) {
    const float* const from = in_ptr<float>(logits);
    const float* const noise = normals ? in_ptr<float>(*normals) : nullptr;
    float* const to = out_ptr<float>(rows);
    each_row(s, [&](int64_t begin, int64_t end, float* memory) {
      kernels().heads(s, from, noise, begin, end, memory, to);
    });
  }

  static void heads_backward(const HeadsShape& s, const Tensor& rows, const Tensor& grad) {
    const float* const made = in_ptr<float>(rows);
    float* const to = out_ptr<float>(grad);
    each_row(s, [&](int64_t begin, int64_t end, float* memory) {
      kernels().heads_backward(s, made, begin, end, memory, to);
    });
  }

  static void surprise(const SurpriseShape& s, const Tensor& logits, const Tensor& category,
                       const Tensor& first, const Tensor& wide, const Tensor& grad,
                       const Tensor& losses) {
    const int64_t categories = first.size(0), last = s.row - categories;
    check_categories(category, categories);
    const int64_t *const asked = in_ptr<int64_t>(category), *const at = in_ptr<int64_t>(first),
                         *const size = in_ptr<int64_t>(wide);
    for (int64_t c = 0; c < categories; ++c) {
      STD_TORCH_CHECK(at[c] >= 0 && size[c] >= 1 && at[c] <= s.row && size[c] <= s.row - at[c] &&
                          last + c >= at[c] && last + c < at[c] + size[c],
                      "first and wide say that category ", c, " is in the group of ", size[c],
                      " from ", at[c], " on, and it is number ", last + c, " of a row of ", s.row);
    }
    const float* const from = in_ptr<float>(logits);
    float *const to = out_ptr<float>(grad), *const loss = out_ptr<float>(losses);
    parallel_units(
        logits.size(0), kRows, 1 + 4096 / (kRows * (1 + s.row)), [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) {
            const int64_t c = asked[b], place = b * s.row + at[c];
            loss[b] =
                kernels().surprise(from + place, size[c], last + c - at[c], s.scale, to + place);
          }
        });
  }

  static void norm(const NormShape& s, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const std::optional<Tensor>& running_mean,
                   const std::optional<Tensor>& running_var, double momentum, double eps,
                   const Tensor& out, const Tensor& statistics) {
    const float *const from = in_ptr<float>(x), *const w = in_ptr<float>(weight),
                       *const b = in_ptr<float>(bias);
    float* const moving = running_mean ? out_ptr<float>(*running_mean) : nullptr;
    float* const spread = running_var ? out_ptr<float>(*running_var) : nullptr;
    float *const to = out_ptr<float>(out), *const mean = out_ptr<float>(statistics);
    each_unit(s.width, s.batch, [&](int64_t begin, int64_t end) {
      kernels().normed_relu(s, from, w, b, momentum, eps, begin, end, moving, spread, mean,
                            mean + s.width, to);
    });
  }

  static void norm_backward(const NormShape& s, const Tensor& out, const Tensor& x,
                            const Tensor& weight, const Tensor& statistics, const Tensor& grad,
                            const Tensor& found) {
    const float *const made = in_ptr<float>(out), *const from = in_ptr<float>(x),
                       *const w = in_ptr<float>(weight), *const mean = in_ptr<float>(statistics);
    float *const to = out_ptr<float>(grad), *const grads = out_ptr<float>(found);
    each_unit(s.width, s.batch, [&](int64_t begin, int64_t end) {
      kernels().normed_relu_backward(s, made, from, w, mean, mean + s.width, begin, end, to, grads,
                                     grads + s.width);
    });
  }

  static void add_columns(const Tensor& columns, const Tensor& category, const Tensor& out) {
    check_categories(category, columns.size(1));
    const float* const from = in_ptr<float>(columns);
    const int64_t* const places = in_ptr<int64_t>(category);
    float* const to = out_ptr<float>(out);
    each_unit(out.size(1), out.size(0), [&](int64_t begin, int64_t end) {
      kernels().add_columns(from, row_step(columns), places, out.size(0), begin, end, to,
                            row_step(out));
    });
  }

  static void sum_columns(const Tensor& grad, const Tensor& category, const Tensor& out) {
    check_categories(category, out.size(1));
    const float* const from = in_ptr<float>(grad);
    const int64_t* const places = in_ptr<int64_t>(category);
    float* const to = out_ptr<float>(out);
    each_unit(out.size(0), grad.size(0), [&](int64_t begin, int64_t end) {
      kernels().sum_columns(from, row_step(grad), places, grad.size(0), out.size(1), begin, end, to,
                            row_step(out));
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, m) { TableOperators<TableOnCpu>::add_to(m); }

}  // namespace fastgan::cpu
