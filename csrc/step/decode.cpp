#include "step/decode.h"

#include <algorithm>
#include <cfloat>

#include "common/arena.h"
#include "step/graph.h"
#include "step/rows.h"

namespace fastgan {

namespace {

class PlanDecoder {
 public:
  PlanDecoder(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* state,
              const Tensor& like, Apart* apart)
      : integers_(table<int64_t>(plan, "plan", ScalarType::Long, "int64")),
        reals_(table<double>(settings, "settings", ScalarType::Double, "float64")),
        integers_end_(integers_ + plan.numel()),
        reals_end_(reals_ + settings.numel()),
        start_(integers_),
        state_(state),
        like_(like),
        apart_(apart) {}

  DecodedPlan run() {
    DecodedPlan plan;
    const int64_t latent = integer("latent values", 1, kMostFeatures);
    const int64_t image = integer("image values", 1, kMostFeatures);
    plan.batch = integer("batch_size", 1, kMostFeatures);
    plan.d_steps = integer("d_steps", 1, kMostDSteps);
    plan.loss = static_cast<Loss>(integer("loss", 0, kLosses - 1));
    plan.seed = static_cast<uint64_t>(integer("seed", INT64_MIN, INT64_MAX));
    plan.count = integer("images", 1, kMostImages);
    plan.precision =
        static_cast<Precision>(integer("precision", 0, static_cast<int64_t>(Precision::bf16)));
    plan.real_label = real("real label", -FLT_MAX, FLT_MAX);
    plan.average_decay = real("ema_decay", 0, 1);
    batch_ = plan.batch;
    network(latent, plan.g, plan.g_counters);
    network(image, plan.d, plan.d_counters);
    parts(plan.g, 1);
    parts(plan.d, plan.batch);
    heads(plan.g);
    terms(plan.g);
    plan.g_steps = integer("g_steps", 1, kMostGSteps);
    plan.shared_fakes = integer("shared_fakes", 0, 1) == 1;
    penalties(plan);
    plan.g.average_warmup = real("the average's warmup", 0, INFINITY);
    uniforms(plan.g);
    STD_TORCH_CHECK(integers_ == integers_end_ && reals_ == reals_end_,
                    "plan or settings is longer than the networks they describe; ", kMade);
    const PlannedLayer& logits = plan.d.layers.back();
    STD_TORCH_CHECK(plan.g.layers.back().out == plan.d.own() && logits.out == 1 && !logits.norm &&
                        !logits.row_norm && !logits.drop,
                    "plan must end G in an image, and D in one score without a norm or dropout; ",
                    kMade);
    const int64_t short_batch = plan.count % plan.batch ? plan.count % plan.batch : plan.batch;
    STD_TORCH_CHECK(plan.batch % plan.d.pack == 0 && short_batch % plan.d.pack == 0,
                    "plan has packs of ", plan.d.pack, " rows in batches of ", plan.batch, " and ",
                    short_batch, "; ", kMade);
    for (const PlannedNetwork<PlannedLayer>* network : {&plan.g, &plan.d})
      for (const PlannedLayer& l : network->layers)
        STD_TORCH_CHECK(!l.norm || std::min({plan.batch, short_batch, plan.count}) > network->pack,
                        "plan has a BatchNorm and a batch of 1 image, which has no variance");
    return plan;
  }

 private:
  static constexpr const char* kMade = "make both with fastgan's fused engine";

  template <class T>
  static const T* table(const Tensor& t, const char* name, ScalarType dtype,
                        const char* dtype_name) {
    check_given(t, name);
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() == 1 && t.is_contiguous() && t.is_cpu(),
                    name, " must be a contiguous vector of ", dtype_name, " on the CPU");
    return static_cast<const T*>(t.const_data_ptr());
  }

  int64_t integer(const char* what, int64_t low, int64_t high) {
    STD_TORCH_CHECK(integers_ < integers_end_, "plan is too short: it ends before ", what, "; ",
                    kMade);
    const int64_t value = *integers_++;
    STD_TORCH_CHECK(low <= value && value <= high, "plan[", integers_ - start_ - 1, "], ", what,
                    ", is ", value, "; expected ", low, " to ", high);
    return value;
  }
  bool flag(const char* what) { return integer(what, 0, 1) != 0; }
  double real(const char* what, double low, double high) {
    STD_TORCH_CHECK(reals_ < reals_end_, "settings is too short: it ends before ", what, "; ",
                    kMade);
    const double value = *reals_++;
    STD_TORCH_CHECK(low <= value && value <= high, what, " is ", value, " in settings; expected ",
                    low, " to ", high);
    return value;
  }

