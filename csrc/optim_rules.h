// The update rules of the optimizers, for vectors on the CPU and for single elements on CUDA.
//
// Included inside the namespace of the kernels, after FORMULA is defined (see formulas.h). A rule is
// made of its options once per step, in the precision of V's elements; rule(v) updates one vector or
// element of every stream.

enum { kParam, kGrad, kState1, kState2, kState3, kStreams };

// The gradient as every rule starts: sign for maximize, L2 penalty.
template <class V>
struct Gradient {
  using T = scalar<V>;
  T sign, decay;
  Gradient(bool maximize, double weight_decay)
      : sign(maximize ? -1 : 1), decay(static_cast<T>(weight_decay)) {}
  FORMULA V operator()(const V* v) const {
    const V g = v[kGrad] * sign;
    return decay != 0 ? fma(v[kParam], splat(decay), g) : g;
  }
};

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first;
};

template <class V>
struct Sgd {
  using T = scalar<V>;
  Gradient<V> gradient;
  T lr, momentum, fresh;
  bool nesterov, first;
  explicit Sgd(const SgdOptions& o)
      : gradient(o.maximize, o.weight_decay),
        lr(static_cast<T>(o.lr)),
        momentum(static_cast<T>(o.momentum)),
        fresh(static_cast<T>(1 - o.dampening)),
        nesterov(o.nesterov),
        first(o.first) {}
  FORMULA void operator()(V* v) const {
    V g = gradient(v);
    if (momentum != 0) {
      V& buffer = v[kState1];
      buffer = first ? g : fma(buffer, splat(momentum), g * fresh);
      g = nesterov ? fma(buffer, splat(momentum), g) : buffer;
    }
    v[kParam] = fma(g, splat(-lr), v[kParam]);
  }
};

struct AdamOptions {
  double step_size, beta1, beta2, eps, weight_decay, decay, correction2;
  bool amsgrad, maximize;
};

template <class V>
struct Adam {
  using T = scalar<V>;
  Gradient<V> gradient;
  T step_size, fresh1, beta2, fresh2, eps, decay, scale;
  bool amsgrad;
  explicit Adam(const AdamOptions& o)
      : gradient(o.maximize, o.weight_decay),
        step_size(static_cast<T>(o.step_size)),
        fresh1(static_cast<T>(1 - o.beta1)),
        beta2(static_cast<T>(o.beta2)),
        fresh2(static_cast<T>(1 - o.beta2)),
        eps(static_cast<T>(o.eps)),
        decay(static_cast<T>(o.decay)),
        scale(static_cast<T>(1 / o.correction2)),
        amsgrad(o.amsgrad) {}
  FORMULA void correct(double step, double correction2) {
    step_size = static_cast<T>(step);
    scale = static_cast<T>(1 / correction2);
  }
  FORMULA void operator()(V* v) const {
    const V g = gradient(v);
    V &m = v[kState1], &s = v[kState2], &largest = v[kState3];
    m = fma(g - m, splat(fresh1), m);
    s = fma(s, splat(beta2), g * g * fresh2);
    if (amsgrad) largest = max_nan(largest, s);
    const V denominator = fma(sqrt(amsgrad ? largest : s), splat(scale), splat(eps));
    v[kParam] = fma(m / denominator, splat(-step_size), v[kParam] * decay);
  }
};

struct AdamaxOptions {
  double step_size, beta1, beta2, eps, weight_decay;
  bool maximize;
};

template <class V>
struct Adamax {
  using T = scalar<V>;
  Gradient<V> gradient;
  T step_size, fresh1, beta2, eps;
  explicit Adamax(const AdamaxOptions& o)
      : gradient(o.maximize, o.weight_decay),
        step_size(static_cast<T>(o.step_size)),
        fresh1(static_cast<T>(1 - o.beta1)),
        beta2(static_cast<T>(o.beta2)),
        eps(static_cast<T>(o.eps)) {}
  FORMULA void operator()(V* v) const {
    const V g = gradient(v);
    V &m = v[kState1], &largest = v[kState2];
    m = fma(g - m, splat(fresh1), m);
    largest = max_nan(largest * beta2, abs(g) + eps);
    v[kParam] = fma(m / largest, splat(-step_size), v[kParam]);
  }
};

