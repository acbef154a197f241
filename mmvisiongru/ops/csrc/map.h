// Shared by the scans over maps: number types, the walk over a map, the division among threads. Standard headers only.
//
// A task is one path of one image and a range of its channels. It walks the tokens with its state in L1 and reads
// each input once. A column path swaps two strides, a reverse path walks backwards: nothing is copied.
#pragma once

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

// exp of values that were read as T.
template <typename T>
struct Exponential {
  static State<T> of(State<T> x) { return exponential(x); }
};
// For 16-bit values a polynomial of degree 3 for 2^f, |f| <= 1/2: its error of 1e-4 is a fortieth of their rounding.
template <>
struct Exponential<bf16> {
  static float of(float x) {
    constexpr float magic = 12582912.f;
    const float shifted = x * 1.44269504f + magic;
    const float f = x * 1.44269504f - (shifted - magic);
    const float p = 1.f + f * (0.693282928f + f * (0.242210969f + f * 0.0550089309f));
    uint32_t bits, n;
    std::memcpy(&bits, &p, 4);
    std::memcpy(&n, &shifted, 4);
    // The last bits of the shifted number are the exponent to add.
    bits += n << 23;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  }
};

// A map (B, H, W, P, D): address and element strides; the stride of the channels is 1.
struct Map {
  void* data;
  int64_t b, h, w, p;

  template <typename T>
  T* at(int64_t image, int64_t path, int64_t channel) const {
    return static_cast<T*>(data) + image * b + path * p + channel;
  }
};

struct Shape {
  int64_t B, H, W, P, D;
};

// Prefetch for reading (rw = 0) or writing (rw = 1): hardware prefetchers stop at page borders, and the channels of
// a token are shorter than a page.
template <int rw, typename T>
inline void prefetch(const T* row, int n) {
  for (int k = 0; k < n; k += 64 / int(sizeof(T))) __builtin_prefetch(row + k, rw);
}

// The tokens of one path, (outer, inner) = (row, column of the map) or, for a column path, the other way round.
struct Walk {
  int64_t outer, inner;
  bool reverse, column;

  int64_t offset(const Map& m, int64_t i, int64_t j) const {
    return column ? j * m.h + i * m.w : i * m.h + j * m.w;
  }
  // Calls f(i, j) for every token, in reading order if `along`, otherwise in the opposite order.
  template <typename F>
  void each(bool along, F&& f) const {
    const bool down = reverse == along;
    for (int64_t a = 0; a < outer; ++a)
      for (int64_t b = 0; b < inner; ++b) f(down ? outer - 1 - a : a, down ? inner - 1 - b : b);
  }
  // Distance to the token AHEAD steps later in a row. Wrong at the end of a row, where a prefetch is wasted.
  int64_t ahead(const Map& m, bool along) const {
    return (reverse == along ? -AHEAD : AHEAD) * (column ? m.h : m.w);
  }
  // Moves (i, j) to the token read before; returns false at the first one.
  bool previous(int64_t& i, int64_t& j) const {
    const int64_t step = reverse ? 1 : -1;
    j += step;
    if (j >= 0 && j < inner) return true;
    j = reverse ? 0 : inner - 1;
    i += step;
    return i >= 0 && i < outer;
  }
};

// Calls run(b, p, d, lanes, walk) for every image, path and range of channels. Channels are split only as far as
// threads need work: a range is a strided walk over all tokens, and a wider range touches fewer pages.
template <typename F>
void for_each_task(const Shape& shape, const uint8_t* column, const uint8_t* reverse, int threads, F&& run) {
  const int64_t walks = shape.B * shape.P;
  int64_t splits = (shape.D + LANES - 1) / LANES;
  while (walks * splits % threads && walks * splits < 4 * threads && shape.D / splits > 16) ++splits;
  // Full cache lines of float32, so that no two threads write to the same one.
  const int64_t lanes = ((shape.D + splits - 1) / splits + 15) / 16 * 16;
  const int64_t tiles = (shape.D + lanes - 1) / lanes;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < walks * tiles; ++task) {
    const int64_t b = task / (shape.P * tiles), p = task / tiles % shape.P, d = task % tiles * lanes;
    const Walk walk{column[p] ? shape.W : shape.H, column[p] ? shape.H : shape.W, reverse[p] != 0, column[p] != 0};
    run(b, p, d, int(shape.D - d < lanes ? shape.D - d : lanes), walk);
  }
}

}  // namespace
