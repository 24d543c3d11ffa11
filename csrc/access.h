// How the CPU and the CUDA operators reach into tensors.
#pragma once

#include <cstdint>

#include "checks.h"
#include "common/fp16.h"

namespace fastgan {

template <class T>
const T* in_ptr(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* out_ptr(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Calls f with a value of the type that holds elements of `dtype`.
template <class F>
void dispatch(ScalarType dtype, const char* name, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      f(float{});
      break;
    case ScalarType::Double:
      f(double{});
      break;
    case ScalarType::BFloat16:
      f(bf16{});
      break;
    case ScalarType::Half:
      f(fp16{});
      break;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

// Calls run(pixel, element) with values of the types of a gather; see check_gather.
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

}  // namespace fastgan
