// What the operator that gathers a batch is on every device: its arguments, checked, and its name.
// A device brings
//   void gather(batch, pixels, out)
#pragma once

#include "ops/gather/gather.h"
#include "ops/random/checks.h"

namespace fastgan {

inline Gather check_gather(const Tensor& out, const Tensor& pixels, const Tensor& order,
                           const Tensor& counter, int64_t multiplier, int64_t offset, int64_t batch,
                           int64_t batches_per_epoch) {
  constexpr int64_t kMostImages = int64_t{1} << 62;
  STD_TORCH_CHECK(pixels.dim() >= 1 && pixels.is_contiguous(), "pixels has shape ",
                  shape_of(pixels), "; expected a contiguous tensor [images, ...]");
  const ScalarType from = pixels.scalar_type(), to = out.scalar_type();
  STD_TORCH_CHECK(from == ScalarType::Byte || from == ScalarType::Float ||
                      (from == ScalarType::Double && to == ScalarType::Double),
                  "pixels must be uint8 or float32 (or float64, where out is)");
  std::vector<int64_t> image = sizes_of(pixels), row = sizes_of(out);
  STD_TORCH_CHECK(!row.empty(), "out has no dimensions; expected [rows, ...]");
  const int64_t rows = row[0];
  image[0] = rows;
  STD_TORCH_CHECK(row == image, "out has shape ", shape_of(out),
                  "; expected images of the shape in pixels, which has shape ", shape_of(pixels));
  STD_TORCH_CHECK(
      order.dim() == 1 && order.scalar_type() == ScalarType::Long && order.is_contiguous(),
      "order must be a contiguous int64 vector; it has shape ", shape_of(order));
  STD_TORCH_CHECK(pixels.device() == out.device() && order.device() == out.device(),
                  "pixels, order and out are on different devices; move them to one");
  check_memory(out, "out");
  check_memory(pixels, "pixels");
  check_memory(order, "order");
  check_counter(counter, out, "out");
  STD_TORCH_CHECK(batch >= 1 && rows <= batch, "batch is ", batch, " and out has ", rows,
                  " rows; expected 1 <= batch and no more rows than batch");
  STD_TORCH_CHECK(batches_per_epoch >= 1, "batches_per_epoch is ", batches_per_epoch,
                  "; expected 1 or more");
  STD_TORCH_CHECK(batches_per_epoch <= kMostImages / batch, "batch is ", batch,
                  " and batches_per_epoch ", batches_per_epoch,
                  "; expected no more than 2**62 images in an epoch");
  Gather g{rows,
           1,
           0,
           false,
           pixels.size(0),
           order.size(0),
           batch,
           batches_per_epoch,
           in_ptr<int64_t>(order),
           counter_of(counter, multiplier, offset)};
  if (out.numel() > 0) g.plane = out.numel() / rows;
  if (!out.is_contiguous()) {
    g.channels_last = row.size() == 4 && out.stride(1) == 1 && out.stride(3) == row[1] &&
                      out.stride(2) == row[1] * row[3] && out.stride(0) == g.plane;
    STD_TORCH_CHECK(g.channels_last, "out is neither contiguous nor channels_last");
    g.channels = row[1];
    g.plane /= row[1];
  }
  Touched touched;
  touched.writes(out);
  touched.reads(std::vector<Tensor>{pixels, order, counter});
  touched.check("out");
  return g;
}

// Calls run(pixel, element) with values of the types of a gather.
template <class Run>
void dispatch_gather(const Tensor& pixels, const Tensor& out, const Run& run) {
  dispatch(out.scalar_type(), "out", [&](auto element) {
    if (pixels.scalar_type() == ScalarType::Byte) {
      run(uint8_t{}, element);
    } else if (pixels.scalar_type() == ScalarType::Float) {
      run(float{}, element);
    } else {
      run(double{}, double{});
    }
  });
}

template <class Device>
struct GatherOperators {
  static void gather_normalize(const Tensor& out, const Tensor& pixels, const Tensor& order,
                               const Tensor& counter, int64_t multiplier, int64_t offset,
                               int64_t batch, int64_t batches_per_epoch) {
    Device::gather(
        check_gather(out, pixels, order, counter, multiplier, offset, batch, batches_per_epoch),
        pixels, out);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("gather_normalize", TORCH_BOX(&gather_normalize));
  }
};

}  // namespace fastgan
