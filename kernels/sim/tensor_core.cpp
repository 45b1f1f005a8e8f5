#include "tensor_core.hpp"

#include <algorithm>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(SIM_PORTABLE)
#define SIM_AVX2
#include <immintrin.h>
#endif

namespace sim {

namespace {

u32 bits_of(float v) {
  u32 bits;
  memcpy(&bits, &v, 4);
  return bits;
}

float float_of(u32 bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

constexpr u32 CANONICAL_NAN = 0x7fffffff;

// ------------------------------------------------------------------------------------------------ sm80, sm90

struct Format {
  int exponent_bits, fraction_bits, bias;
};
constexpr Format F16{5, 10, 15}, BF16{8, 7, 127};

// The rule's block size, fraction bits and least exponent.
struct Rule {
  int block, fraction, floor;
};
constexpr Rule SM80{8, 24, -132}, SM90{16, 25, -133};

// 16-bit numbers, each significand 2^(exponent - fraction_bits) or special.
struct Part {
  alignas(32) int32_t significand[16];
  alignas(32) int32_t exponent[16];
  u32 special;  // a bit for each that is infinite or NaN
};

template <const Format& format>
void split(const uint16_t* v, int n, Part& part) {
  part.special = 0;
  for (int i = 0; i < n; ++i) {
    const int top = (1 << format.exponent_bits) - 1;
    const int e = v[i] >> format.fraction_bits & top, f = v[i] & ((1 << format.fraction_bits) - 1);
    const int magnitude = e == 0 ? f : f | 1 << format.fraction_bits;
    part.significand[i] = v[i] & 0x8000 ? -magnitude : magnitude;
    part.exponent[i] = std::max(e, 1) - format.bias;
    part.special |= u32(e == top) << i;
  }
}

template <const Format& format>
float widen(uint16_t v) {
  return format.fraction_bits == 7 ? float_of(u32(v) << 16) : f16_to_float(v);
}

bool finite(float v) { return v - v == 0.0f; }

// The sum if an operand is infinite or NaN: IEEE's result, with the canonical NaN. Finite terms do not matter.
template <const Format& format>
float add_special(const uint16_t* a, const uint16_t* b, int n, float c) {
  float sum = finite(c) ? 0.0f : c;
  for (int i = 0; i < n; ++i) {
    const float x = widen<format>(a[i]), y = widen<format>(b[i]);
    if (!finite(x) || !finite(y)) sum += x * y;
  }
  return sum != sum ? float_of(CANONICAL_NAN) : sum;
}

// sum 2^ulp as f32, truncated.
float truncate(int64_t sum, int ulp) {
  if (sum == 0) return 0.0f;
  const u32 sign = sum < 0 ? 0x80000000u : 0;
  u64 magnitude = sum < 0 ? static_cast<u64>(-sum) : static_cast<u64>(sum);
  const int top = 63 - __builtin_clzll(magnitude);
  const int exponent = std::max(top + ulp, -126);
  const int shift = exponent - 23 - ulp;  // from the sum's last place to the f32's
  magnitude = shift >= 0 ? (shift > 63 ? 0 : magnitude >> shift) : magnitude << -shift;
  if (exponent > 127) return float_of(sign | 0x7f800000);
  const u32 fraction = static_cast<u32>(magnitude);
  return float_of(sign | (magnitude >> 23 ? static_cast<u32>(exponent + 127) << 23 | (fraction & 0x7fffff) : fraction));
}

typedef int32_t Ints __attribute__((vector_size(32)));

Ints all(int v) { return Ints{} + v; }
Ints least(Ints a, Ints b) { return a < b ? a : b; }
Ints most(Ints a, Ints b) { return a > b ? a : b; }

// One block: c + sum a[k] b[k] for k in first..first+rule.block.
template <const Format& format, const Rule& rule>
float add_block(const Part& a, const Part& b, int first, float c) {
  constexpr int N = rule.block / 8;
  Ints p[N], e[N], top = all(rule.floor);
  for (int i = 0; i < N; ++i) {
    const auto at = [&](const int32_t* v) { return *reinterpret_cast<const Ints*>(v + first + 8 * i); };
    p[i] = at(a.significand) * at(b.significand);
    e[i] = at(a.exponent) + at(b.exponent);
    top = most(top, p[i] == 0 ? all(rule.floor) : e[i]);
  }
  const u32 c_bits = bits_of(c);
  const int c_field = c_bits >> 23 & 255;
  const int c_exponent = std::max(c_field, 1) - 127;
  const int64_t c_magnitude = (c_field == 0 ? 0 : 0x800000) | (c_bits & 0x7fffff);
  int largest = c_magnitude == 0 ? rule.floor : std::max(c_exponent, rule.floor);
  for (int i = 0; i < 8; ++i) largest = std::max(largest, top[i]);

  const int ulp = largest - rule.fraction;
  Ints sums = {};  // each of at most two terms below 2^27
  for (int i = 0; i < N; ++i) {
    const Ints shift = e[i] - (2 * format.fraction_bits + ulp);
    const Ints left = least(most(shift, all(0)), all(31)), right = least(most(-shift, all(0)), all(31));
    const Ints magnitude = (p[i] < 0 ? -p[i] : p[i]) << left >> right;
    sums += p[i] < 0 ? -magnitude : magnitude;
  }
  int64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += sums[i];
  const int shift = c_exponent - 23 - ulp;
  const int64_t c_term = shift >= 0 ? c_magnitude << std::min(shift, 31) : c_magnitude >> std::min(-shift, 63);
  sum += c_bits >> 31 ? -c_term : c_term;
  return truncate(sum, ulp);
}

template <const Format& format, const Rule& rule>
float add_blocks(const Part& a, const Part& b, const uint16_t* a_bits, const uint16_t* b_bits, int n, float c) {
  constexpr u32 block = (1u << rule.block) - 1;
  for (int first = 0; first < n; first += rule.block) {
    if (((a.special | b.special) >> first & block) != 0 || !finite(c)) {
      c = add_special<format>(a_bits + first, b_bits + first, rule.block, c);
    } else {
      c = add_block<format, rule>(a, b, first, c);
    }
  }
  return c;
}

// ------------------------------------------------------------------------------------------------ fragments

// The operands of a warp, rows of 16 along k: a[16 mi][16], b[8 nj][16].
constexpr int MOST = 8;  // most fragments in each direction

void gather(MmaArguments* const (&lanes)[32], int mi, int nj, uint16_t (*a)[16], uint16_t (*b)[16]) {
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32 g = lane / 4, t = lane % 4 * 2;
    const u32* from = lanes[lane]->a;
    for (int i = 0; i < mi; ++i) {
      for (u32 r = 0; r < 4; ++r) memcpy(&a[16 * i + g + 8 * (r & 1)][t + 8 * (r >> 1)], &from[4 * i + r], 4);
    }
    from = lanes[lane]->b;
    for (int j = 0; j < nj; ++j) {
      for (u32 r = 0; r < 2; ++r) memcpy(&b[8 * j + g][t + 8 * r], &from[2 * j + r], 4);
    }
  }
}

template <const Format& format, const Rule& rule>
void multiply_by_rule(MmaArguments* const (&lanes)[32], int mi, int nj, const uint16_t (*a)[16],
                      const uint16_t (*b)[16]) {
  Part pa[16 * MOST], pb[8 * MOST];
  for (int i = 0; i < 16 * mi; ++i) split<format>(a[i], 16, pa[i]);
  for (int j = 0; j < 8 * nj; ++j) split<format>(b[j], 16, pb[j]);
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32 g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < mi; ++i) {
      for (int j = 0; j < nj; ++j) {
        float* d = lanes[lane]->d + 4 * (i * nj + j);
        for (u32 r = 0; r < 4; ++r) {
          const u32 m = 16 * i + g + 8 * (r >> 1), n = 8 * j + t + (r & 1);
          d[r] = add_blocks<format, rule>(pa[m], pb[n], a[m], b[n], 16, d[r]);
        }
      }
    }
  }
}

