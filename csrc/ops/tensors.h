// How the CPU and the CUDA operators reach into tensors.
#pragma once

#include <cstdint>

#include "common/fp16.h"
#include "ops/checks.h"

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

}  // namespace fastgan