  // The tensor at a place in the list, or none for -1.
  const Tensor* find(const char* what, int64_t& number) {
    number = integer(what, -1, state_ ? static_cast<int64_t>(state_->size()) - 1 : INT32_MAX);
    if (number < 0 || !state_) return nullptr;
    const Tensor* const t = &(*state_)[static_cast<size_t>(number)];
    check_given(*t, "a tensor of state");
    return t;
  }

  template <class T>
  T* take(const char* what, int64_t count, ScalarType dtype = ScalarType::Float) {
    int64_t number;
    const Tensor* const t = find(what, number);
    if (!t) return nullptr;
    STD_TORCH_CHECK(t->scalar_type() == dtype && t->numel() == count && t->is_contiguous() &&
                        t->device() == like_.device(),
                    "state[", number, "], a ", what, ", must be a contiguous ",
                    dtype == ScalarType::Float ? "float32" : "int64", " tensor of ", count,
                    " elements on the ", like_.is_cpu() ? "CPU" : "device of memory", "; it has ",
                    t->numel());
    if (apart_) apart_->written(*t, "state", number);
    return static_cast<T*>(t->mutable_data_ptr());
  }

  Parameter parameter(const char* what, int64_t count) {
    Parameter p;
    p.value = take<float>(what, count);
    p.exp_avg = take<float>("exp_avg", count);
    p.exp_avg_sq = take<float>("exp_avg_sq", count);
    p.average = take<float>("average", count);
    STD_TORCH_CHECK(p.value ? p.exp_avg && p.exp_avg_sq : !p.exp_avg && !p.exp_avg_sq && !p.average,
                    "plan names a ", what, " without its moments, or these without it; ", kMade);
    return p;
  }

  // The step counters of an optimiser, one for each parameter. Those on the CPU are read here, and
  // must agree; the others are the caller's business.
  int64_t updates(std::vector<float*>& counters) {
    for (int64_t left = integer("step counters", 1, 4 * kMostLayers); left > 0; --left) {
      int64_t number;
      const Tensor* const t = find("step counter", number);
      STD_TORCH_CHECK(number >= 0, "plan leaves a step counter out; ", kMade);
      if (!t || !like_.is_cpu()) continue;
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == 1 && t->is_cpu(),
                      "state[", number, "] must be a float32 step counter on the CPU");
      if (apart_) apart_->written(*t, "state", number);
      counters.push_back(static_cast<float*>(t->mutable_data_ptr()));
    }
    if (counters.empty()) return 0;
    const float first = *counters.front();
    for (const float* counter : counters)
      STD_TORCH_CHECK(*counter == first,
                      "the parameters of one optimizer have taken different numbers of steps");
    STD_TORCH_CHECK(first >= 0 && first <= 0x1p53f, "an optimizer's step counter is ", first,
                    "; expected 0 to 2**53");
    return static_cast<int64_t>(first);
  }