typedef float Row __attribute__((vector_size(32)));

#ifdef SIM_AVX2
Row widen8(Half type, const uint16_t* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if (type == Half::f16) return _mm256_cvtph_ps(bits);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#else
Row widen8(Half type, const uint16_t* from) {
  Row row;
  for (int i = 0; i < 8; ++i) row[i] = type == Half::bf16 ? float_of(u32(from[i]) << 16) : f16_to_float(from[i]);
  return row;
}
#endif

// d[8 rows][8 columns] += a[8][16] b[16][8].
inline void multiply_rows(const float (*a)[16], const Row* b, Row* d) {
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 8; ++m) {
      const float v = a[m][k];
#ifdef SIM_AVX2
      d[m] = _mm256_fmadd_ps(_mm256_set1_ps(v), b[k], d[m]);
#else
      for (int n = 0; n < 8; ++n) d[m][n] = __builtin_fmaf(v, b[k][n], d[m][n]);
#endif
    }
  }
}

void multiply_exactly(MmaArguments* const (&lanes)[32], Half type, int mi, int nj, const uint16_t (*a)[16],
                      const uint16_t (*b)[16]) {
  alignas(32) float wide_a[16 * MOST][16];
  Row columns[MOST][16];  // [j][k][n]
  for (int i = 0; i < 16 * mi; ++i) {
    for (int k = 0; k < 16; k += 8) *reinterpret_cast<Row*>(&wide_a[i][k]) = widen8(type, a[i] + k);
  }
  for (int j = 0; j < nj; ++j) {
    for (int k = 0; k < 16; k += 8) {
      for (int n = 0; n < 8; ++n) {
        const Row row = widen8(type, b[8 * j + n] + k);
        for (int i = 0; i < 8; ++i) columns[j][k + i][n] = row[i];
      }
    }
  }
  for (int i = 0; i < mi; ++i) {
    for (int j = 0; j < nj; ++j) {
      const int offset = 4 * (i * nj + j);
      for (int half = 0; half < 2; ++half) {
        alignas(32) float d[8][8];
        for (u32 lane = 0; lane < 32; ++lane) memcpy(&d[lane / 4][lane % 4 * 2], lanes[lane]->d + offset + 2 * half, 8);
        multiply_rows(wide_a + 16 * i + 8 * half, columns[j], reinterpret_cast<Row*>(d));
        for (u32 lane = 0; lane < 32; ++lane) memcpy(lanes[lane]->d + offset + 2 * half, &d[lane / 4][lane % 4 * 2], 8);
      }
    }
  }
}

