// The phases of a step, compiled once per way of taking products: included with FASTGAN_VARIANT (a
// namespace) and FASTGAN_INSTRUCTIONS (a number of job.h's enum Instructions) defined, which it
// undefines, and FASTGAN_VECTOR_BYTES. job.h states the layout and the division among threads.
//
// As in kernels_impl.h no function of the standard library is called here, and every function is in
// the variant's namespace. The headers included below are parts of this file.

namespace fastgan::cpu::step::FASTGAN_VARIANT {

namespace {

constexpr Instructions kInstructions = static_cast<Instructions>(FASTGAN_INSTRUCTIONS);
constexpr Sizes kSizes = sizes_of(kInstructions);

#include "cpu/microkernel.h"
#include "cpu/step/vector.h"
#include "cpu/step/activation.h"
#include "cpu/step/ranges.h"
#if FASTGAN_INSTRUCTIONS >= 2
#  include "cpu/step/packing.h"
#  include "cpu/step/products_packed.h"
#else
#  include "cpu/step/products_vector.h"
#endif

// One thread's part of a step.
class Stepper {
 public:
  Stepper(Job& job, int thread, Barrier& barrier)
      : job_(job),
        thread_(thread),
        threads_(static_cast<int>(job.threads)),
        barrier_(barrier),
        scratch_(job.scratch + thread * job.scratch_stride) {}

  void run();

 private:
  void begin_update();
  void begin_g(int64_t update);
  void take_rows(const Network& network);
  void run_part();

  struct Grid {
    Range features, others;
    bool idle;
  };
  Grid divide(int64_t features, int64_t others) const;

  void inputs();
  void more_inputs();
  const float* normals(const Philox& philox, int64_t at, int64_t n);
  void latents(int segment, int64_t block);
  void mask(const Layer& layer, bool in_g, int segment, int64_t block);
  void images();
  int64_t row_of_sample(const Field& input, int64_t sample) const;
  int64_t source_of(const Network& network, int segment, int64_t row) const;
  void condition_row(const Network& network, const Field& input, int segment, int64_t row) const;
  void join(int segment);
  void share_samples();
  void split(const Layer& layer, const Layer& lower, int segment);
  void of_nodes(const Phase& phase, int from, int segments);

  struct Rows;
  struct Weight;
  template <bool Turned, class After>
  void rows_product(const Rows& a, Range terms, const Weight& w, Range columns, Range blocks,
                    const Rows& c, After after);

  void forward(const Layer& layer, int from, int segments);
  void activate_rows(const Layer& layer, Range features, Range within, int segment,
                     const float* shift);
  struct Moments;
  void normalise(const Layer& layer, Range features, int from, int segments);
  void normalise(const Layer& layer, Range panel, int segment, int number, const Moments& moments,
                 int64_t count);
  void head(const Layer* lower, int from, int segments);
  void head_rows(const Layer* lower, int segment, Range within);
  void score(int segment, Range within, const float* scores, const float* slopes);

  using Form = float* Field::*;  // which of a field's arrays
  void gather(const Join& join, int from, int segments, Form form);
  void collect(const Node& node, const Layer* maker, int from, int segments, Form form);
  void backward(const Layer& layer, const Layer* lower, int from, int segments,
                Form form = &Field::grads, int at = 0);
  void sum_backward(const Layer& layer, const Layer& lower, int from, int segments,
                    Form form = &Field::grads, int at = 0);
  void finish_grads(const Layer& lower, Range features, int from, int segments);
  void norm_backward(const Layer& lower, Range features, int from, int segments);
  void differentiate(const Layer& lower, Range features, Range within, int segment,
                     Form form = &Field::grads);
  void normalise_backward(const Layer& lower, Range panel, int segment, const Moments& moments,
                          int64_t count);

  template <class Value>
  Moments moments_of_columns(int64_t width, Value value) const;
  Moments own_moments(const Layer& layer, Range panel, int segment) const;
  Moments own_slants(const Layer& lower, Range panel, int segment, bool first);
  double* moments_of(int64_t rank, int s, bool squares) const;
  template <class Of>
  void leave_moments(const Layer& layer, int segments, Of of);
  Moments moments_of_ranks(Range panel, int s, bool backward) const;
  void norm_sums(const Layer& layer, int from, int segments, bool backward);
  void norm_by_ranks(const Layer& layer, int from, int segments, bool backward);

