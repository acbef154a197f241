// minGRU scan on the CPU, compiled on first use by native.py. C interface.
//
//   h_t = keep_t h_{t-1} + z_t c_t,        z_t = sigmoid(gate_t),   keep_t = 1 - z_t,   c_t = g(hidden_t),   h_0 = 0
//   s_t = dh_t + keep_{t+1} s_{t+1},       dc_t = z_t s_t,          dgate_t = s_t (c_t - h_{t-1}) z_t keep_t
#include "map.h"

namespace {

// z = sigmoid(gate), keep = sigmoid(-gate), c = g(hidden) and dc/dhidden with one division for all sigmoids. keep is
// not 1 - z, which has no digit left where a gate is open. Beyond +-80 a gate counts as open or closed: sigmoid(-80)
// is 2e-35, and the product of denominators stays finite.
template <bool linear, typename A>
inline void activate(A gate, A hidden, A& z, A& keep, A& c, A& slope) {
  A closed = exponential(gate < A(-80) ? A(80) : gate > A(80) ? A(-80) : -gate);
  A a = A(1) + closed;
  if constexpr (linear) {
    z = A(1) / a;
    c = hidden;
    slope = A(1);
  } else {
    A e = exponential(hidden < A(-80) ? A(-80) : hidden > A(0) ? A(0) : hidden);
    A b = A(1) + e;
    A inverse = A(1) / (a * b);
    z = inverse * b;
    A sigmoid = inverse * a * e;
    c = hidden >= A(0) ? hidden + A(0.5) : sigmoid;
    slope = hidden >= A(0) ? A(1) : sigmoid * (A(1) - sigmoid);
    c = hidden != hidden ? hidden : c;
  }
  keep = closed * z;
  z = gate < A(-80) ? A(0) : z;
}

struct Inputs {
  Map gate, hidden;
};

template <typename T, bool linear>
void forward_task(const Inputs& in, const Map& m, const State<T>* state, int64_t b, int64_t p, int64_t d,
                  const Walk& walk, int n) {
  using A = State<T>;
  A h[LANES] = {};
  if (state) std::memcpy(h, state, n * sizeof(A));
  const T *gate = in.gate.at<const T>(b, p, d), *hidden = in.hidden.at<const T>(b, p, d);
  T* out = m.at<T>(b, p, d);
  walk.each(true, [&](int64_t i, int64_t j) {
    const T* g = gate + walk.offset(in.gate, i, j);
    const T* x = hidden + walk.offset(in.hidden, i, j);
    T* o = out + walk.offset(m, i, j);
    prefetch<0>(g + walk.ahead(in.gate, true), n);
    prefetch<0>(x + walk.ahead(in.hidden, true), n);
    prefetch<1>(o + walk.ahead(m, true), n);
#pragma omp simd
    for (int k = 0; k < n; ++k) {
      A z, keep, c, slope;
      activate<linear, A>(load(g[k]), load(x[k]), z, keep, c, slope);
      h[k] = keep * h[k] + z * c;
      store(o + k, h[k]);
    }
  });
}

template <typename T, bool linear>
void forward(const Inputs& in, const Map& out, const void* state, const Shape& shape, const uint8_t* column,
             const uint8_t* reverse, int threads) {
  for_each_task(shape, column, reverse, threads, [&](int64_t b, int64_t p, int64_t d, int lanes, const Walk& walk) {
    auto h0 = state ? (const State<T>*)state + (b * shape.P + p) * shape.D + d : nullptr;
    forward_task<T, linear>(in, out, h0, b, p, d, walk, lanes);
  });
}

struct Gradients {
  Map grad, h, d_gate, d_hidden;
};

template <typename T, bool linear>
void backward_task(const Inputs& in, const Gradients& m, int64_t b, int64_t p, int64_t d, const Walk& walk, int n) {
  using A = State<T>;
  static const T zeros[LANES] = {};
  A carry[LANES] = {};
  const T *grad = m.grad.at<const T>(b, p, d), *gate = in.gate.at<const T>(b, p, d);
  const T *hidden = in.hidden.at<const T>(b, p, d), *h = m.h.at<const T>(b, p, d);
  T *d_gate = m.d_gate.at<T>(b, p, d), *d_hidden = m.d_hidden.at<T>(b, p, d);
  walk.each(false, [&](int64_t i, int64_t j) {
    const T* y = grad + walk.offset(m.grad, i, j);
    const T* g = gate + walk.offset(in.gate, i, j);
    const T* x = hidden + walk.offset(in.hidden, i, j);
    T* dg = d_gate + walk.offset(m.d_gate, i, j);
    T* dx = d_hidden + walk.offset(m.d_hidden, i, j);
    prefetch<0>(y + walk.ahead(m.grad, false), n);
    prefetch<0>(g + walk.ahead(in.gate, false), n);
    prefetch<0>(x + walk.ahead(in.hidden, false), n);
    prefetch<0>(h + walk.offset(m.h, i, j) + walk.ahead(m.h, false), n);
    prefetch<1>(dg + walk.ahead(m.d_gate, false), n);
    prefetch<1>(dx + walk.ahead(m.d_hidden, false), n);
    const T* before = walk.previous(i, j) ? h + walk.offset(m.h, i, j) : zeros;
#pragma omp simd
    for (int k = 0; k < n; ++k) {
      A z, keep, c, slope;
      activate<linear, A>(load(g[k]), load(x[k]), z, keep, c, slope);
      A s = load(y[k]) + carry[k];
      A zs = z * s;
      // Where a gate is nearly closed, keep is 1 less a rest that it rounds, and every token would round it again.
      carry[k] = z < A(0.5) ? s - zs : keep * s;
      store(dg + k, zs * keep * (c - load(before[k])));
      store(dx + k, zs * slope);
    }
  });
}

template <typename T, bool linear>
void backward(const Inputs& in, const Gradients& m, const Shape& shape, const uint8_t* column, const uint8_t* reverse,
              int threads) {
  for_each_task(shape, column, reverse, threads, [&](int64_t b, int64_t p, int64_t d, int lanes, const Walk& walk) {
    backward_task<T, linear>(in, m, b, p, d, walk, lanes);
  });
}

// Calls run(T, linear) for the types that the numbers stand for: 0 float32, 1 float64, 2 bfloat16.
template <typename F>
void dispatch(int dtype, int linear, F&& run) {
  auto with = [&](auto zero) {
    linear ? run(zero, std::true_type{}) : run(zero, std::false_type{});
  };
  if (dtype == 0) with(float{});
  if (dtype == 1) with(double{});
  if (dtype == 2) with(bf16{});
}

}  // namespace

// column, reverse: one flag a path. state: null, or h before the first token, (B, P, D) in the accumulation type.
extern "C" void mingru_forward(int linear, int dtype, Shape shape, const uint8_t* column, const uint8_t* reverse,
                               int threads, Map gate, Map hidden, Map out, const void* state) {
  dispatch(dtype, linear, [&](auto zero, auto is_linear) {
    forward<decltype(zero), is_linear.value>({gate, hidden}, out, state, shape, column, reverse, threads);
  });
}

extern "C" void mingru_backward(int linear, int dtype, Shape shape, const uint8_t* column, const uint8_t* reverse,
                                int threads, Map grad, Map gate, Map hidden, Map h, Map d_gate, Map d_hidden) {
  dispatch(dtype, linear, [&](auto zero, auto is_linear) {
    backward<decltype(zero), is_linear.value>({gate, hidden}, {grad, h, d_gate, d_hidden}, shape, column, reverse,
                                              threads);
  });
}
