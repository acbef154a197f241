// minGRU scan on the CPU, compiled on first use by native.py. C interface.
//
//   h_t = keep_t h_{t-1} + z_t c_t,        z_t = sigmoid(gate_t),   keep_t = 1 - z_t,   c_t = g(hidden_t),   h_0 = 0
//   s_t = dh_t + keep_{t+1} s_{t+1},       dc_t = z_t s_t,          dgate_t = s_t (c_t - h_{t-1}) z_t keep_t
#include "map.h"

namespace {

// Lanes to compute between two prefetches.
constexpr int PIECE = 160;

template <typename A>
inline A clamp(A x, A low, A high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// z = sigmoid(gate), keep = sigmoid(-gate), c = g(hidden) and dc/dhidden, with one division for all sigmoids. For an
// open gate, 1 - z would lose all digits of keep. Gates are clamped to +-80, where sigmoid(-80) = 2e-35, so that the
// product of denominators stays finite.
template <bool linear, typename T, typename A = State<T>>
inline void activate(A gate, A hidden, A& z, A& keep, A& c, A& slope) {
  A closed = Exponential<T>::of(-clamp(gate, A(-80), A(80)));
  A a = A(1) + closed;
  if constexpr (linear) {
    z = A(1) / a;
    c = hidden;
    slope = A(1);
  } else {
    A e = Exponential<T>::of(clamp(hidden, A(-80), A(0)));
    A b = A(1) + e;
    A inverse = A(1) / (a * b);
    z = inverse * b;
    A sigmoid = inverse * a * e;
    c = hidden >= A(0) ? hidden + A(0.5) : sigmoid;
    slope = hidden >= A(0) ? A(1) : sigmoid * (A(1) - sigmoid);
  }
  keep = closed * z;
  z = gate < A(-80) ? A(0) : z;
}

// A row of T in the type of the state: the row itself, or for 16-bit types a copy in `buffer`. Compilers vectorise a
// loop over both types 64 lanes at a time and leave the rest of a row scalar.
template <typename T>
inline const State<T>* widened(const T* row, int n, State<T>* buffer) {
  if constexpr (std::is_same_v<T, State<T>>) return row;
#pragma omp simd
  for (int k = 0; k < n; ++k) buffer[k] = load(row[k]);
  return buffer;
}

// Where to compute a row of T before `narrow` writes it.
template <typename T>
inline State<T>* buffer_for(T* row, State<T>* buffer) {
  if constexpr (std::is_same_v<T, State<T>>)
    return row;
  else
    return buffer;
}

template <typename T>
inline void narrow(const State<T>* buffer, int n, T* row) {
  if constexpr (std::is_same_v<T, State<T>>) return;
#pragma omp simd
  for (int k = 0; k < n; ++k) store(row + k, buffer[k]);
}

// Calls f(first, lanes) for the pieces of a row. The arithmetic of a piece hides the prefetches of the next one; all
// prefetches of a row at once would stall the processor.
template <typename F>
inline void each_piece(int n, F&& f) {
  for (int first = 0; first < n; first += PIECE) f(first, n - first < PIECE ? n - first : PIECE);
}

struct Inputs {
  Map gate, hidden;
};

template <typename T, bool linear>
void forward_task(const Inputs& in, const Map& m, const State<T>* state, int64_t b, int64_t p, int64_t d,
                  const Walk& walk, int n) {
  using A = State<T>;
  A h[LANES] = {}, buffers[3][PIECE];
  if (state) std::memcpy(h, state, n * sizeof(A));
  const T *gate = in.gate.at<const T>(b, p, d), *hidden = in.hidden.at<const T>(b, p, d);
  T* out = m.at<T>(b, p, d);
  walk.each(true, [&](int64_t i, int64_t j) {
    const T* g = gate + walk.offset(in.gate, i, j);
    const T* x = hidden + walk.offset(in.hidden, i, j);
    T* o = out + walk.offset(m, i, j);
    each_piece(n, [&](int first, int lanes) {
      prefetch<0>(g + first + walk.ahead(in.gate, true), lanes);
      prefetch<0>(x + first + walk.ahead(in.hidden, true), lanes);
      prefetch<1>(o + first + walk.ahead(m, true), lanes);
      const A *g_row = widened(g + first, lanes, buffers[0]), *x_row = widened(x + first, lanes, buffers[1]);
      A *o_row = buffer_for(o + first, buffers[2]), *h_row = h + first;
#pragma omp simd
      for (int k = 0; k < lanes; ++k) {
        A z, keep, c, slope;
        activate<linear, T>(g_row[k], x_row[k], z, keep, c, slope);
        o_row[k] = h_row[k] = keep * h_row[k] + z * c;
      }
      narrow(o_row, lanes, o + first);
    });
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
  A carry[LANES] = {}, buffers[6][PIECE];
  const T *grad = m.grad.at<const T>(b, p, d), *gate = in.gate.at<const T>(b, p, d);
  const T *hidden = in.hidden.at<const T>(b, p, d), *h = m.h.at<const T>(b, p, d);
  T *d_gate = m.d_gate.at<T>(b, p, d), *d_hidden = m.d_hidden.at<T>(b, p, d);
  walk.each(false, [&](int64_t i, int64_t j) {
    const T* y = grad + walk.offset(m.grad, i, j);
    const T* g = gate + walk.offset(in.gate, i, j);
    const T* x = hidden + walk.offset(in.hidden, i, j);
    T* dg = d_gate + walk.offset(m.d_gate, i, j);
    T* dx = d_hidden + walk.offset(m.d_hidden, i, j);
    const T* h_here = h + walk.offset(m.h, i, j);
    const T* before = walk.previous(i, j) ? h + walk.offset(m.h, i, j) : zeros;
    each_piece(n, [&](int first, int lanes) {
      prefetch<0>(y + first + walk.ahead(m.grad, false), lanes);
      prefetch<0>(g + first + walk.ahead(in.gate, false), lanes);
      prefetch<0>(x + first + walk.ahead(in.hidden, false), lanes);
      prefetch<0>(h_here + first + walk.ahead(m.h, false), lanes);
      prefetch<1>(dg + first + walk.ahead(m.d_gate, false), lanes);
      prefetch<1>(dx + first + walk.ahead(m.d_hidden, false), lanes);
      const A *y_row = widened(y + first, lanes, buffers[0]), *before_row = widened(before + first, lanes, buffers[1]);
      const A *g_row = widened(g + first, lanes, buffers[2]), *x_row = widened(x + first, lanes, buffers[3]);
      A *dg_row = buffer_for(dg + first, buffers[4]), *dx_row = buffer_for(dx + first, buffers[5]), *carried = carry + first;
#pragma omp simd
      for (int k = 0; k < lanes; ++k) {
        A z, keep, c, slope;
        activate<linear, T>(g_row[k], x_row[k], z, keep, c, slope);
        A s = y_row[k] + carried[k];
        A zs = z * s;
        // For a nearly closed gate, keep = 1 - z rounds z away in each token; s - z s keeps it.
        carried[k] = z < A(0.5) ? s - zs : keep * s;
        dg_row[k] = zs * keep * (c - before_row[k]);
        dx_row[k] = zs * slope;
      }
      narrow(dg_row, lanes, dg + first);
      narrow(dx_row, lanes, dx + first);
    });
  });
}

template <typename T, bool linear>
void backward(const Inputs& in, const Gradients& m, const Shape& shape, const uint8_t* column, const uint8_t* reverse,
              int threads) {
  for_each_task(shape, column, reverse, threads, [&](int64_t b, int64_t p, int64_t d, int lanes, const Walk& walk) {
    backward_task<T, linear>(in, m, b, p, d, walk, lanes);
  });
}

// Calls run with a zero of the type, 0 for float32, 1 for float64, 2 for bfloat16, and with `linear`.
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

// column, reverse: one flag per path. state: null, or h before the first token, (B, P, D) in the accumulation type.
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