  void network(int64_t in, PlannedNetwork<PlannedLayer>& network, std::vector<float*>& counters) {
    Optimizer& o = network.optimizer;
    o.beta1 = real("beta1", 0, 1);
    o.beta2 = real("beta2", 0, 1);
    STD_TORCH_CHECK(o.beta1 < 1 && o.beta2 < 1, "a beta is 1 in settings; expected less");
    o.eps = real("eps", 0, FLT_MAX);
    o.weight_decay = real("weight_decay", 0, FLT_MAX);
    o.largest_grad = real("largest number of a gradient", 0, INFINITY);
    o.longest_grad = real("longest gradient", 0, INFINITY);
    o.largest_weight = real("largest weight", 0, INFINITY);
    o.rule = static_cast<Rule>(integer("an optimizer's rule", 0, kRules - 1));
    network.updates = updates(counters);
    check_field(in);
    network.in = in;
    network.layers.resize(static_cast<size_t>(integer("layers", 1, kMostLayers)));
    joins(network);
    const int64_t count = static_cast<int64_t>(network.layers.size());
    std::vector<int64_t> made{in}, joined;  // widths of the nodes that are there
    const auto width_of = [&](int64_t node) {
      const bool of_layer = node <= count;
      const int64_t at = of_layer ? node : node - count - 1;
      const std::vector<int64_t>& widths = of_layer ? made : joined;
      STD_TORCH_CHECK(at < static_cast<int64_t>(widths.size()), "plan takes node ", node,
                      " of a network before it is made; ", kMade);
      return widths[static_cast<size_t>(at)];
    };
    for (int64_t n = 0; n < count; ++n) {
      while (joined.size() < network.joins.size() && network.joins[joined.size()].before == n) {
        PlannedJoin& join = network.joins[joined.size()];
        measure(join, width_of);
        joined.push_back(join.width);
      }
      PlannedLayer& layer = network.layers[static_cast<size_t>(n)];
      layer.in = width_of(layer.source);
      layer.out = integer("features", 1, kMostFeatures);
      check_field(layer.out);
      read(layer);
      made.push_back(layer.out);
    }
    const Graph graph = graph_of(network);
    for (size_t node = 1; node < graph.nodes.size(); ++node) {
      const bool last = static_cast<int64_t>(node) == count;
      const bool taken = !graph.nodes[node].layers.empty() || !graph.nodes[node].joins.empty();
      STD_TORCH_CHECK(taken != last, "plan has a network whose node ", node,
                      last ? ", its output, is taken within; " : " is taken by nothing; ", kMade);
    }
  }

  // Joins in the order in which they are made, and the layers that take another node than what the
  // layer before them makes.
  void joins(PlannedNetwork<PlannedLayer>& network) {
    const int64_t layers = static_cast<int64_t>(network.layers.size());
    network.joins.resize(static_cast<size_t>(integer("joins", 0, kMostJoins)));
    const int64_t last = layers + static_cast<int64_t>(network.joins.size());
    int64_t before = 0;
    for (PlannedJoin& join : network.joins) {
      join.before = before = integer("layers before a join", before, layers - 1);
      join.of = static_cast<JoinOf>(integer("kind of a join", 0, kJoinsOf - 1));
      join.nodes.resize(static_cast<size_t>(integer("nodes of a join", 2, kMostJoined)));
      for (int64_t& node : join.nodes) node = integer("node of a join", 0, last);
    }
    for (int64_t n = 0; n < layers; ++n) network.layers[static_cast<size_t>(n)].source = n;
    for (int64_t left = integer("layers that take another node", 0, layers); left > 0; --left) {
      const int64_t n = integer("layer that takes another node", 0, layers - 1);
      network.layers[static_cast<size_t>(n)].source = integer("node of a layer", 0, last);
    }
  }

  template <class WidthOf>
  void measure(PlannedJoin& join, WidthOf width_of) const {
    join.width = 0;
    for (const int64_t node : join.nodes) {
      const int64_t width = width_of(node);
      STD_TORCH_CHECK(join.of == JoinOf::concat || join.width == 0 || join.width == width,
                      "plan adds a node of ", width, " values to ", join.width, "; ", kMade);
      join.width = join.of == JoinOf::concat ? join.width + width : width;
      STD_TORCH_CHECK(join.width <= kMostFeatures, "plan joins more than ", kMostFeatures,
                      " values; ", kMade);
    }
    check_field(join.width);
  }

  void penalties(Plan& plan) {
    plan.penalties.resize(static_cast<size_t>(integer("penalties", 0, kMostPenalties)));
    for (PlannedPenalty& p : plan.penalties) {
      p.form = static_cast<Penalty>(integer("penalty's form", 0, kPenalties - 1));
      p.at = static_cast<Place>(integer("penalty's place", 0, kPlaces - 1));
      p.every = integer("penalty's interval", 1, INT64_MAX);
      p.weight = real("penalty's weight", 0, DBL_MAX);
    }
    if (plan.penalties.empty()) return;
    STD_TORCH_CHECK(plan.precision == Precision::fp32,
                    "plan has penalties and another precision "
                    "than fp32; ",
                    kMade);
    for (const PlannedLayer& l : plan.d.layers)
      STD_TORCH_CHECK(!l.norm, "plan has penalties and a BatchNorm in D; ", kMade);
  }

