// Formulas of elementwise.def that are more than an expression.
//
// Included inside the namespace of the kernels: V is a vector of the CPU's ISA level or a single
// element on CUDA, and select, min, exp and the like are found there. FORMULA marks the functions.

// Where a derivative is long constant: keeps infinities away from products with zero.
template <class V>
FORMULA V bounded(V x) {
  constexpr scalar<V> limit = 1e4;
  return min(splat(limit), max(splat(-limit), x));
}

template <class V>
FORMULA V sign_of(V x) {  // 0 for NaN, as in PyTorch
  const V one = splat(scalar<V>(1));
  return select(x > 0, one, select(x < 0, -one, V{}));
}

template <class V>
FORMULA V gelu_of(V x) {
  using T = scalar<V>;
  return T(0.5) * x * (1 + erf(x * T(0.70710678118654752)));
}

template <class V>
FORMULA V gelu_slope(V unbounded) {
  using T = scalar<V>;
  const V x = bounded(unbounded);
  const V density = exp(T(-0.5) * x * x) * T(0.39894228040143268);  // 1 / sqrt(2 pi)
  return fma(x, density, T(0.5) * (1 + erf(x * T(0.70710678118654752))));
}

// (1 + tanh(u)) / 2 = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class V>
FORMULA V gelu_tanh_gate(V x) {
  using T = scalar<V>;
  return sigmoid(x *
                 fma(x * x, splat(T(1.5957691216057308 * 0.044715)), splat(T(1.5957691216057308))));
}

template <class V>
FORMULA V gelu_tanh_slope(V unbounded) {
  using T = scalar<V>;
  const V x = bounded(unbounded), s = gelu_tanh_gate(x);
  const V inner =
      fma(x * x, splat(T(1.5957691216057308 * 3 * 0.044715)), splat(T(1.5957691216057308)));
  return fma(x * inner, s * (1 - s), s);
}

template <class V>
FORMULA V silu_slope(V unbounded) {
  const V x = bounded(unbounded), s = sigmoid(x);
  return fma(x * s, 1 - s, s);
}

template <class V>
FORMULA V log_sigmoid(V x) {
  return min(V{}, x) - log1p_unit(exp(-abs(x)));
}

template <class V>
FORMULA V clamp_to(V x, V low, V high) {
  const V y = select(x < low, low, x);
  return select(y > high, high, y);
}
