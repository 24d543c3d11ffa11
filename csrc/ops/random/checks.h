// What the operators that draw demand of their arguments.
#pragma once

#include "ops/random/draw.h"
#include "ops/tensors.h"

namespace fastgan {

// The generator of elements [start, start + n) of a stream, `per_word` to a word, for the tensor of
// that name.
inline Philox check_draw(const char* name, int64_t seed, int64_t stream, int64_t step,
                         int64_t start, int64_t n, int64_t per_word) {
  STD_TORCH_CHECK(stream >= 0 && stream < int64_t{1} << 32, "stream is ", stream,
                  "; expected 0 <= stream < 2**32");
  STD_TORCH_CHECK(start >= 0, "start is ", start, "; expected 0 or more");
  const int64_t most = per_word << 34;
  STD_TORCH_CHECK(start <= most && n <= most - start, name, " needs ", n, " elements from ", start,
                  " on; the stream has ", most, ", from 2**34 words");
  return make_philox(static_cast<uint64_t>(seed), static_cast<uint32_t>(stream),
                     static_cast<uint64_t>(step));
}

inline Philox check_philox(const Tensor& out, ScalarType dtype, const char* dtype_name,
                           int64_t seed, int64_t stream, int64_t step, int64_t start = 0) {
  STD_TORCH_CHECK(out.scalar_type() == dtype, "out has the wrong dtype; expected ", dtype_name);
  STD_TORCH_CHECK(out.is_contiguous(), "out is not contiguous");
  check_memory(out, "out");
  return check_draw("out", seed, stream, step, start, out.numel(), 1);
}

inline void check_threshold(int64_t threshold) {
  STD_TORCH_CHECK(threshold >= 0 && threshold <= 65536, "threshold is ", threshold,
                  "; expected 0 <= threshold <= 65536");
}

inline Philox check_keep_mask(const Tensor& out, int64_t seed, int64_t stream, int64_t step,
                              int64_t threshold) {
  check_threshold(threshold);
  STD_TORCH_CHECK(out.scalar_type() == ScalarType::Bool, "out has the wrong dtype; expected bool");
  STD_TORCH_CHECK(out.is_contiguous(), "out is not contiguous");
  check_memory(out, "out");
  return check_draw("out", seed, stream, step, 0, out.numel(), 2);
}

inline Counter counter_of(const Tensor& counter, int64_t multiplier, int64_t offset) {
  return {in_ptr<int64_t>(counter), multiplier, offset};
}

// The counter of a draw into `out`.
inline Counter check_counter_for(const Tensor& out, const Tensor& counter, int64_t multiplier,
                                 int64_t offset) {
  check_counter(counter, out, "out");
  Touched touched;
  touched.writes(out);
  touched.reads(counter);
  touched.check("out");
  return counter_of(counter, multiplier, offset);
}

// A mask for `elements` on the device of x.
inline Dropout check_dropout(const Tensor& x, int64_t elements, int64_t threshold, int64_t seed,
                             int64_t stream, const Tensor& counter, int64_t multiplier,
                             int64_t offset, int64_t start) {
  check_threshold(threshold);
  check_counter(counter, x, "x");
  return {check_draw("x", seed, stream, 0, start, elements, 2),
          counter_of(counter, multiplier, offset), start, static_cast<uint32_t>(threshold)};
}

}  // namespace fastgan