void by_rule(Arithmetic arithmetic, MmaArguments* const (&lanes)[32], int mi, int nj, const uint16_t (*a)[16],
             const uint16_t (*b)[16]) {
  const bool half = lanes[0]->type == Half::f16, old = arithmetic == Arithmetic::sm80;
  if (half && old) return multiply_by_rule<F16, SM80>(lanes, mi, nj, a, b);
  if (half) return multiply_by_rule<F16, SM90>(lanes, mi, nj, a, b);
  if (old) return multiply_by_rule<BF16, SM80>(lanes, mi, nj, a, b);
  return multiply_by_rule<BF16, SM90>(lanes, mi, nj, a, b);
}

template <const Format& format, const Rule& rule>
float dot_by_rule(int n, const uint16_t* a, const uint16_t* b, float c) {
  for (int first = 0; first < n; first += rule.block) {
    const int count = std::min(rule.block, n - first);
    uint16_t va[16] = {}, vb[16] = {};
    memcpy(va, a + first, count * sizeof *a);
    memcpy(vb, b + first, count * sizeof *b);
    Part pa, pb;
    split<format>(va, 16, pa);
    split<format>(vb, 16, pb);
    c = add_blocks<format, rule>(pa, pb, va, vb, rule.block, c);
  }
  return c;
}

}  // namespace

void multiply_warp(Arithmetic arithmetic, MmaArguments* const (&lanes)[32]) {
  const int mi = lanes[0]->mi, nj = lanes[0]->nj;
  uint16_t a[16 * MOST][16], b[8 * MOST][16];
  gather(lanes, mi, nj, a, b);
  if (arithmetic == Arithmetic::exact) {
    multiply_exactly(lanes, lanes[0]->type, mi, nj, a, b);
  } else {
    by_rule(arithmetic, lanes, mi, nj, a, b);
  }
}

float dot(Half type, Arithmetic arithmetic, int n, const uint16_t* a, const uint16_t* b, float c) {
  if (arithmetic == Arithmetic::exact) {
    for (int i = 0; i < n; ++i) {
      const bool half = type == Half::f16;
      c = __builtin_fmaf(half ? widen<F16>(a[i]) : widen<BF16>(a[i]), half ? widen<F16>(b[i]) : widen<BF16>(b[i]), c);
    }
    return c;
  }
  const bool old = arithmetic == Arithmetic::sm80;
  if (type == Half::f16) return old ? dot_by_rule<F16, SM80>(n, a, b, c) : dot_by_rule<F16, SM90>(n, a, b, c);
  return old ? dot_by_rule<BF16, SM80>(n, a, b, c) : dot_by_rule<BF16, SM90>(n, a, b, c);
}

// ------------------------------------------------------------------------------------------------ conversions

float f16_to_float(unsigned short bits) {
  const u32 sign = u32(bits & 0x8000) << 16;
  u32 e = bits >> 10 & 31, f = bits & 0x3ff;
  if (e == 31) return float_of(f == 0 ? sign | 0x7f800000 : CANONICAL_NAN);
  if (e == 0) {
    if (f == 0) return float_of(sign);
    const int shift = __builtin_clz(f) - 21;  // to the implicit bit
    return float_of(sign | static_cast<u32>(113 - shift) << 23 | (f << shift & 0x3ff) << 13);
  }
  return float_of(sign | (e + 112) << 23 | f << 13);
}

unsigned short float_to_f16(float v) {
  const u32 bits = bits_of(v);
  const u32 sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<unsigned short>(sign | 0x7c00);  // 65520 and more
  if (magnitude < 0x38800000) {  // subnormal: the sum's last place is f16's
    return static_cast<unsigned short>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  const u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<unsigned short>(sign | ((rounded >> 13) - (112 << 10)));
}

unsigned short float_to_bf16(float v) {
  const u32 bits = bits_of(v);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace sim
