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

  // The same at the step counter[0] * multiplier + offset, with counter int64 [1] on the tensors'
  // device: what a captured step needs to draw anew at each replay.
  m.def(
      "philox_normal_at(Tensor(a!) out, int seed, int stream, Tensor counter, int multiplier, "
      "int offset) -> ()");
  m.def(
      "philox_keep_mask_at(Tensor(a!) out, int seed, int stream, Tensor counter, int multiplier, "
      "int offset, int threshold) -> ()");
  // x times its mask, elements start, start + 1, ... of the stream, and the mask's scale.
  m.def(
      "dropout_at(Tensor x, int threshold, int seed, int stream, Tensor counter, int multiplier, "
      "int offset, int start) -> Tensor");
  // Rows of pixels by the order of the epoch at hand.
  m.def(
      "gather_normalize(Tensor(a!) out, Tensor pixels, Tensor order, Tensor counter, "
      "int multiplier, int offset, int batch, int batches_per_epoch) -> ()");
  // adam_ with step and lr, and a gradient scaler's two numbers, on the device.
  m.def(
      "adam_device_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor step, Tensor lr, float beta1, float beta2, float eps, "
      "float weight_decay, bool decoupled, Tensor? grad_scale, Tensor? found_inf) -> ()");
  m.def("ema_(Tensor(a!)[] averages, Tensor[] values, float decay) -> ()");
}
