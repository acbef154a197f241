// Bi-WKV on the CPU, compiled on first use by native.py. C interface.
//
//   y = K[x v] / K[x],   x_t = e^{k_t - top},   K[z]_t = P[z]_t + F[z]_t + e^u z_t
//   P[z]_t = sum_{i<t} e^{-w (t-1-i)} z_i,  the past;  F, the future, is the same for the tokens in reverse order
//
// The tokens are cut into chunks. A first pass finds the total of each chunk, which is carried from chunk to chunk in
// float64; a second pass sums inside of the chunks. There a step keeps e^{-w} of a state. Near 1, as for most channels,
// e^{-w} would round in every step: it is applied as 1 - delta, where delta = 1 - e^{-w} has all its digits.
//
// Backward, with g = dL/dy:  r = g / K[x],  s = r y;  K is its own transpose, so dv = x K[r],  dk = x (v K[r] - K[s]).
// dw and du sum r times the slopes of K[x v] and K[x], a small difference of large numbers: these are float64.
#include "map.h"

namespace {

constexpr int CHUNK = 32;
constexpr int TILE = 96;  // channels, so that the rows of a chunk stay in the cache

// Per channel 1 - e^{-w}, e^{-w}, e^{-w CHUNK} and e^u; and e^{-w d} for d < CHUNK, (CHUNK, C) in the accumulation
// type.
struct Decay {
  const double *delta, *keep, *chunk, *bonus;
  const void* powers;
};

struct Sizes {
  int64_t B, T, C;

  int64_t chunks() const { return (T + CHUNK - 1) / CHUNK; }
};

// One row of channels per token of a chunk.
template <typename A>
struct Rows {
  alignas(64) A row[CHUNK][TILE];

  A* operator[](int t) { return row[t]; }
  const A* operator[](int t) const { return row[t]; }
};

// The two arguments of K, [x v, x] or [r, s].
template <typename A>
struct Pair {
  Rows<A> of[2];
};

// Work of a task: an image, a chunk and a range of channels.
struct Place {
  int64_t b, q, c;
  int tokens, lanes;

  template <typename T>
  T* in(const Map& m, int t) const {
    return m.at<T>(b, 0, c) + (q * CHUNK + t) * m.w;
  }
};

// e^{-w} = base - delta: base is 1, or 0 where 1 - delta would lose the digits of a small e^{-w}.
template <typename A>
struct Channel {
  alignas(64) A base[TILE], delta[TILE], bonus[TILE];
  bool any_small = false;

  Channel(const Decay& decay, const Place& at) {
    for (int k = 0; k < at.lanes; ++k) {
      const bool small = decay.keep[at.c + k] < 0.5;
      any_small |= small;
      base[k] = small ? 0 : 1;
      delta[k] = A(small ? -decay.keep[at.c + k] : decay.delta[at.c + k]);
      bonus[k] = A(decay.bonus[at.c + k]);
    }
  }

  // The condition is the same for all channels, so that the compiler makes a loop for each case.
  A decayed(int k, A state) const { return (any_small ? base[k] * state : state) - delta[k] * state; }
};

template <typename F>
void for_each_place(const Sizes& s, int threads, F&& run) {
  const int64_t chunks = s.chunks(), tiles = (s.C + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t task = 0; task < s.B * chunks * tiles; ++task) {
    const int64_t b = task / (chunks * tiles), q = task / tiles % chunks, c = task % tiles * TILE;
    const int64_t tokens = s.T - q * CHUNK, lanes = s.C - c;
    run(Place{b, q, c, int(tokens < CHUNK ? tokens : CHUNK), int(lanes < TILE ? lanes : TILE)});
  }
}

// e^x for x <= 0.
inline float weight(float x) {
  const float y = exponential(x < -87.f ? -87.f : x);
  return x < -87.f ? 0.f : y;
}
inline double weight(double x) { return std::exp(x); }

// next = e^{-w} state + z
template <typename A>
inline void step(const Channel<A>& channel, const A* state, const A* z, A* next, int lanes) {
#pragma omp simd
  for (int k = 0; k < lanes; ++k) next[k] = channel.decayed(k, state[k]) + z[k];
}

// Same as step, for the state and its moment, sum d e^{-w d} z, whose distances all grow by one.
inline void step(const Channel<double>& channel, double* state, double* moment, const double* z, int lanes) {
#pragma omp simd
  for (int k = 0; k < lanes; ++k) {
    moment[k] = channel.decayed(k, state[k] + moment[k]);
    state[k] = channel.decayed(k, state[k]) + z[k];
  }
}

// z = [x v, x]
template <typename T, typename A>
void read_pair(const Map& keys, const Map& values, const State<T>* top, const Place& at, Pair<A>& z) {
  for (int t = 0; t < at.tokens; ++t) {
    const T *k = at.in<const T>(keys, t), *v = at.in<const T>(values, t);
    A *xv = z.of[0][t], *x = z.of[1][t];
#pragma omp simd
    for (int i = 0; i < at.lanes; ++i) {
      x[i] = A(weight(load(k[i]) - top[i]));
      xv[i] = x[i] * A(load(v[i]));
    }
  }
}

// States of a chunk, (kinds, C): past and future of both arguments of K, then their moments.
struct States {
  double* data;
  int64_t kinds, C, chunks;

