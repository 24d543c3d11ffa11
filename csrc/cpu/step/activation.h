// Activations as constants of the loops over elements; part of stepper.h.

// Calls f with the activation as a constant, so that no loop over elements
// holds a switch.
template <Activation Value>
struct Constant {
  static constexpr Activation value = Value;
};
template <class Use>
FASTGAN_INLINE void with_activation(Activation activation, Use use) {
  switch (activation) {
    case Activation::none:
      return use(Constant<Activation::none>{});
    case Activation::leaky_relu:
      return use(Constant<Activation::leaky_relu>{});
    case Activation::tanh:
      return use(Constant<Activation::tanh>{});
    case Activation::sigmoid:
      return use(Constant<Activation::sigmoid>{});
    case Activation::elu:
      return use(Constant<Activation::elu>{});
    case Activation::gelu:
      return use(Constant<Activation::gelu>{});
    case Activation::gelu_tanh:
      return use(Constant<Activation::gelu_tanh>{});
    case Activation::silu:
      return use(Constant<Activation::silu>{});
    case Activation::selu:
      return use(Constant<Activation::selu>{});
    case Activation::softplus:
      return use(Constant<Activation::softplus>{});
  }
}

// Of those that keep their derivative.
template <Activation A>
FASTGAN_INLINE auto with_slope(float x, float slope) {
  if constexpr (A == Activation::gelu)
    return gelu(x);
  else if constexpr (A == Activation::gelu_tanh)
    return gelu_tanh(x);
  else if constexpr (A == Activation::silu)
    return silu(x);
  else if constexpr (A == Activation::selu)
    return selu(x);
  else if constexpr (A == Activation::softplus)
    return softplus(x);
  else
    return elu(x, slope);
}

// Of the others, but for the vectorised tanh.
template <Activation A>
FASTGAN_INLINE float activate(float x, float slope) {
  if constexpr (A == Activation::leaky_relu) return leaky_relu(x, slope);
  if constexpr (A == Activation::sigmoid) return sigmoid(x);
  return x;
}

// The second derivative, from the output y and the first, of those that do not keep it.
template <Activation A>
FASTGAN_INLINE float second_derivative(float y, float first) {
  if constexpr (A == Activation::tanh) return -2.f * y * first;
  if constexpr (A == Activation::sigmoid) return (1.f - 2.f * y) * first;
  if constexpr (A == Activation::elu || A == Activation::selu) return y > 0.f ? 0.f : first;
  return 0.f;
}

// The derivative in terms of the output y.
template <Activation A>
FASTGAN_INLINE float derivative(float grad, float y, float slope) {
  if constexpr (A == Activation::leaky_relu) return leaky_relu_grad(grad, y, slope);
  if constexpr (A == Activation::tanh) return tanh_grad(grad, y);
  if constexpr (A == Activation::sigmoid) return sigmoid_grad(grad, y);
  return grad;
}