  // Columns of one row of the input: with its own they must fill it, side by side. `most`: of the
  // rows that are a pack.
  void parts(PlannedNetwork<PlannedLayer>& network, int64_t most) {
    network.pack = integer("rows of a pack", 1, most);
    STD_TORCH_CHECK(network.in % network.pack == 0, "plan has ", network.in,
                    " columns of packs of ", network.pack, " rows; ", kMade);
    const int64_t in = network.unit();
    network.own_at = integer("first own column", 0, in - 1);
    network.parts.resize(static_cast<size_t>(integer("parts of an input", 0, kMostParts)));
    std::vector<std::pair<int64_t, int64_t>> columns;
    for (PlannedPart& part : network.parts) {
      part.of = static_cast<PartOf>(integer("kind of a part", 0, kPartsOf - 1));
      part.at = integer("first column of a part", 0, in - 1);
      part.width = integer("columns of a part", 1, in);
      part.classes = integer("classes", 1, kMostFeatures);
      STD_TORCH_CHECK(part.of != PartOf::one_hot || part.classes == part.width, "plan has ",
                      part.classes, " classes in ", part.width, " columns; ", kMade);
      const bool embeds = part.of == PartOf::embedding;
      // No table of what other parts are.
      part.table = parameter("embedding", embeds ? part.classes * part.width : 0);
      STD_TORCH_CHECK(!state_ || embeds == (part.table.value != nullptr),
                      "plan names a table without an embedding, or an embedding without it; ",
                      kMade);
      part.embeds = embeds;
      columns.push_back({part.at, part.width});
    }
    const int64_t own = network.own();
    STD_TORCH_CHECK(own >= 1, "plan has an input of conditions alone; ", kMade);
    const Graph graph = graph_of(network);
    STD_TORCH_CHECK(!network.embeds() || (graph.sources[0] == 0 && graph.direct(0)),
                    "plan has an embedding in an input that other layers than the first take; ",
                    kMade);
    STD_TORCH_CHECK(!network.embeds() || network.pack == 1, "plan has an embedding in packs of ",
                    network.pack, " rows; ", kMade);
    columns.push_back({network.own_at, own});
    std::sort(columns.begin(), columns.end());
    int64_t end = 0;
    for (const auto& [at, width] : columns) {
      STD_TORCH_CHECK(at == end, "plan has parts of an input that do not lie side by side; ",
                      kMade);
      end = at + width;
    }
  }

  void uniforms(PlannedNetwork<PlannedLayer>& g) {
    const int64_t own = g.own(), most = std::min<int64_t>(own, integers_end_ - integers_);
    g.uniforms.resize(static_cast<size_t>(integer("uniform parts of the latents", 0, most)));
    for (PlannedUniform& part : g.uniforms) {
      part.at = integer("first column of a uniform part", 0, own - 1);
      part.width = integer("columns of a uniform part", 1, own - part.at);
      part.low = static_cast<float>(real("lowest latent", -FLT_MAX, FLT_MAX));
      part.spread = static_cast<float>(real("spread of latents", 0, FLT_MAX));
    }
  }

  // Columns of the output: they must fill it, side by side.
  void heads(PlannedNetwork<PlannedLayer>& network) {
    const PlannedLayer& last = network.layers.back();
    const int64_t most = std::min<int64_t>(last.out, integers_end_ - integers_);
    network.heads.resize(static_cast<size_t>(integer("heads", 0, most)));
    network.heads_index = static_cast<uint32_t>(integer("heads' number", 0, kMostHeads));
    if (network.heads.empty()) return;
    int64_t end = 0;
    for (PlannedHead& head : network.heads) {
      head.of = static_cast<HeadOf>(integer("kind of a head", 0, kHeadsOf - 1));
      head.activation = static_cast<Activation>(integer("head's activation", 0, kActivations - 1));
      head.at = end;
      head.width = integer("columns of a head", 1, last.out);
      head.hard = flag("hard");
      head.asked = flag("asked");
      const bool shares = head.of != HeadOf::columns;
      head.by = static_cast<float>(
          real(shares ? "temperature" : "head's slope", shares ? FLT_MIN : 0, FLT_MAX));
      STD_TORCH_CHECK(!keeps_slope(head.activation) && (shares ? head.activation == Activation::none
                                                               : !head.hard && !head.asked),
                      "plan has a head whose kind and activation do not go together; ", kMade);
      end += head.width;
      STD_TORCH_CHECK(end <= last.out, "plan has heads of more columns than G makes; ", kMade);
    }
    STD_TORCH_CHECK(end == last.out && last.activation == Activation::none && !last.norm &&
                        !last.row_norm && !last.drop,
                    "plan has heads that leave columns out, or are not all that follows G's last "
                    "Linear; ",
                    kMade);
  }

