// minGRU scan on the CPU, compiled on first use by cpu_scan.py. C interface, no framework headers.
//
//   h_t = h_{t-1} + z_t (c_t - h_{t-1}),   z_t = sigmoid(gate_t),   c_t = g(hidden_t),   h_0 = 0
//   s_t = dh_t + (1 - z_{t+1}) s_{t+1},    dc_t = z_t s_t,   dgate_t = s_t (c_t - h_{t-1}) z_t (1 - z_t)
//
// One task is a path of one image and a range of its channels; it walks the tokens with its state in L1 and
// reads each input once. A column path swaps two strides and a reverse path walks down:
// nothing is copied.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int LANES = 1024;
constexpr int AHEAD = 8;

struct bf16 {
  uint16_t bits;
};

// Type in which a scan of T accumulates.
template <typename T>
using State = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline void store(float* p, float x) { *p = x; }
inline void store(double* p, double x) { *p = x; }
inline void store(bf16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  p->bits = x != x ? 0x7fc0 : uint16_t(rounded);
}

// exp on [-87, 88]: 2^n times a polynomial of degree 6 on |r| <= ln2 / 2, below 1 ulp; NaN stays NaN.
inline float exponential(float x) {
  constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  float shifted = x * 1.44269504f + magic;
  float n = shifted - magic;
  float r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float p = 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits - 0x4b400000 + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}
inline double exponential(double x) { return std::exp(x); }

// z = sigmoid(gate), c = g(hidden) and dc/dhidden with one division for the two sigmoids. Below -80 the
// gate counts as closed: sigmoid(-80) is 2e-35, and the product of denominators stays finite.
template <bool linear, typename A>
inline void activate(A gate, A hidden, A& z, A& c, A& slope) {
  A a = A(1) + exponential(gate < A(-80) ? A(80) : gate > A(80) ? A(-80) : -gate);
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
  z = gate < A(-80) ? A(0) : z;
}

// Element strides of one (B, H, W, P, D) tensor; the channel stride is 1.
struct Strides {
  int64_t b, h, w, p;
};

struct Shape {
  int64_t B, H, W, P, D;
};

// Hardware prefetchers stop at page borders, and a token's rows are shorter than a page: fetch ahead by hand,
// to read (rw = 0) or to write (rw = 1).
template <int rw, typename T>
inline void prefetch(const T* row, int n) {
  for (int k = 0; k < n; k += 64 / int(sizeof(T))) __builtin_prefetch(row + k, rw);
}

// The tokens of one path, (outer, inner) = (row, column of the map) or, for a column path, the other way round.
struct Walk {
  int64_t outer, inner;
  bool reverse, column;

  int64_t offset(const Strides& s, int64_t i, int64_t j) const {
    return column ? j * s.h + i * s.w : i * s.h + j * s.w;
  }
  // Calls f(i, j) for every token, in reading order or, if not `along`, from the last one read to the first.
  template <typename F>
  void each(bool along, F&& f) const {
    const bool down = reverse == along;
    for (int64_t a = 0; a < outer; ++a)
      for (int64_t b = 0; b < inner; ++b) f(down ? outer - 1 - a : a, down ? inner - 1 - b : b);
  }
  // Distance to the token AHEAD steps later, within a row; wrong at its end, where it only prefetches in vain.
  int64_t ahead(const Strides& s, bool along) const {
    return (reverse == along ? -AHEAD : AHEAD) * (column ? s.h : s.w);
  }
  // Moves (i, j) to the token read before it; false at the first one.
  bool previous(int64_t& i, int64_t& j) const {
    const int64_t step = reverse ? 1 : -1;
    j += step;
    if (j >= 0 && j < inner) return true;
    j = reverse ? 0 : inner - 1;
    i += step;
    return i >= 0 && i < outer;
  }
};

template <typename T, bool linear>
void forward_task(const T* gate, const T* hidden, T* out, const State<T>* state, const Strides* st, const Walk& walk,
                  int n) {
  using A = State<T>;
  A h[LANES] = {};
  if (state) std::memcpy(h, state, n * sizeof(A));
  walk.each(true, [&](int64_t i, int64_t j) {
    const T* g = gate + walk.offset(st[0], i, j);
    const T* x = hidden + walk.offset(st[1], i, j);
    T* o = out + walk.offset(st[2], i, j);
    prefetch<0>(g + walk.ahead(st[0], true), n);
    prefetch<0>(x + walk.ahead(st[1], true), n);
    prefetch<1>(o + walk.ahead(st[2], true), n);
#pragma omp simd
    for (int k = 0; k < n; ++k) {
      A z, c, slope;
      activate<linear, A>(load(g[k]), load(x[k]), z, c, slope);
      h[k] += z * (c - h[k]);
      store(o + k, h[k]);
    }
  });
}

