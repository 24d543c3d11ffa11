// Every number that Python and C++ both know by name. fastgan/engines mirrors them; the operator
// fused_enums() tells a test what stands here. No torch here.
#pragma once

#include <stdint.h>

namespace fastgan {

#define FASTGAN_ACTIVATIONS(entry)                                                                 \
  entry(none) entry(leaky_relu) entry(tanh) entry(sigmoid) entry(elu) entry(gelu) entry(gelu_tanh) \
      entry(silu) entry(selu) entry(softplus)
// What follows a Linear: statistics of a feature over the batch, or of a sample over its features.
#define FASTGAN_NORMS(entry) entry(no_norm) entry(batch_norm) entry(layer_norm)
#define FASTGAN_LOSSES(entry) \
  entry(non_saturating) entry(minimax) entry(hinge) entry(least_squares) entry(wasserstein)
// Of the norm of D's slope at a sample: half its square, and the square of its distance from one.
#define FASTGAN_PENALTIES(entry) entry(half_square) entry(distance_from_one)
// Where a slope is taken: at random points on the lines between real and fake samples, or at these.
#define FASTGAN_PLACES(entry) entry(between) entry(real) entry(fake)
// What columns of a network's input are of a sample's condition: its own numbers, a 1 at the place
// of its label and zeros, or the row of a trained table that the label names.
#define FASTGAN_PARTS(entry) entry(numbers) entry(one_hot) entry(embedding)
// What columns of G's output are: numbers with an activation each, the shares of a softmax, or
// those of one whose class Gumbel's noise chooses.
#define FASTGAN_HEADS(entry) entry(columns) entry(softmax) entry(gumbel)
// Terms of G's loss: the distance of its columns' means and deviations from those of the real ones,
// and the cross-entropy of the classes that it was asked for with the logits of its heads.
#define FASTGAN_TERMS(entry) entry(moments) entry(conditional)
// What a layer takes of several fields of one width, or side by side.
#define FASTGAN_JOINS(entry) entry(add) entry(concat)
// How a weight moves by its gradient: each as torch.optim's of that name, RMSprop without momentum.
#define FASTGAN_RULES(entry) entry(adam) entry(adamw) entry(rmsprop) entry(sgd)
// Of products; everything else is in float32. A plan asks for one of the first two; on a GPU, TF32
// is another way to take fp32.
#define FASTGAN_PRECISIONS(entry) entry(fp32) entry(bf16) entry(tf32)
// A step's row in the table of statistics: the losses, and the means of D's scores on the real and
// on the fake batch of D's last update.
#define FASTGAN_STATISTICS(entry) entry(d_loss) entry(g_loss) entry(d_real) entry(d_fake)
// What a measured step adds up. Of the real and the fake batch of D's last update, as means:
// whether the score is on the right side, the score, its square. Of each network's last update, as
// sums: the squares of its gradient before it is clipped, of what changed, of its weights before,
// and numbers of gradient and moved weights that are not finite.
#define FASTGAN_SUMS(entry)                                                                   \
  entry(real_right) entry(real_score) entry(real_square) entry(fake_right) entry(fake_score)  \
      entry(fake_square) entry(d_gradient) entry(d_update) entry(d_weight) entry(d_nonfinite) \
          entry(g_gradient) entry(g_update) entry(g_weight) entry(g_nonfinite)
// The ways that a batch takes through a network, by which dropout masks differ.
#define FASTGAN_PASSES(entry)                                                                     \
  entry(D_ON_REAL) entry(D_ON_FAKE) entry(D_FOR_G) entry(G_FOR_D) entry(G_FOR_G) entry(D_BETWEEN) \
      entry(D_REAL_FOR_G)

#define FASTGAN_ENTRY(name) name,
enum class Activation : int64_t { FASTGAN_ACTIVATIONS(FASTGAN_ENTRY) };
enum class Norm : int64_t { FASTGAN_NORMS(FASTGAN_ENTRY) };
enum class Loss : int64_t { FASTGAN_LOSSES(FASTGAN_ENTRY) };
enum class Penalty : int64_t { FASTGAN_PENALTIES(FASTGAN_ENTRY) };
enum class Place : int64_t { FASTGAN_PLACES(FASTGAN_ENTRY) };
enum class PartOf : int64_t { FASTGAN_PARTS(FASTGAN_ENTRY) };
enum class HeadOf : int64_t { FASTGAN_HEADS(FASTGAN_ENTRY) };
enum class TermOf : int64_t { FASTGAN_TERMS(FASTGAN_ENTRY) };
enum class JoinOf : int64_t { FASTGAN_JOINS(FASTGAN_ENTRY) };
enum class Rule : int64_t { FASTGAN_RULES(FASTGAN_ENTRY) };
enum class Precision : int64_t { FASTGAN_PRECISIONS(FASTGAN_ENTRY) };
enum class Statistic : int64_t { FASTGAN_STATISTICS(FASTGAN_ENTRY) };
enum class Sum : int64_t { FASTGAN_SUMS(FASTGAN_ENTRY) };
enum class Pass : uint32_t { FASTGAN_PASSES(FASTGAN_ENTRY) };
#undef FASTGAN_ENTRY

#define FASTGAN_COUNT(name) +1
constexpr int64_t kActivations = FASTGAN_ACTIVATIONS(FASTGAN_COUNT);
constexpr int64_t kNorms = FASTGAN_NORMS(FASTGAN_COUNT);
constexpr int64_t kLosses = FASTGAN_LOSSES(FASTGAN_COUNT);
constexpr int64_t kPenalties = FASTGAN_PENALTIES(FASTGAN_COUNT);
constexpr int64_t kPlaces = FASTGAN_PLACES(FASTGAN_COUNT);
constexpr int64_t kPartsOf = FASTGAN_PARTS(FASTGAN_COUNT);
constexpr int64_t kHeadsOf = FASTGAN_HEADS(FASTGAN_COUNT);
constexpr int64_t kTermsOf = FASTGAN_TERMS(FASTGAN_COUNT);
constexpr int64_t kJoinsOf = FASTGAN_JOINS(FASTGAN_COUNT);
constexpr int64_t kRules = FASTGAN_RULES(FASTGAN_COUNT);
constexpr int64_t kStatistics = FASTGAN_STATISTICS(FASTGAN_COUNT);
constexpr int64_t kSums = FASTGAN_SUMS(FASTGAN_COUNT);
constexpr int64_t kScoreSums = static_cast<int64_t>(Sum::d_gradient);
constexpr int64_t kNetworkSums = static_cast<int64_t>(Sum::g_gradient) - kScoreSums;
#undef FASTGAN_COUNT

// The streams of fastgan/random.py that a step draws from.
#define FASTGAN_STREAMS(entry) \
  entry(LATENT_D, 0) entry(LATENT_G, 1) entry(PENALTY, 6) entry(DROPOUT, 64) entry(CHOICE, 1 << 30)
#define FASTGAN_ENTRY(name, number) name = number,
enum class Stream : uint32_t { FASTGAN_STREAMS(FASTGAN_ENTRY) };
#undef FASTGAN_ENTRY

}  // namespace fastgan