  void row_norm(const Layer& layer, int from, int segments);
  void row_norm_backward(const Layer& lower, Range within, int segment, Form form);
  void row_norm_backward(const Layer& lower, int from, int segments, Form form);
  void row_norm_tangent(const Layer& layer, int from, int segments);

  void heads(const Layer& layer, int from, int segments);
  void heads_backward(const Layer& layer, int from, int segments);
  void activate_heads(float* x, const float* noise) const;
  void harden(float* x) const;
  struct Toward {
    double mean, deviation;
  };
  Moments output_moments(const Layer& layer, Range panel, bool fake) const;
  void moments(const Layer& layer);
  Toward moments_apart() const;
  Toward moments_weights() const;
  void add_moments(const Toward& by, const float* values, float* grads) const;
  void ask(const float* logits, int64_t row) const;
  void add_asked(int64_t row, float* grads) const;
  void write_terms();

  void penalties_of_update();
  void penalise(const Phase& phase);
  void mix(int64_t block);
  void between(const Field& field, Range features, int64_t i) const;
  void points();
  void first_forward(const Layer& layer);
  void direction(int from, int segments, int at);
  void fold(const Field& field, Range features, int64_t row, int segment) const;
  void tangent(const Layer& layer, int from, int segments);
  void tangent_rows(const Layer& layer, Range features, Range within, int segment);
  void head_tangent(const Layer* lower, int from, int segments);

  struct Held;
  struct Term {
    Form left, right;  // of the fields above and below
    int from, segments;
  };
  struct Terms {
    Term of[2 * kPlaces];
    int count;
  };
  Terms terms_of(const Layer& layer, const Term& usual) const;
  Held held(int64_t terms) const;
  struct Move {
    Adam<float> adam;
    float largest_grad, largest_weight;
    double* gauge;        // of a measured update: where this thread adds up, [kNetworkSums]
    float average_share;  // of the weights in their average
  };
  Move move_of(bool of_g) const;
  void update_all(bool of_g, int from, int segments);
  void table_products(const Network& network, int from, int segments);
  void table_updates(const Network& network, const Move& move, int from, int segments);
  void update_part(const Layer& layer, const Move& move, Range out, Range in, int from,
                   int segments);
  void weight_grads(const Layer& layer, const Held& held, Range out, Range in, const Term& term,
                    bool more);
  void row_norm_updates(const Layer& layer, const Move& move, Range out, int from, int segments);
  void head_update(const Layer& layer, const Move& move, int from, int segments);
  void vector_updates(const Layer& layer, const Move& move, Range out, int from, int segments);
  void use(const Move& move, const Parameter& p, int64_t at, int64_t n, float* grad) const;
  void apply(const Move& move, const Parameter& p, int64_t at, int64_t n, const float* grad) const;
  // One code for measured and other steps, so that no bit differs.
  [[gnu::noinline]] void move_numbers(const Move& move, const Parameter& p, int64_t at, int64_t n,
                                      const float* grad) const;
  void measured_apply(const Move& move, const Parameter& p, int64_t at, int64_t n,
                      const float* grad) const;
  bool measured(bool of_g) const;
  // Whether G's update at hand, or to come, has what D's last one draws; as which segment of G's
  // its draws are made.
  bool shares_draws() const { return shared_ && g_step_ == 0; }
  int drawn_as(int segment) const { return shares_draws() ? 0 : segment; }
  double* gauge(bool of_g) const;
  static void measure_gradient(double* gauge, const float* grad, int64_t n);
  void measure_scores();
  void add_up(bool of_g);
  template <class Use>
  int64_t each_own_chunk(const Network& network, Use use) const;
  void squares(bool of_g);
  void clip(bool of_g);

  void carry_out(const Phase& phase);
  double mean(const double* parts, int segment) const;
  void write(Statistic statistic, double value);
  void copy_statistics(const Layer& layer) const;
  void end_phase();

  float* rows(const Field& field, float* form, int segment) const {
    return form + segment * field.padded * field.stride;
  }
  // What products take of some rows is as these have it.
  void round_row(const float* from, float* factors, int64_t width) const {
    if constexpr (kInstructions == Instructions::bf16_emulated)
      for (int64_t j = 0; j < width; ++j) factors[j] = round_to_bf16(from[j]);
  }
  // Whether a BatchNorm is part of the phases that need whole features around it.
  bool joined(const Layer& layer) const { return layer.norm && !job_.summed(); }
  // Of D's update: whether rows of this segment are penalised, and the loss's slope by their
  // scores.
  bool due(int segment) const { return segment <= kFake && slopes_[segment - kBetween].due; }
  float* coefficients(int segment) const {
    return job_.coefficients + segment * job_.images.padded;
  }
  int64_t rows_in(int64_t block) const { return smaller(kBlock, batch_ - block * kBlock); }

