// Adam and averages of weights on CUDA.
#include "cuda/on_device.h"
#include "ops/adam/launch.h"
#include "ops/adam/operators.h"

namespace fastgan::cuda {

namespace {

// What a launch over lists of tensors takes: their pointers and sizes. The type of a table is one,
// but kernels only read what they do not write.
template <class T>
std::vector<T*> written(const std::vector<Tensor>& tensors) {
  std::vector<T*> found;
  for (const Tensor& t : tensors) found.push_back(out_ptr<T>(t));
  return found;
}
template <class T>
std::vector<T*> read(const std::vector<Tensor>& tensors) {
  std::vector<T*> found;
  for (const Tensor& t : tensors) found.push_back(const_cast<T*>(in_ptr<T>(t)));
  return found;
}
std::vector<int64_t> numels(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> found;
  for (const Tensor& t : tensors) found.push_back(t.numel());
  return found;
}

// Calls run(AdamTensors<T>) with T the dtype of the parameters; they are not empty.
template <class Run>
void with_tensors(const AdamLists& t, const Run& run) {
  const auto with = [&](auto tag) {
    using T = decltype(tag);
    const auto p = written<T>(t.params), m = written<T>(t.exp_avgs), v = written<T>(t.exp_avg_sqs);
    const auto g = read<T>(t.grads);
    const std::vector<int64_t> sizes = numels(t.params);
    const auto count = static_cast<int64_t>(p.size());
    STD_CUDA_CHECK(
        run(AdamTensors<T>{p.data(), m.data(), v.data(), g.data(), sizes.data(), count}));
  };
  t.params[0].scalar_type() == ScalarType::Float ? with(float{}) : with(double{});
}

RealOnDevice real(const Tensor& t) {
  const bool wide = t.scalar_type() == ScalarType::Double;
  return {wide ? nullptr : in_ptr<float>(t), wide ? in_ptr<double>(t) : nullptr};
}

const float* number_or_null(const std::optional<Tensor>& t) {
  return t ? in_ptr<float>(*t) : nullptr;
}

struct AdamOnCuda {
  static void adam(const AdamLists& t, const AdamNumbers& n, double step, double lr) {
    const OnDeviceOf device(t.params[0]);
    with_tensors(t, [&]<class T>(const AdamTensors<T>& tensors) {
      return cuda::adam<T>(
          make_adam<T>(step, lr, n.beta1, n.beta2, n.eps, n.weight_decay, n.decoupled), tensors,
          device.stream());
    });
  }

  static void adam_device(const AdamLists& t, const AdamNumbers& n, const Tensor& step,
                          const Tensor& lr, const std::optional<Tensor>& grad_scale,
                          const std::optional<Tensor>& found_inf) {
    const OnDeviceOf device(t.params[0]);
    const AdamOnDevice d{real(step),
                         real(lr),
                         number_or_null(grad_scale),
                         number_or_null(found_inf),
                         n.beta1,
                         n.beta2,
                         n.eps,
                         n.weight_decay,
                         n.decoupled};
    with_tensors(t, [&]<class T>(const AdamTensors<T>& tensors) {
      return cuda::adam_device<T>(d, tensors, device.stream());
    });
  }

  static void ema(const std::vector<Tensor>& averages, const std::vector<Tensor>& values,
                  double decay) {
    const OnDeviceOf device(averages[0]);
    dispatch(averages[0].scalar_type(), "averages", [&](auto tag) {
      using T = decltype(tag);
      const auto to = written<T>(averages), from = read<T>(values);
      const std::vector<int64_t> sizes = numels(averages);
      STD_CUDA_CHECK(cuda::ema<T>(to.data(), from.data(), sizes.data(),
                                  static_cast<int64_t>(to.size()), decay, device.stream()));
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgan, FASTGAN_DEVICE, m) { AdamOperators<AdamOnCuda>::add_to(m); }

}  // namespace fastgan::cuda
