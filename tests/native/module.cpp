// The torch-free kernels on numpy arrays, every instruction set by name: for tests and
// micro-benchmarks. tests/native/__init__.py builds it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/activation.h"
#include "common/dropout.h"
#include "common/gelu.h"
#include "common/losses.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace fastgan;
using namespace fastgan::cpu;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
template <class T>
using InPlace = py::array_t<T, py::array::c_style>;

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (has_isa(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

const Kernels& table(const std::string& name) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (name != isa_name(isa)) continue;
    if (const Kernels* k = kernels_for(isa)) {
      if (k->isa != isa) throw std::logic_error("the table of " + name + " is another's");
      return *k;
    }
  }
  throw std::invalid_argument("no kernels for " + name);
}

// --- Philox ---

Array<int64_t> words(const std::string& isa, uint64_t seed, uint32_t stream, uint64_t step,
                     int64_t begin, int64_t n) {
  Array<int64_t> out(n);
  table(isa).philox_words(make_philox(seed, stream, step), begin, n, out.mutable_data());
  return out;
}

Array<float> uniform(const std::string& isa, uint64_t seed, uint32_t stream, uint64_t step,
                     int64_t begin, int64_t n) {
  Array<float> out(n);
  table(isa).philox_uniform(make_philox(seed, stream, step), begin, n, out.mutable_data());
  return out;
}

Array<float> normal(const std::string& isa, uint64_t seed, uint32_t stream, uint64_t step,
                    int64_t begin, int64_t n) {
  Array<float> out(n);
  table(isa).philox_normal(make_philox(seed, stream, step), begin, n, out.mutable_data());
  return out;
}

Array<uint8_t> keep_mask(const std::string& isa, uint64_t seed, uint32_t stream, uint64_t step,
                         int64_t begin, int64_t n, uint32_t threshold) {
  Array<uint8_t> out(n);
  table(isa).philox_keep_mask(make_philox(seed, stream, step), begin, n, threshold,
                              out.mutable_data());
  return out;
}

// --- Losses ---

std::tuple<double, Array<float>> bce_f32(const std::string& isa, Array<float> logits, double label,
                                         double scale) {
  Array<float> grad(logits.size());
  const double sum =
      table(isa).bce_f32(logits.data(), logits.size(), label, scale, grad.mutable_data());
  return {sum, grad};
}

std::tuple<double, Array<double>> bce_f64(const std::string& isa, Array<double> logits,
                                          double label, double scale) {
  Array<double> grad(logits.size());
  const double sum =
      table(isa).bce_f64(logits.data(), logits.size(), label, scale, grad.mutable_data());
  return {sum, grad};
}

// bfloat16 as its bits, in uint16.
std::tuple<double, Array<uint16_t>> bce_bf16(const std::string& isa, Array<uint16_t> logits,
                                             double label, double scale) {
  Array<uint16_t> grad(logits.size());
  const double sum =
      table(isa).bce_bf16(reinterpret_cast<const bf16*>(logits.data()), logits.size(), label, scale,
                          reinterpret_cast<bf16*>(grad.mutable_data()));
  return {sum, grad};
}

// --- Adam ---

template <class T>
void adam(const std::string& isa, const Array<T>& grad, InPlace<T> weight, InPlace<T> exp_avg,
          InPlace<T> exp_avg_sq, int64_t step, double lr, double beta1, double beta2, double eps,
          double weight_decay, bool decoupled) {
  const Adam<T> a = make_adam<T>(step, lr, beta1, beta2, eps, weight_decay, decoupled);
  const Kernels& k = table(isa);
  if constexpr (std::is_same_v<T, float>) {
    k.adam_f32(a, grad.size(), grad.data(), weight.mutable_data(), exp_avg.mutable_data(),
               exp_avg_sq.mutable_data());
  } else {
    k.adam_f64(a, grad.size(), grad.data(), weight.mutable_data(), exp_avg.mutable_data(),
               exp_avg_sq.mutable_data());
  }
}

// --- Linear ---

template <class T>
const LinearKernels<T>& linear(const std::string& isa) {
  if constexpr (std::is_same_v<T, float>) {
    return table(isa).linear_f32;
  } else {
    return table(isa).linear_f64;
  }
}

template <class T>
std::unique_ptr<T[]> new_scratch() {
  return std::make_unique<T[]>(kScratchBytes / sizeof(T));
}

// The columns are done in two calls, cut at `cut`: the result must not show it.
template <class T>
Array<T> forward(const std::string& isa, Array<T> x, Array<T> weight, std::optional<Array<T>> bias,
                 double slope, int64_t cut) {
  const LinearShape s{x.shape(0), x.shape(1), weight.shape(0)};
  Array<T> y({s.batch, s.out});
  const auto scratch = new_scratch<T>();
  for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, s.out}}) {
    linear<T>(isa).linear_leaky_relu(s, x.data(), weight.data(), bias ? bias->data() : nullptr,
                                     slope, begin, end, scratch.get(), y.mutable_data());
  }
  return y;
}