  double* at(int64_t b, int64_t q, int64_t kind) const { return data + ((b * chunks + q) * kinds + kind) * C; }
};

// Terms that a chunk adds to the past of the next chunk and to the future of the previous one.
template <typename A>
void total(const Pair<A>& z, const Channel<A>& channel, const Place& at, const States& states) {
  for (int kind = 0; kind < 4; ++kind) {
    const bool future = kind / 2;
    A state[TILE] = {};
    for (int i = 0; i < at.tokens; ++i)
      step(channel, state, z.of[kind % 2][future ? at.tokens - 1 - i : i], state, at.lanes);
    double* out = states.at(at.b, at.q, kind) + at.c;
    for (int k = 0; k < at.lanes; ++k) out[k] = state[k];
  }
}

void total_with_moments(const Pair<double>& z, const Channel<double>& channel, const Place& at, const States& states) {
  for (int kind = 0; kind < 4; ++kind) {
    const bool future = kind / 2;
    double state[TILE] = {}, moment[TILE] = {};
    for (int i = 0; i < at.tokens; ++i)
      step(channel, state, moment, z.of[kind % 2][future ? at.tokens - 1 - i : i], at.lanes);
    std::memcpy(states.at(at.b, at.q, kind) + at.c, state, at.lanes * sizeof(double));
    std::memcpy(states.at(at.b, at.q, kind + 4) + at.c, moment, at.lanes * sizeof(double));
  }
}

// Replaces the totals of the chunks by the states that enter them.
void carry(const Sizes& s, const Decay& decay, const States& states, bool moments, int threads) {
  const int64_t chunks = s.chunks();
#pragma omp parallel for num_threads(threads) collapse(2)
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t kind = 0; kind < 4; ++kind) {
      const bool future = kind / 2;
      for (int64_t first = 0; first < s.C; first += TILE) {
        const int lanes = int(s.C - first < TILE ? s.C - first : TILE);
        double state[TILE] = {}, moment[TILE] = {};
        for (int64_t i = 0; i < chunks; ++i) {
          const int64_t q = future ? chunks - 1 - i : i;
          double* total = states.at(b, q, kind) + first;
          double* slope = moments ? states.at(b, q, kind + 4) + first : moment;
          for (int k = 0; k < lanes; ++k) {
            const double keep = decay.chunk[first + k], entered = state[k];
            state[k] = keep * entered + total[k];
            total[k] = entered;
            if (moments) {
              const double moved = keep * (moment[k] + CHUNK * entered) + slope[k];
              slope[k] = moment[k];
              moment[k] = moved;
            }
          }
        }
      }
    }
}