template <typename T, bool linear>
void backward_task(const T* grad, const T* gate, const T* hidden, const T* h, T* d_gate, T* d_hidden,
                   const Strides* st, const Walk& walk, int n) {
  using A = State<T>;
  static const T zeros[LANES] = {};
  A carry[LANES] = {};
  walk.each(false, [&](int64_t i, int64_t j) {
    const T* y = grad + walk.offset(st[0], i, j);
    const T* g = gate + walk.offset(st[1], i, j);
    const T* x = hidden + walk.offset(st[2], i, j);
    T* dg = d_gate + walk.offset(st[4], i, j);
    T* dx = d_hidden + walk.offset(st[5], i, j);
    prefetch<0>(y + walk.ahead(st[0], false), n);
    prefetch<0>(g + walk.ahead(st[1], false), n);
    prefetch<0>(x + walk.ahead(st[2], false), n);
    prefetch<0>(h + walk.offset(st[3], i, j) + walk.ahead(st[3], false), n);
    prefetch<1>(dg + walk.ahead(st[4], false), n);
    prefetch<1>(dx + walk.ahead(st[5], false), n);
    const T* before = walk.previous(i, j) ? h + walk.offset(st[3], i, j) : zeros;
#pragma omp simd
    for (int k = 0; k < n; ++k) {
      A z, c, slope;
      activate<linear, A>(load(g[k]), load(x[k]), z, c, slope);
      A s = load(y[k]) + carry[k];
      A zs = z * s;
      carry[k] = s - zs;
      store(dg + k, zs * (A(1) - z) * (c - load(before[k])));
      store(dx + k, zs * slope);
    }
  });
}

// Runs run(b, p, d, lanes, walk) for every image, path and range of channels. Channels are split only to give
// every thread work: a range is a strided walk over all tokens, and the wider it is the fewer pages it touches.
template <typename F>
void for_each_task(const Shape& shape, const uint8_t* column, const uint8_t* reverse, int threads, F&& run) {
  const int64_t walks = shape.B * shape.P;
  int64_t splits = (shape.D + LANES - 1) / LANES;
  while (walks * splits % threads && walks * splits < 4 * threads && shape.D / splits > 16) ++splits;
  // Whole cache lines of float32, so that no two threads write the same one.
  const int64_t lanes = ((shape.D + splits - 1) / splits + 15) / 16 * 16;
  const int64_t tiles = (shape.D + lanes - 1) / lanes;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < walks * tiles; ++task) {
    const int64_t b = task / (shape.P * tiles), p = task / tiles % shape.P, d = task % tiles * lanes;
    const Walk walk{column[p] ? shape.W : shape.H, column[p] ? shape.H : shape.W, reverse[p] != 0, column[p] != 0};
    run(b, p, d, int(shape.D - d < lanes ? shape.D - d : lanes), walk);
  }
}

inline int64_t start(const Strides& s, int64_t b, int64_t p, int64_t d) { return b * s.b + p * s.p + d; }

template <typename T, bool linear>
void forward(void* const* data, const Strides* st, const Shape& shape, const uint8_t* column,
             const uint8_t* reverse, const void* state, int threads) {
  for_each_task(shape, column, reverse, threads, [&](int64_t b, int64_t p, int64_t d, int lanes, const Walk& walk) {
    auto at = [&](int i) { return (T*)data[i] + start(st[i], b, p, d); };
    auto h0 = state ? (const State<T>*)state + (b * shape.P + p) * shape.D + d : nullptr;
    forward_task<T, linear>(at(0), at(1), at(2), h0, st, walk, lanes);
  });
}

template <typename T, bool linear>
void backward(void* const* data, const Strides* st, const Shape& shape, const uint8_t* column,
              const uint8_t* reverse, const void*, int threads) {
  for_each_task(shape, column, reverse, threads, [&](int64_t b, int64_t p, int64_t d, int lanes, const Walk& walk) {
    auto at = [&](int i) { return (T*)data[i] + start(st[i], b, p, d); };
    backward_task<T, linear>(at(0), at(1), at(2), at(3), at(4), at(5), st, walk, lanes);
  });
}

template <typename T>
void dispatch(bool is_backward, bool linear, void* const* data, const Strides* st, const Shape& shape,
              const uint8_t* column, const uint8_t* reverse, const void* state, int threads) {
  auto f = is_backward ? (linear ? backward<T, true> : backward<T, false>)
                       : (linear ? forward<T, true> : forward<T, false>);
  f(data, st, shape, column, reverse, state, threads);
}

}  // namespace

// data: forward gate, hidden, out; backward grad, gate, hidden, h, grad_gate, grad_hidden. strides: four element
// strides (b, h, w, p) a tensor. state: null, or h before the first token, (B, P, D), forward only. dtype: 0
// float32, 1 float64, 2 bfloat16.
extern "C" void mingru_scan(int is_backward, int linear, int dtype, void* const* data, const int64_t* strides,
                            const int64_t* shape, const uint8_t* column, const uint8_t* reverse, const void* state,
                            int threads) {
  const Shape s{shape[0], shape[1], shape[2], shape[3], shape[4]};
  const auto st = reinterpret_cast<const Strides*>(strides);
  if (dtype == 0) dispatch<float>(is_backward, linear, data, st, s, column, reverse, state, threads);
  if (dtype == 1) dispatch<double>(is_backward, linear, data, st, s, column, reverse, state, threads);
  if (dtype == 2) dispatch<bf16>(is_backward, linear, data, st, s, column, reverse, state, threads);
}
