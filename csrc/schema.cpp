// Every operator's schema, once. Kernels: csrc/cpu and csrc/cuda; fakes and derivatives:
// fastgan/ops.py. Operators without a tensor to create write into one that Python allocates, so
// that they dispatch on its device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastgan, m) {
  m.def("isa() -> str");

  m.def("linear_leaky_relu(Tensor x, Tensor weight, Tensor? bias, float negative_slope) -> Tensor");
  // sign: a tensor with the sign of the pre-activation. A gradient that is not needed is empty.
  m.def(
      "linear_leaky_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor sign, "
      "float negative_slope, bool need_x, bool need_weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");

  // The loss, and its gradients with respect to the logits.
  m.def(
      "discriminator_loss(Tensor real_logits, Tensor fake_logits, float real_label, "
      "float fake_label) -> (Tensor, Tensor, Tensor)");
  m.def("generator_loss(Tensor fake_logits, bool saturating) -> (Tensor, Tensor)");

  m.def(
      "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, int step, float lr, float beta1, float beta2, float eps, "
      "float weight_decay, bool decoupled) -> ()");

  // seed and step are unsigned 64-bit numbers in signed clothes.
  m.def("philox_words(Tensor(a!) out, int seed, int stream, int step, int start) -> ()");
  m.def("philox_uniform(Tensor(a!) out, int seed, int stream, int step) -> ()");
  m.def("philox_normal(Tensor(a!) out, int seed, int stream, int step) -> ()");
  m.def("philox_keep_mask(Tensor(a!) out, int seed, int stream, int step, int threshold) -> ()");
}