// sums = K[z], given the states that enter the chunk. These are scaled by e^{-w d} from the table: in a recurrence, each
// token would round them.
template <typename A>
void mix(const Pair<A>& z, const Channel<A>& channel, const Place& at, const States& states, const A* powers, int64_t C,
         Pair<A>& sums) {
  for (int half = 0; half < 2; ++half) {
    const Rows<A>& in = z.of[half];
    Rows<A>& out = sums.of[half];
    const double *past = states.at(at.b, at.q, half) + at.c, *future = states.at(at.b, at.q, half + 2) + at.c;
    A before[TILE], after[TILE], state[TILE] = {};
    for (int k = 0; k < at.lanes; ++k) before[k] = A(past[k]), after[k] = A(future[k]), out[0][k] = 0;
    for (int t = 1; t < at.tokens; ++t) step(channel, out[t - 1], in[t - 1], out[t], at.lanes);
    for (int t = at.tokens - 1; t >= 0; --t) {
      const A *x = in[t], *from_past = powers + t * C + at.c, *from_future = powers + (at.tokens - 1 - t) * C + at.c;
      A* o = out[t];
#pragma omp simd
      for (int k = 0; k < at.lanes; ++k) {
        const A inside = o[k] + state[k] + channel.bonus[k] * x[k];
        o[k] = inside + from_past[k] * before[k] + from_future[k] * after[k];
        state[k] = channel.decayed(k, state[k]) + x[k];
      }
    }
  }
}

// sums = K[z] and slopes = -dK[z]/dw.
void mix_with_slopes(const Pair<double>& z, const Channel<double>& channel, const Place& at, const States& states,
                     Pair<double>& sums, Pair<double>& slopes) {
  for (int kind = 0; kind < 4; ++kind) {
    const bool future = kind / 2;
    const Rows<double>& in = z.of[kind % 2];
    Rows<double>&out = sums.of[kind % 2], &out_slopes = slopes.of[kind % 2];
    double state[TILE], moment[TILE];
    std::memcpy(state, states.at(at.b, at.q, kind) + at.c, at.lanes * sizeof(double));
    std::memcpy(moment, states.at(at.b, at.q, kind + 4) + at.c, at.lanes * sizeof(double));
    for (int i = 0; i < at.tokens; ++i) {
      const int t = future ? at.tokens - 1 - i : i;
      double *o = out[t], *slope = out_slopes[t];
      const double* x = in[t];
#pragma omp simd
      for (int k = 0; k < at.lanes; ++k) {
        o[k] = (future ? o[k] : channel.bonus[k] * x[k]) + state[k];
        slope[k] = (future ? slope[k] : 0) + moment[k];
      }
      step(channel, state, moment, x, at.lanes);
    }
  }
}

template <typename T>
void forward(const Sizes& s, int threads, const Decay& decay, const State<T>* top, const Map& k, const Map& v,
             const Map& y, double* space) {
  using A = State<T>;
  const States states{space, 4, s.C, s.chunks()};
  for_each_place(s, threads, [&](const Place& at) {
    Pair<A> z;
    read_pair<T>(k, v, top + at.b * s.C + at.c, at, z);
    total(z, Channel<A>(decay, at), at, states);
  });
  carry(s, decay, states, false, threads);
  for_each_place(s, threads, [&](const Place& at) {
    Pair<A> z, sums;
    read_pair<T>(k, v, top + at.b * s.C + at.c, at, z);
    mix(z, Channel<A>(decay, at), at, states, (const A*)decay.powers, s.C, sums);
    for (int t = 0; t < at.tokens; ++t) {
      T* o = at.in<T>(y, t);
      const A *numerator = sums.of[0][t], *denominator = sums.of[1][t];
#pragma omp simd
      for (int i = 0; i < at.lanes; ++i) store(o + i, numerator[i] / denominator[i]);
    }
  });
}

struct Gradients {
  Map y, k, v;
};