struct NadamOptions {
  double grad_step, momentum_step, beta1, beta2, eps, weight_decay, decay, correction2;
  bool maximize;
};

template <class V>
struct Nadam {
  using T = scalar<V>;
  Gradient<V> gradient;
  T grad_step, momentum_step, fresh1, beta2, fresh2, eps, decay, scale;
  explicit Nadam(const NadamOptions& o)
      : gradient(o.maximize, o.weight_decay),
        grad_step(static_cast<T>(o.grad_step)),
        momentum_step(static_cast<T>(o.momentum_step)),
        fresh1(static_cast<T>(1 - o.beta1)),
        beta2(static_cast<T>(o.beta2)),
        fresh2(static_cast<T>(1 - o.beta2)),
        eps(static_cast<T>(o.eps)),
        decay(static_cast<T>(o.decay)),
        scale(static_cast<T>(1 / o.correction2)) {}
  FORMULA void operator()(V* v) const {
    const V g = gradient(v);
    V &m = v[kState1], &s = v[kState2];
    m = fma(g - m, splat(fresh1), m);
    s = fma(s, splat(beta2), g * g * fresh2);
    const V step = fma(g, splat(grad_step), m * momentum_step);
    v[kParam] = v[kParam] * decay - step / fma(sqrt(s), splat(scale), splat(eps));
  }
};

struct AdagradOptions {
  double lr, weight_decay, eps;
  bool maximize;
};

template <class V>
struct Adagrad {
  using T = scalar<V>;
  Gradient<V> gradient;
  T lr, eps;
  explicit Adagrad(const AdagradOptions& o)
      : gradient(o.maximize, o.weight_decay),
        lr(static_cast<T>(o.lr)),
        eps(static_cast<T>(o.eps)) {}
  FORMULA void operator()(V* v) const {
    const V g = gradient(v);
    v[kState1] = fma(g, g, v[kState1]);
    v[kParam] = fma(g / (sqrt(v[kState1]) + eps), splat(-lr), v[kParam]);
  }
};

struct RmspropOptions {
  double lr, alpha, eps, weight_decay, momentum;
  bool centered, maximize;
};

template <class V>
struct Rmsprop {
  using T = scalar<V>;
  Gradient<V> gradient;
  T lr, alpha, fresh, eps, momentum;
  bool centered;
  explicit Rmsprop(const RmspropOptions& o)
      : gradient(o.maximize, o.weight_decay),
        lr(static_cast<T>(o.lr)),
        alpha(static_cast<T>(o.alpha)),
        fresh(static_cast<T>(1 - o.alpha)),
        eps(static_cast<T>(o.eps)),
        momentum(static_cast<T>(o.momentum)),
        centered(o.centered) {}
  FORMULA void operator()(V* v) const {
    const V g = gradient(v);
    V &square = v[kState1], &buffer = v[kState2], &mean = v[kState3];
    square = fma(square, splat(alpha), g * g * fresh);
    V variance = square;
    if (centered) {
      mean = fma(g - mean, splat(fresh), mean);
      variance = fma(-mean, mean, square);
    }
    V direction = g / (sqrt(variance) + eps);
    if (momentum > 0) direction = buffer = fma(buffer, splat(momentum), direction);
    v[kParam] = fma(direction, splat(-lr), v[kParam]);
  }
};

struct AdadeltaOptions {
  double lr, rho, eps, weight_decay;
  bool maximize;
};

template <class V>
struct Adadelta {
  using T = scalar<V>;
  Gradient<V> gradient;
  T lr, rho, fresh, eps;
  explicit Adadelta(const AdadeltaOptions& o)
      : gradient(o.maximize, o.weight_decay),
        lr(static_cast<T>(o.lr)),
        rho(static_cast<T>(o.rho)),
        fresh(static_cast<T>(1 - o.rho)),
        eps(static_cast<T>(o.eps)) {}
  FORMULA void operator()(V* v) const {
    const V g = gradient(v);
    V &square = v[kState1], &moved = v[kState2];
    square = fma(square, splat(rho), g * g * fresh);
    const V delta = sqrt(moved + eps) / sqrt(square + eps) * g;
    moved = fma(moved, splat(rho), delta * delta * fresh);
    v[kParam] = fma(delta, splat(-lr), v[kParam]);
  }
};
