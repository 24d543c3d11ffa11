// Every operator's schema, once. Kernels: csrc/ops, csrc/cpu and csrc/cuda; fakes and derivatives:
// fastgan/ops. Operators without a tensor to create write into one that Python allocates, so that
// they dispatch on its device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastgan, m) {
  m.def("isa() -> str");

  m.def("linear_leaky_relu(Tensor x, Tensor weight, Tensor? bias, float negative_slope) -> Tensor");
  // sign: a tensor with the sign of the pre-activation. A gradient that is not needed is empty.
  m.def(
      "linear_leaky_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor sign, "
      "float negative_slope, bool need_x, bool need_weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");

  // The kernel says which: 4x4 stride 2 padding 1, 3x3 stride 1 padding 1, or 1x1. Results are
  // channels last; the gradient of the weight is if channels_last. sign: where it is positive, in
  // place of the result, the rectifier changes nothing: of a gradient, that of one before.
  m.def(
      "conv2d_leaky_relu(Tensor x, Tensor weight, Tensor? bias, float negative_slope, "
      "Tensor? sign=None) -> Tensor");
  m.def(
      "conv_transpose2d_leaky_relu(Tensor x, Tensor weight, Tensor? bias, float negative_slope, "
      "Tensor? sign=None) -> Tensor");
  m.def("conv2d_grad_weight(Tensor x, Tensor grad, int kernel, bool channels_last) -> Tensor");
  // Frees the working memory that is kept between calls; returns its bytes.
  m.def("conv_release_memory() -> int");

  // BatchNorm in training of images, and the rectifier behind it; results are channels last. Also
  // the batch's mean and one over its standard deviation; the running statistics are moved. parts:
  // of the batch, each normalised by itself, one after the other: [parts * channels] of those two.
  m.def(
      "batch_norm_leaky_relu(Tensor x, Tensor weight, Tensor bias, Tensor(a!) running_mean, "
      "Tensor(b!) running_var, float momentum, float eps, float negative_slope, int parts=1) "
      "-> (Tensor, Tensor, Tensor)");
  // Gradients of x (empty if it is not needed), weight and bias.
  m.def(
      "batch_norm_leaky_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, "
      "Tensor mean, Tensor deviation, float negative_slope, bool need_x, int parts=1) "
      "-> (Tensor, Tensor, Tensor)");
  // v: the gradient of that of x. Gradients of grad, x and weight. dweight and dbias: as above.
  m.def(
      "batch_norm_leaky_relu_second(Tensor v, Tensor grad, Tensor x, Tensor weight, Tensor bias, "
      "Tensor mean, Tensor deviation, Tensor dweight, Tensor dbias, float negative_slope) "
      "-> (Tensor, Tensor, Tensor)");

  // out[i] = a[i] b[i] + bias for each i, or their sum where out is one matrix; onto out with add.
  // a or b of two dimensions is the same for all.
  m.def("product_(Tensor(a!) out, Tensor a, Tensor b, Tensor? bias, bool add) -> ()");

  // Of a generator of a table's rows. blocks: kind (0: tanh, 1: softmax), size and how many, one
  // after another; normals: what the choices are drawn by.
  m.def(
      "heads_(Tensor(a!) rows, Tensor logits, Tensor? normals, int[] blocks, float temperature) "
      "-> ()");
  // grad: at rows before, at logits after.
  m.def("heads_backward_(Tensor(a!) grad, Tensor rows, int[] blocks, float temperature) -> ()");
  // The cross-entropy of each row's category in its group, whose beginning and width first and wide
  // say for each category; scale times its gradient is added to grad.
  m.def(
      "surprise_(Tensor(a!) grad, Tensor logits, Tensor category, Tensor first, Tensor wide, float "
      "scale) -> Tensor");
  // max(0, a BatchNorm of the batch); returns means and inverse deviations, [2, width].
  m.def(
      "normed_relu_(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, Tensor(b!)? "
      "running_mean, "
      "Tensor(c!)? running_var, float momentum, float eps) -> Tensor");
  // grad: at out before, at x after. Returns those of weight and bias, [2, width].
  m.def(
      "normed_relu_backward_(Tensor(a!) grad, Tensor out, Tensor x, Tensor weight, Tensor "
      "statistics) -> Tensor");
  // out[b] += columns[:, category[b]], and the derivative: out[:, c] = the sum of their grad[b].
  m.def("add_columns_(Tensor(a!) out, Tensor columns, Tensor category) -> ()");
  m.def("sum_columns_(Tensor(a!) out, Tensor grad, Tensor category) -> ()");

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
  // dropout_at of linear_leaky_relu, and the derivative; negative_slope >= 0. sign: the result.
  m.def(
      "linear_leaky_relu_dropout_at(Tensor x, Tensor weight, Tensor? bias, float negative_slope, "
      "int threshold, int seed, int stream, Tensor counter, int multiplier, int offset, int start) "
      "-> Tensor");
  m.def(
      "linear_leaky_relu_dropout_backward_at(Tensor grad, Tensor x, Tensor weight, Tensor sign, "
      "float negative_slope, bool need_x, bool need_weight, bool need_bias, int threshold, int "
      "seed, "
      "int stream, Tensor counter, int multiplier, int offset, int start) "
      "-> (Tensor, Tensor, Tensor)");
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

  // The fused engine. plan and settings: step/decode.cpp says what they hold; both are on the CPU.
  // state: the networks' own tensors, which the plan names by their places: parameters, moments,
  // step counters, averages and statistics. All that a run writes must lie apart.
  //
  // Of the enums that Python mirrors, a line each: its name, then name=number of each entry.
  m.def("fused_enums() -> str");

  // On the CPU.
  // Wakes the threads of a fused_run soon to come, and does not wait for them.
  m.def("fused_wake(int threads) -> ()");
  // The bytes of working memory that fused_run needs.
  m.def("fused_memory(Tensor plan, Tensor settings, int threads) -> int");
  // Does statistics.size(0) steps from first_step on. memory: uint8, zeros before the first run.
  // images [count or more, ...] with order, count of them for each epoch from that of the first
  // step on; or, without order, float32, the batches themselves one after another. rates float64:
  // of D and G, [2] or [steps, 2]. statistics float32 [steps, 4]: see Statistic in step/enums.h.
  // profile float64 [phases, 2] is added to. condition, where the plan has parts made of it: of the
  // stored images, or of those that are fed; int64 labels [n], or float32 [n, numbers]. drawn,
  // int64 [steps, d_steps + g_steps, batch]: which of them the fake samples of each update have;
  // those of the real batch if it is None. sums float64 [14], of the last step: see Sum there.
  m.def(
      "fused_run(Tensor plan, Tensor settings, Tensor(a!)[] state, Tensor(b!) memory, "
      "Tensor images, Tensor? order, Tensor rates, Tensor(c!) statistics, Tensor(d!)? profile, "
      "int first_step, int threads, Tensor? condition=None, Tensor? drawn=None, "
      "Tensor(e!)? sums=None) -> ()");
  // The same steps in parts, for processes that share each batch: an update's gradients, which the
  // caller sums over the ranks, then the move by them. update: of D in the step, or from d_steps
  // on of G, which takes the rows of D's last; its first takes what that has left in memory.
  // gradients: float32, of the update's network, parameter after parameter, then the row of its
  // statistics; of this rank's rows, and as parts of the whole batch's. Permutations of order begin
  // with that of the step's first update; without order, images are this rank's rows of the update.
  // sums: as above, of D's last update its scores', as parts of the whole batch's; of a move its
  // network's; of G's the values of terms, likewise as parts. With BatchNorms or a term of moments
  // over several ranks an update has further parts: the result is the phase to go on with, 0 at the
  // end. Until then each rank has left its sums in its row of moments, float64 [ranks, 4 * features
  // of the widest BatchNorm or of G's output], and goes on when it has those of all. condition and
  // drawn as above, of the step; without order the conditions of all ranks' rows, of which other
  // ranks' are read where drawn names them.
  m.def(
      "fused_gradients(Tensor plan, Tensor settings, Tensor(a!)[] state, Tensor(b!) memory, "
      "Tensor images, Tensor? order, Tensor(c!) gradients, int step, int update, int rank, "
      "int ranks, int threads, Tensor(d!)? sums=None, int phase=0, Tensor(e!)? moments=None, "
      "Tensor? condition=None, Tensor? drawn=None) -> int");
  // Clips them as the plan says, and moves; rates: those of D and G; step: which an average that
  // warms up goes by.
  m.def(
      "fused_move(Tensor plan, Tensor settings, Tensor(a!)[] state, Tensor(b!) memory, "
      "Tensor(c!) gradients, Tensor rates, int update, int threads, Tensor(d!)? sums=None, "
      "int step=0) -> ()");
  // The instructions that take products in a precision, 'fp32' or 'bf16'.
  m.def("fused_products(str precision) -> str");
  // The phases of a step, a line each: floating-point operations of its products, name.
  m.def("fused_phases(Tensor plan, Tensor settings) -> str");

  // On CUDA.
  // The bytes of working memory that fused_cuda_run needs: with 2 copies of the inputs for the
  // persistent kernel, with 1 for the chain.
  m.def("fused_cuda_memory(Tensor plan, Tensor settings, int copies) -> int");
  // Kernels that the chain launches for a step.
  m.def("fused_cuda_length(Tensor plan, Tensor settings) -> int");
  // The phases of a step in the persistent kernel, as fused_phases; D's are done d_steps times.
  m.def("fused_cuda_phases(Tensor plan, Tensor settings) -> str");
  // Why the persistent kernel cannot run the plan; empty if it can. memory: any tensor on the
  // device.
  m.def(
      "fused_cuda_why_not_persistent(Tensor plan, Tensor settings, Tensor[] state, Tensor memory, "
      "bool tf32) -> str");
  // How many jobs like this one launch of the persistent kernel takes; 0 if it cannot run the plan.
  m.def(
      "fused_cuda_most_at_once(Tensor plan, Tensor settings, Tensor[] state, Tensor memory, "
      "bool tf32) -> int");
  // Launches `steps` steps from the clock on, on the current stream. plan and settings are on the
  // CPU, everything else on the device of memory. clock int64 [5]: the next step, the step of row
  // 0 of rates and statistics, the epoch of the first permutation of order, and the updates that
  // D's and G's optimisers had done by the step of row 0. images [count, ...] with order, the
  // permutations of the epochs; or, without, float32 [d_steps, batch, ...], the batches of one
  // step. rates float64 [rows, 2], statistics float32 [rows, 4]. What the clock and the order say
  // is known on the device only: an image that they name and is not there is NaN, and so is the
  // learning rate of a step outside the tables. The chain is safe in graph capture. stamps, of the
  // persistent kernel, int64 [3 + phases of all steps]: nanoseconds, clock64() at the start and
  // after every phase, nanoseconds.
  m.def(
      "fused_cuda_run(Tensor plan, Tensor settings, Tensor(a!)[] state, Tensor(b!) memory, "
      "Tensor images, Tensor? order, Tensor(c!) clock, Tensor rates, Tensor(d!) statistics, "
      "Tensor(e!)? stamps, int steps, bool tf32, bool persistent) -> ()");
  // The same of several jobs in one launch of the persistent kernel, each with the bits that it has
  // alone. Every list has an entry of each job; state has the tensors of all, one job after
  // another, and sizes how many each has.
  m.def(
      "fused_cuda_run_together(Tensor[] plan, Tensor[] settings, Tensor(a!)[] state, int[] sizes, "
      "Tensor(b!)[] memory, Tensor[] images, Tensor[] order, Tensor(c!)[] clock, Tensor[] rates, "
      "Tensor(d!)[] statistics, int steps, bool tf32) -> ()");
}