template <typename T>
void backward(const Sizes& s, int threads, const Decay& decay, const State<T>* top, const Map& k, const Map& v,
              const Gradients& grad, const Map& r_map, const Map& s_map, double* parts, double* space) {
  using A = State<T>;
  const States states{space, 8, s.C, s.chunks()};
  for_each_place(s, threads, [&](const Place& at) {
    Pair<double> z;
    read_pair<T>(k, v, top + at.b * s.C + at.c, at, z);
    total_with_moments(z, Channel<double>(decay, at), at, states);
  });
  carry(s, decay, states, true, threads);
  for_each_place(s, threads, [&](const Place& at) {
    Pair<double> z, sums, slopes;
    Pair<A> rs;
    const Channel<double> channel(decay, at);
    read_pair<T>(k, v, top + at.b * s.C + at.c, at, z);
    mix_with_slopes(z, channel, at, states, sums, slopes);
    double dw[TILE] = {}, du[TILE] = {};
    for (int t = 0; t < at.tokens; ++t) {
      const T* g = at.in<const T>(grad.y, t);
      const double *xv = z.of[0][t], *x = z.of[1][t], *numerator = sums.of[0][t], *denominator = sums.of[1][t];
      const double *slope_xv = slopes.of[0][t], *slope_x = slopes.of[1][t];
      A *r_row = rs.of[0][t], *s_row = rs.of[1][t];
#pragma omp simd
      for (int i = 0; i < at.lanes; ++i) {
        const double inverse = 1 / denominator[i], y = numerator[i] * inverse, r = load(g[i]) * inverse;
        dw[i] -= r * (slope_xv[i] - y * slope_x[i]);
        du[i] += r * (xv[i] - y * x[i]);
        r_row[i] = A(r);
        s_row[i] = A(r * y);
      }
      std::memcpy(at.in<A>(r_map, t), r_row, at.lanes * sizeof(A));
      std::memcpy(at.in<A>(s_map, t), s_row, at.lanes * sizeof(A));
    }
    double* part = parts + (at.b * s.chunks() + at.q) * 2 * s.C + at.c;
    for (int i = 0; i < at.lanes; ++i) part[i] = dw[i], part[s.C + i] = channel.bonus[i] * du[i];
    // The entering states have been used: reuse their memory.
    total(rs, Channel<A>(decay, at), at, states);
  });
  carry(s, decay, states, false, threads);
  for_each_place(s, threads, [&](const Place& at) {
    Pair<A> rs, sums, z;
    for (int t = 0; t < at.tokens; ++t) {
      std::memcpy(rs.of[0][t], at.in<A>(r_map, t), at.lanes * sizeof(A));
      std::memcpy(rs.of[1][t], at.in<A>(s_map, t), at.lanes * sizeof(A));
    }
    read_pair<T>(k, v, top + at.b * s.C + at.c, at, z);
    mix(rs, Channel<A>(decay, at), at, states, (const A*)decay.powers, s.C, sums);
    for (int t = 0; t < at.tokens; ++t) {
      T *dk = at.in<T>(grad.k, t), *dv = at.in<T>(grad.v, t);
      const A *xv = z.of[0][t], *x = z.of[1][t], *kr = sums.of[0][t], *ks = sums.of[1][t];
#pragma omp simd
      for (int i = 0; i < at.lanes; ++i) {
        store(dv + i, x[i] * kr[i]);
        store(dk + i, xv[i] * kr[i] - x[i] * ks[i]);
      }
    }
  });
}

// Calls run with a zero of the type: 0 is float32, 1 float64, 2 bfloat16.
template <typename F>
void dispatch(int dtype, F&& run) {
  if (dtype == 0) run(float{});
  if (dtype == 1) run(double{});
  if (dtype == 2) run(bf16{});
}

}  // namespace

extern "C" const int bi_wkv_chunk = CHUNK;

// Maps are (B, 1, T, 1, C). top: the largest key, (B, C), in the accumulation type, as are r and s. space: memory for 4
// (forward) or 8 states of each chunk, (B, chunks, ., C).
extern "C" void bi_wkv_forward(int dtype, Sizes sizes, int threads, Decay decay, const void* top, Map k, Map v,
                               Map y, double* space) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    forward<T>(sizes, threads, decay, (const State<T>*)top, k, v, y, space);
  });
}

// parts: dw and du of each chunk, (B, chunks, 2, C).
extern "C" void bi_wkv_backward(int dtype, Sizes sizes, int threads, Decay decay, const void* top, Map k, Map v,
                                Map grad, Map dk, Map dv, Map r, Map s, double* parts, double* space) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    backward<T>(sizes, threads, decay, (const State<T>*)top, k, v, {grad, dk, dv}, r, s, parts,
                space);
  });
}