template <class T>
std::tuple<Array<T>, Array<T>> activation_backward(const std::string& isa, Array<T> grad,
                                                   Array<T> sign, double slope, int64_t cut) {
  const LinearShape s{grad.shape(0), 0, grad.shape(1)};
  Array<T> grad_pre({s.batch, s.out}), grad_bias(s.out);
  for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, s.out}}) {
    linear<T>(isa).leaky_relu_backward(s, grad.data(), sign.data(), slope, begin, end,
                                       grad_pre.mutable_data(), grad_bias.mutable_data());
  }
  return {grad_pre, grad_bias};
}

template <class T>
Array<T> grad_x(const std::string& isa, Array<T> grad_pre, Array<T> weight, int64_t cut) {
  const LinearShape s{grad_pre.shape(0), weight.shape(1), weight.shape(0)};
  Array<T> out({s.batch, s.in});
  const auto scratch = new_scratch<T>();
  for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, s.in}}) {
    linear<T>(isa).linear_grad_x(s, grad_pre.data(), weight.data(), begin, end, scratch.get(),
                                 out.mutable_data());
  }
  return out;
}

template <class T>
Array<T> grad_weight(const std::string& isa, Array<T> grad_pre, Array<T> x, int64_t cut) {
  const LinearShape s{x.shape(0), x.shape(1), grad_pre.shape(1)};
  Array<T> out({s.out, s.in});
  const auto scratch = new_scratch<T>();
  for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, s.in}}) {
    linear<T>(isa).linear_grad_weight(s, grad_pre.data(), x.data(), begin, end, scratch.get(),
                                      out.mutable_data());
  }
  return out;
}

template <class T>
void bind_typed(py::module_& m, const std::string& suffix) {
  m.def(("adam_" + suffix).c_str(), &adam<T>);
  m.def(("forward_" + suffix).c_str(), &forward<T>);
  m.def(("activation_backward_" + suffix).c_str(), &activation_backward<T>);
  m.def(("grad_x_" + suffix).c_str(), &grad_x<T>);
  m.def(("grad_weight_" + suffix).c_str(), &grad_weight<T>);
}

// --- The scalar arithmetic of csrc/common ---

template <class F>
Array<float> map(const Array<float>& x, F f) {
  Array<float> y(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) y.mutable_data()[i] = f(x.data()[i]);
  return y;
}

Array<float> scalar(const std::string& name, Array<float> x) {
  if (name == "exp") return map(x, [](float v) { return math::exp(v); });
  if (name == "log") return map(x, [](float v) { return math::log(v); });
  if (name == "log1p") return map(x, [](float v) { return math::log1p(v); });
  if (name == "tanh") return map(x, [](float v) { return math::tanh(v); });
  if (name == "sigmoid") return map(x, [](float v) { return sigmoid(v); });
  if (name == "elu") return map(x, [](float v) { return elu(v, 1.5f).value; });
  if (name == "elu_slope") return map(x, [](float v) { return elu(v, 1.5f).slope; });
  if (name == "gelu") return map(x, [](float v) { return gelu(v).value; });
  if (name == "gelu_slope") return map(x, [](float v) { return gelu(v).slope; });
  if (name == "gelu_bend") return map(x, [](float v) { return gelu(v).bend; });
  if (name == "gelu_tanh") return map(x, [](float v) { return gelu_tanh(v).value; });
  if (name == "gelu_tanh_slope") return map(x, [](float v) { return gelu_tanh(v).slope; });
  if (name == "gelu_tanh_bend") return map(x, [](float v) { return gelu_tanh(v).bend; });
  if (name == "softplus") return map(x, [](float v) { return softplus(v).value; });
  if (name == "softplus_slope") return map(x, [](float v) { return softplus(v).slope; });
  if (name == "softplus_bend") return map(x, [](float v) { return softplus(v).bend; });
  if (name == "selu") return map(x, [](float v) { return selu(v).value; });
  if (name == "selu_slope") return map(x, [](float v) { return selu(v).slope; });
  if (name == "silu") return map(x, [](float v) { return silu(v).value; });
  if (name == "silu_slope") return map(x, [](float v) { return silu(v).slope; });
  if (name == "silu_bend") return map(x, [](float v) { return silu(v).bend; });
  if (name == "expm1") return map(x, [](float v) { return math::exp_and_expm1(v).less_one; });
  if (name == "bf16") return map(x, [](float v) { return widen(narrow_bf16(v)); });
  if (name == "round_to_bf16") return map(x, [](float v) { return round_to_bf16(v); });
  throw std::invalid_argument("no scalar function " + name);
}

// Cosine and sine of turns of 2^-24, [2, n].
Array<float> cos_sin(Array<uint32_t> turns) {
  Array<float> out({py::ssize_t{2}, turns.size()});
  float* cosines = out.mutable_data();
  for (py::ssize_t i = 0; i < turns.size(); ++i) {
    math::cos_sin_turn(turns.data()[i], cosines[i], cosines[turns.size() + i]);
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("isas", &isas);
  m.def("words", &words);
  m.def("uniform", &uniform);
  m.def("normal", &normal);
  m.def("keep_mask", &keep_mask);
  m.def("bce_f32", &bce_f32);
  m.def("bce_f64", &bce_f64);
  m.def("bce_bf16", &bce_bf16);
  bind_typed<float>(m, "f32");
  bind_typed<double>(m, "f64");
  m.def("scalar", &scalar);
  m.def("cos_sin", &cos_sin);
  m.def("keep_scale", &keep_scale<float>);
}
