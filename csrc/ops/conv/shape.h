// The sizes of one convolution. No torch here.
#pragma once

#include <stdint.h>

namespace fastgan {

// x [batch, height, width, in] and y [batch, height / stride, width / stride, out], channels last.
struct ConvShape {
  int64_t batch, height, width, in, out;
};

// Element (o, i, y, x) of a weight [out, in, kernel, kernel] is at
// data[o * out + i * in + y * row + x * column]; with flip both taps count from the end.
template <class T>
struct ConvWeight {
  T* data;
  int64_t out, in, row, column;
  bool flip;
};

}  // namespace fastgan