  // Calls use(segment of `segments`, rows) for this thread's rows, which are shared out in eights.
  template <class Use>
  void each_own_rows(int segments, Use use) const {
    const int64_t per = (batch_ + kRowUnit - 1) / kRowUnit;
    const Range mine = share(segments * per, thread_, threads_);
    for (int64_t u = mine.begin; u < mine.end; ++u) {
      const int64_t first = u % per * kRowUnit;
      use(static_cast<int>(u / per), Range{first, smaller(first + kRowUnit, batch_)});
    }
  }
  // Calls use(up to 32 features, segment of `segments`), all segments of a panel before the next.
  template <class Use>
  void each_panel(Range features, int segments, Use use) const {
    for (int64_t f = features.begin; f < features.end; f += kBlock)
      for (int s = 0; s < segments; ++s) use(Range{f, smaller(f + kBlock, features.end)}, s);
  }
  Range own_features(int64_t width) const {
    return features_of(share(panels(width), thread_, threads_), width);
  }

  Job& job_;
  const int thread_, threads_;
  Barrier& barrier_;
  float* const scratch_;

  // The update at hand: which of the run's steps it belongs to and which of its updates of D it is
  // or follows, and its numbers over all steps.
  int64_t step_ = 0, d_step_ = 0, g_step_ = 0;
  int64_t step_number_ = 0, update_number_ = 0, g_number_ = 0;
  bool last_ = false;      // whether G's update follows
  bool shared_ = false;    // whether its samples are this update's
  bool averages_ = false;  // whether it is a step's last of G
  // Samples of the update that are this rank's, of all ranks, and how many of them are before
  // those.
  int64_t samples_ = 0, whole_samples_ = 0, first_sample_ = 0;
  // The same in rows of the network at hand, of which D's may be packs of samples.
  int64_t batch_ = 0, whole_ = 0, first_ = 0;
  int64_t blocks_ = 0, padded_ = 0;
  SlopeWeights slopes_[kPlaces];    // of an update of D
  int64_t fed_ = 0;                 // rows of fed images used so far
  const int64_t* order_ = nullptr;  // of this rank's rows of the update; without one the first row
  int64_t fed_from_ = 0;
  int64_t given_from_ = 0;  // without an order: the condition of this rank's first row
  int64_t phase_ = 0;
  double clock_ = 0;
};

// Cuts features x others among the threads: along the features while there are enough of them,
// along both otherwise.
Stepper::Grid Stepper::divide(int64_t features, int64_t others) const {
  const int64_t across = smaller(threads_, features);
  const int64_t along = smaller(threads_ / across, others);
  if (thread_ >= across * along) return {{0, 0}, {0, 0}, true};
  return {share(features, thread_ % across, across), share(others, thread_ / across, along), false};
}

void Stepper::end_phase() {
  if (job_.profile == nullptr || thread_ != 0) {
    barrier_.wait();
    return;
  }
  const double worked = seconds();
  barrier_.wait();
  const double now = seconds();
  job_.profile[2 * phase_] += worked - clock_;
  job_.profile[2 * phase_ + 1] += now - worked;
  clock_ = now;
  ++phase_;
}

#include "cpu/step/inputs.h"
#include "cpu/step/rows_product.h"
#include "cpu/step/moments.h"
#include "cpu/step/forward.h"
#include "cpu/step/head.h"
#include "cpu/step/backward.h"
#include "cpu/step/penalty.h"
#include "cpu/step/row_norm.h"
#include "cpu/step/terms.h"
#include "cpu/step/heads.h"
#include "cpu/step/measure.h"
#include "cpu/step/weight_grads.h"
#include "cpu/step/update.h"
#include "cpu/step/clip.h"
#include "cpu/step/conditions.h"
#include "cpu/step/graph.h"
#include "cpu/step/walk.h"

}  // namespace

void run_thread(void* job, int thread, Barrier& barrier) {
  Stepper(*static_cast<Job*>(job), thread, barrier).run();
}

}  // namespace fastgan::cpu::step::FASTGAN_VARIANT

#undef FASTGAN_VARIANT
#undef FASTGAN_INSTRUCTIONS
