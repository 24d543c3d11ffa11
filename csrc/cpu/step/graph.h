// What a network's layers take of several of its nodes, and the gradients of these; part of
// stepper.h. step/graph.h says what nodes are.

// `form`: rows, or tangents, which go the same way.
void Stepper::gather(const Join& join, int from, int segments, Form form) {
  const Field& to = *join.field;
  each_own_rows(segments, [&](int s, Range within) {
    for (int64_t i = within.begin; i < within.end; ++i) {
      float* const row = rows(to, to.*form, from + s) + i * to.stride;
      int64_t at = 0;  // where the next part of a concatenation begins, or past the first of a sum
      for (const Field* const field : join.of) {
        const float* const taken = rows(*field, field->*form, from + s) + i * field->stride;
        if (join.adds && at > 0) {
          add_rows(row, taken, field->width);
          continue;
        }
        float* __restrict const copy = row + at;
        for (int64_t j = 0; j < field->width; ++j) copy[j] = taken[j];
        at += field->width;
      }
      if (form == &Field::rows)
        round_row(row, rows(to, to.row_factors, from + s) + i * to.stride, to.width);
    }
  });
}

// The gradient of a node, or its bend, of the shares of all that take it, and on through the layer
// that made it, if there is one. Segments count as in the node's field.
void Stepper::collect(const Node& node, const Layer* maker, int from, int segments, Form form) {
  const Field& field = *node.field;
  const auto take = [&](int s, int64_t i, Range features) {
    float* const to = rows(field, field.*form, s) + i * field.stride;
    bool empty = !node.kept;
    for (const Share& share : node.shares) {
      const Field& of = *share.field;
      const float* const from = rows(of, of.*form, s) + i * of.stride + share.at;
      const int64_t begin = features.begin;
      if (empty)
        for (int64_t j = begin; j < features.end; ++j) to[j] = from[j];
      else
        add_rows(to + begin, from + begin, length(features));
      empty = false;
    }
  };
  if (maker && joined(*maker)) {
    const Range features = own_features(field.width);
    for (int s = from; s < from + segments; ++s)
      for (int64_t i = 0; i < batch_; ++i) take(s, i, features);
    finish_grads(*maker, features, from - maker->lift, segments);
    return;
  }
  each_own_rows(segments, [&](int s, Range within) {
    for (int64_t i = within.begin; i < within.end; ++i) take(from + s, i, {0, field.width});
    if (maker) differentiate(*maker, {0, field.width}, within, from + s - maker->lift, form);
  });
}

// Of a phase that is about nodes, with segments as the layer counts them that comes after.
void Stepper::of_nodes(const Phase& phase, int from, int segments) {
  const bool in_g = phase.layer < static_cast<int>(job_.g.layers.size());
  const std::vector<Node>& nodes = in_g ? job_.g_nodes : job_.d_nodes;
  const std::vector<Join>& joins = in_g ? job_.g_joins : job_.d_joins;
  const size_t at = static_cast<size_t>(phase.other);
  switch (phase.work) {
    case Phase::gather:
      gather(joins[at], from, segments, &Field::rows);
      break;
    case Phase::gather_tangent:
      gather(joins[at], from, segments, &Field::tangents);
      break;
    case Phase::collect:
      collect(nodes[at], nodes[at].maker, from, segments, &Field::grads);
      break;
    case Phase::slope_collect:
      collect(nodes[at], nullptr, from, segments, &Field::grads);
      break;
    default:
      collect(nodes[at], nodes[at].maker, from, segments, &Field::bends);
      break;
  }
}
