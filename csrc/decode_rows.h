// Rows of stored weights times a vector, for each kind of storage.
#pragma once

#include <algorithm>

#include "decode_cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace decode {

using wkv::f32v;
using wkv::load;
using wkv::u32v;

constexpr int64_t LANES = wkv::Float32::LANES;
constexpr int64_t ROWS = 4;         // read side by side
constexpr int64_t AHEAD = ROWS;     // rows between what is read and what is fetched
constexpr int64_t FLUSH = 64 * 64;  // columns after which sums of 32 bits are added up: at most 2^30 by then

// Halves are added to each other, whatever the width of the machine's vectors.
LANES_INLINE float total(f32v x) {
    using f32x8 = float __attribute__((vector_size(32)));
    using f32x4 = float __attribute__((vector_size(16)));
    f32x8 eight[2];
    std::memcpy(eight, &x, sizeof(x));
    const f32x8 sum = eight[0] + eight[1];
    f32x4 four[2];
    std::memcpy(four, &sum, sizeof(sum));
    const f32x4 last = four[0] + four[1];
    return (last[0] + last[2]) + (last[1] + last[3]);
}

// A vector of activations as a kind of weights multiplies it.
struct Input {
    const float* x;          // [padded]
    const int16_t* whole;    // [padded], x / scale rounded; of int8 only
    float scale;
};

template <Kind>
struct Product;

template <>
struct Product<Kind::fp32> {
    using Weight = float;
    template <int64_t R>
    static LANES_INLINE void rows(const float* weights, const float*, const Input& in, int64_t K, float* out) {
        f32v sums[R][2] = {};
        for (int64_t i = 0; i < K; i += 2 * LANES) {
            const f32v x0 = load(in.x + i), x1 = load(in.x + i + LANES);
            for (int64_t r = 0; r < R; ++r) {
                const float* row = weights + r * K + i;
                __builtin_prefetch(row + AHEAD * K);
                __builtin_prefetch(row + AHEAD * K + LANES);
                sums[r][0] += load(row) * x0;
                sums[r][1] += load(row + LANES) * x1;
            }
        }
        for (int64_t r = 0; r < R; ++r) out[r] = total(sums[r][0] + sums[r][1]);
    }
};

template <>
struct Product<Kind::bf16> {
    using Weight = uint16_t;
    // Of 32 columns, column i is the lower half of word i, column i + 16 its upper half.
    template <int64_t R>
    static LANES_INLINE void rows(const uint16_t* weights, const float*, const Input& in, int64_t K, float* out) {
        f32v sums[R][2] = {};
        for (int64_t i = 0; i < K; i += 2 * LANES) {
            const f32v x0 = load(in.x + i), x1 = load(in.x + i + LANES);
            for (int64_t r = 0; r < R; ++r) {
                const uint16_t* row = weights + r * K + i;
                __builtin_prefetch(row + AHEAD * K);
                u32v pairs;
                std::memcpy(&pairs, row, sizeof(pairs));
                sums[r][0] += wkv::bit_cast<f32v>(pairs << 16) * x0;
                sums[r][1] += wkv::bit_cast<f32v>(pairs & 0xffff0000u) * x1;
            }
        }
        for (int64_t r = 0; r < R; ++r) out[r] = total(sums[r][0] + sums[r][1]);
    }
};

template <>
struct Product<Kind::int8> {
    using Weight = int8_t;
    template <int64_t R>
    static LANES_INLINE void rows(const int8_t* weights, const float* scales, const Input& in, int64_t K, float* out) {
        float sums[R] = {};
        for (int64_t begin = 0; begin < K; begin += FLUSH) {
            int64_t whole[R];
            products<R>(weights + begin, in.whole + begin, std::min(FLUSH, K - begin), K, whole);
            for (int64_t r = 0; r < R; ++r) sums[r] += static_cast<float>(whole[r]);
        }
        for (int64_t r = 0; r < R; ++r) out[r] = sums[r] * (scales[r] * in.scale);
    }

    // Sums of `count` products, exact: a multiple of 64, at most FLUSH.
    template <int64_t R>
    static LANES_INLINE void products(const int8_t* weights, const int16_t* x, int64_t count, int64_t K, int64_t* out) {
#if defined(__AVX512BW__)
        __m512i sums[R][2] = {};
        for (int64_t i = 0; i < count; i += 64) {
            const __m512i x0 = _mm512_loadu_si512(x + i), x1 = _mm512_loadu_si512(x + i + 32);
            for (int64_t r = 0; r < R; ++r) {
                const int8_t* row = weights + r * K + i;
                __builtin_prefetch(row + 2 * AHEAD * K);
                const __m512i w0 = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
                const __m512i w1 = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32)));
                sums[r][0] = accumulate(sums[r][0], w0, x0);
                sums[r][1] = accumulate(sums[r][1], w1, x1);
            }
        }
        for (int64_t r = 0; r < R; ++r) {
            int32_t lanes[32];
            std::memcpy(lanes, sums[r], sizeof(lanes));
            out[r] = 0;
            for (const int32_t lane : lanes) out[r] += lane;
        }
#elif defined(__AVX2__)
        for (int64_t r = 0; r < R; ++r) {
            const int8_t* row = weights + r * K;
            __m256i sums[2] = {};
            for (int64_t i = 0; i < count; i += 16) {
                const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i)));
                const __m256i x0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
                __m256i& sum = sums[(i / 16) % 2];
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, x0));
            }
            int32_t lanes[16];
            std::memcpy(lanes, sums, sizeof(lanes));
            out[r] = 0;
            for (const int32_t lane : lanes) out[r] += lane;
        }
#else
        for (int64_t r = 0; r < R; ++r) {
            int64_t sum = 0;
            for (int64_t i = 0; i < count; ++i) sum += static_cast<int32_t>(weights[r * K + i]) * x[i];
            out[r] = sum;
        }
#endif
    }

#if defined(__AVX512BW__)
    static LANES_INLINE __m512i accumulate(__m512i sum, __m512i w, __m512i x) {
#if defined(__AVX512VNNI__)
        return _mm512_dpwssd_epi32(sum, w, x);
#else
        return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x));
#endif
    }
#endif
};

}  // namespace decode
