// Vectors of lanes for the CPU kernels: compiler vector extensions, so that one source serves AVX-512, AVX2, SSE and
// NEON.
//
// -march=native decides how a 64-byte vector is lowered. The exponential is our own: libm's is called lane by lane.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define LANES_INLINE inline __attribute__((always_inline))

namespace wkv {

constexpr int VECTOR_BYTES = 64;

using f32v = float __attribute__((vector_size(VECTOR_BYTES)));
using f64v = double __attribute__((vector_size(VECTOR_BYTES)));
using i32v = int32_t __attribute__((vector_size(VECTOR_BYTES)));
using i64v = int64_t __attribute__((vector_size(VECTOR_BYTES)));
using u32v = uint32_t __attribute__((vector_size(VECTOR_BYTES)));
using u16v = uint16_t __attribute__((vector_size(VECTOR_BYTES / 2)));

struct bf16 {
    uint16_t bits;
};

template <class To, class From>
LANES_INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

// Whether any lane of a comparison holds.
template <class Mask>
LANES_INLINE bool any_lane(Mask mask) {
    uint64_t words[sizeof(Mask) / sizeof(uint64_t)], found = 0;
    std::memcpy(words, &mask, sizeof(mask));
    for (const uint64_t word : words) found |= word;
    return found != 0;
}

// n = round(x / ln 2) comes out of the low bits of x/ln2 + 1.5 * 2^(mantissa bits), already biased; the rest by
// polynomials.
struct Float32 {
    using F = f32v;
    using Scalar = float;
    static constexpr int LANES = VECTOR_BYTES / sizeof(float);
    static LANES_INLINE F reciprocal(F x) { return 1.0f / x; }

    // For -86 <= x <= 88; relative error below 1e-7 + |x| 2e-8, which is less than that of x itself. NaN stays NaN.
    static LANES_INLINE F exp_bounded(F x) {
        constexpr float log2_e = 1.44269504f, shift = 12582912.0f + 127.0f;
        const F shifted = x * log2_e + shift;
        const F r = x * log2_e - (shifted - shift);
        F q = r * 1.53551548e-4f + 1.33989356e-3f;
        q = q * r + 9.61842947e-3f;
        q = q * r + 5.55033237e-2f;
        q = q * r + 2.40226477e-1f;
        q = q * r + 6.93147182e-1f;
        const F scale = bit_cast<F>(bit_cast<i32v>(shifted) << 23);
        return q * (r * scale) + scale;
    }

    // Any x up to 88; 0 below -86.
    static LANES_INLINE F exp(F x) {
        const F lowest = F{} - 86.0f;
        const F inside = lowest > x ? lowest : x;
        return x < lowest ? F{} : exp_bounded(inside);
    }
};

struct Float64 {
    using F = f64v;
    using Scalar = double;
    static constexpr int LANES = VECTOR_BYTES / sizeof(double);
    static LANES_INLINE F reciprocal(F x) { return 1.0 / x; }

    // For -700 <= x <= 700; Taylor to r^13, |r| <= ln(2)/2. NaN stays NaN.
    static LANES_INLINE F exp_bounded(F x) {
        constexpr double shift = 6755399441055744.0 + 1023.0;
        const F shifted = x * 1.4426950408889634 + shift;
        const F n = shifted - shift;
        const F r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
        F q = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
        q = q * r + 1.0 / 39916800.0;
        q = q * r + 1.0 / 3628800.0;
        q = q * r + 1.0 / 362880.0;
        q = q * r + 1.0 / 40320.0;
        q = q * r + 1.0 / 5040.0;
        q = q * r + 1.0 / 720.0;
        q = q * r + 1.0 / 120.0;
        q = q * r + 1.0 / 24.0;
        q = q * r + 1.0 / 6.0;
        q = q * r + 0.5;
        q = (q * r) * r + r;
        const F scale = bit_cast<F>(bit_cast<i64v>(shifted) << 52);
        return q * scale + scale;
    }

    static LANES_INLINE F exp(F x) {
        const F lowest = F{} - 700.0;
        const F inside = lowest > x ? lowest : x;
        return x < lowest ? F{} : exp_bounded(inside);
    }
};

template <class Number>
using MathOf = std::conditional_t<std::is_same_v<Number, double>, Float64, Float32>;

LANES_INLINE f32v load(const float* from) {
    f32v x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}
LANES_INLINE f64v load(const double* from) {
    f64v x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}
LANES_INLINE f32v load(const bf16* from) {
    u16v half;
    std::memcpy(&half, from, sizeof(half));
    return bit_cast<f32v>(__builtin_convertvector(half, u32v) << 16);
}

LANES_INLINE void store(float* to, f32v x) { std::memcpy(to, &x, sizeof(x)); }
LANES_INLINE void store(double* to, f64v x) { std::memcpy(to, &x, sizeof(x)); }
// Round to nearest, ties to even; NaN stays NaN.
LANES_INLINE void store(bf16* to, f32v x) {
    const u32v bits = bit_cast<u32v>(x);
    const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const u32v quiet = u32v{} + 0x7fc0u;
    const u16v half = __builtin_convertvector(x == x ? rounded : quiet, u16v);
    std::memcpy(to, &half, sizeof(half));
}

}  // namespace wkv
