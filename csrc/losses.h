// Losses between two arrays, element by element: value, and slope in x, for vectors on the CPU and
// single elements on CUDA. p is the parameter, q the weight of the positive class.
//
// Included inside the namespace of the kernels, after FORMULA is defined (see formulas.h).

struct Squared {
  template <class V>
  static FORMULA V value(V x, V t, V, V) {
    return (x - t) * (x - t);
  }
  template <class V>
  static FORMULA V slope(V x, V t, V, V) {
    return 2 * (x - t);
  }
};

struct Absolute {
  template <class V>
  static FORMULA V value(V x, V t, V, V) {
    return abs(x - t);
  }
  template <class V>
  static FORMULA V slope(V x, V t, V, V) {
    const V one = splat(scalar<V>(1));
    return select(x > t, one, select(x < t, -one, V{}));
  }
};

struct Huber {
  template <class V>
  static FORMULA V value(V x, V t, V p, V) {
    const V d = abs(x - t);
    return select(d <= p, scalar<V>(0.5) * d * d, p * (d - scalar<V>(0.5) * p));
  }
  template <class V>
  static FORMULA V slope(V x, V t, V p, V) {
    return min(p, max(-p, x - t));  // in this order of operands NaN stays
  }
};

struct SmoothL1 {
  template <class V>
  static FORMULA V value(V x, V t, V p, V) {
    const V d = abs(x - t);
    return select(d < p, scalar<V>(0.5) * d * d / p, d - scalar<V>(0.5) * p);
  }
  template <class V>
  static FORMULA V slope(V x, V t, V p, V) {
    const V one = splat(scalar<V>(1));
    return min(one, max(-one, (x - t) / p));
  }
};

// Binary cross entropy of sigmoid(x), without overflow.
struct Logits {
  template <class V>
  static FORMULA V value(V x, V t, V, V q) {
    const V softplus = max(V{}, -x) + log1p_unit(exp(-abs(x)));  // log(1 + exp(-x)); NaN stays
    return fma(1 - t, x, fma(q - 1, t, splat(scalar<V>(1))) * softplus);
  }
  template <class V>
  static FORMULA V slope(V x, V t, V, V q) {  // (1 - t) sigmoid(x) - q t sigmoid(-x)
    const V e = exp(-abs(x)), large = 1 / (1 + e), small = e * large;
    const auto negative = x < 0;
    const V up = select(negative, small, large), down = select(negative, large, small);
    return fma(1 - t, up, -q * t * down);
  }
};

struct Probabilities {
  template <class V>
  static FORMULA V value(V x, V t, V, V) {
    const V lowest = splat(scalar<V>(-100));
    const V log_x = max(lowest, log(x)), log_rest = max(lowest, log1p(-x));
    return -fma(t, log_x, (1 - t) * log_rest);
  }
  template <class V>
  static FORMULA V slope(V x, V t, V, V) {
    return (x - t) / max(splat(scalar<V>(1e-12)), (1 - x) * x);
  }
};

struct Divergence {
  template <class V>
  static FORMULA V value(V x, V t, V, V) {
    return select(t == 0, V{}, t * log(t)) - t * x;
  }
  template <class V>
  static FORMULA V slope(V, V t, V, V) {
    return -t;
  }
};

struct LogDivergence {  // the target is a logarithm, too
  template <class V>
  static FORMULA V value(V x, V t, V, V) {
    return exp(t) * (t - x);
  }
  template <class V>
  static FORMULA V slope(V, V t, V, V) {
    return -exp(t);
  }
};