  void terms(PlannedNetwork<PlannedLayer>& g) {
    g.terms.resize(static_cast<size_t>(integer("terms", 0, kTermsOf)));
    for (PlannedTerm& term : g.terms) {
      term.of = static_cast<TermOf>(integer("kind of a term", 0, kTermsOf - 1));
      term.weight = real("term's weight", -FLT_MAX, FLT_MAX);
      STD_TORCH_CHECK(g.term(term.of) == &term, "plan has a kind of terms twice; ", kMade);
    }
    const int64_t asked = g.asked();
    bool labels = false;
    for (const PlannedPart& part : g.parts) labels |= part.of != PartOf::numbers;
    STD_TORCH_CHECK(g.terms.empty() || !g.heads.empty(), "plan has terms without heads; ", kMade);
    STD_TORCH_CHECK(!g.term(TermOf::conditional) == (asked == 0) && (asked == 0 || labels),
                    "plan has heads that labels name, a term of them and labels, but not all of "
                    "these; ",
                    kMade);
  }

  void check_field(int64_t width) const {
    STD_TORCH_CHECK(round_up(batch_, 32) <= kMostValues / width, "a batch of ", batch_, " with ",
                    width, " values each is more than the 2**34 that one draw has");
  }

  void read(PlannedLayer& l) {
    l.activation = static_cast<Activation>(integer("activation", 0, kActivations - 1));
    const Norm norm = static_cast<Norm>(integer("norm", 0, kNorms - 1));
    l.norm = norm == Norm::batch_norm;
    l.row_norm = norm == Norm::layer_norm;
    l.drop = flag("dropout");
    l.drop_threshold = static_cast<uint32_t>(integer("dropout's threshold", 0, 65536));
    l.drop_index = static_cast<uint32_t>(integer("dropout's number", 0, kMostDropouts));
    l.slope = static_cast<float>(real("slope", 0, FLT_MAX));
    l.norm_eps = real("a norm's eps", 0, FLT_MAX);
    l.norm_momentum = real("BatchNorm's momentum", -FLT_MAX, FLT_MAX);
    l.weight = parameter("weight", l.in * l.out);
    STD_TORCH_CHECK(!state_ || l.weight.value, "plan holds a layer without a weight; ", kMade);
    l.bias = parameter("bias", l.out);
    l.gamma = parameter("norm's weight", l.out);
    l.beta = parameter("norm's bias", l.out);
    l.running_mean = take<float>("running_mean", l.out);
    l.running_var = take<float>("running_var", l.out);
    l.batches = take<int64_t>("num_batches_tracked", 1, ScalarType::Long);
    l.average_mean = take<float>("average of running_mean", l.out);
    l.average_var = take<float>("average of running_var", l.out);
    l.average_batches = take<int64_t>("average of num_batches_tracked", 1, ScalarType::Long);
    const bool tracked = l.running_mean, averaged = l.average_mean, affine = l.gamma.value;
    STD_TORCH_CHECK(tracked == (l.running_var != nullptr) && tracked == (l.batches != nullptr) &&
                        averaged == (l.average_var != nullptr) &&
                        averaged == (l.average_batches != nullptr) && (tracked || !averaged) &&
                        (affine || !l.beta.value) && (affine == !!l.beta.value || l.row_norm) &&
                        (l.norm || !tracked) && (l.norm || l.row_norm || !affine),
                    "plan names one part of a norm without another; ", kMade);
  }

  const int64_t* integers_;
  const double* reals_;
  const int64_t* const integers_end_;
  const double* const reals_end_;
  const int64_t* const start_;
  const std::vector<Tensor>* const state_;
  const Tensor& like_;
  Apart* const apart_;
  int64_t batch_ = 0;
};

}  // namespace

DecodedPlan decode(const Tensor& plan, const Tensor& settings, const std::vector<Tensor>* state,
                   const Tensor& like, Apart* apart) {
  if (apart) {
    apart->read(plan, "plan");
    apart->read(settings, "settings");
  }
  return PlanDecoder(plan, settings, state, like, apart).run();
}

}  // namespace fastgan
