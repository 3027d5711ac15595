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
constexpr int64_t AHEAD = 4096;     // bytes between what is read and what is fetched
constexpr int64_t FLUSH = 64 * 64;  // columns after which sums of 32 bits are added up: below 2^31 by then

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

// Products of one row: one stream through memory is twice as fast as four.
template <Kind>
struct Product;

template <>
struct Product<Kind::fp32> {
    using Weight = float;
    static LANES_INLINE float row(const float* weights, float, const Input& in, int64_t K) {
        f32v sums[4] = {};
        for (int64_t i = 0; i < K; i += 4 * LANES) {
            for (int64_t j = 0; j < 4; ++j) {
                __builtin_prefetch(reinterpret_cast<const char*>(weights + i + j * LANES) + AHEAD);
                sums[j] += load(weights + i + j * LANES) * load(in.x + i + j * LANES);
            }
        }
        return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
};

template <>
struct Product<Kind::bf16> {
    using Weight = uint16_t;
    // Of 32 columns, column i is the lower half of word i, column i + 16 its upper half.
    static LANES_INLINE float row(const uint16_t* weights, float, const Input& in, int64_t K) {
        f32v sums[4] = {};
        for (int64_t i = 0; i < K; i += 4 * LANES) {
            for (int64_t j = 0; j < 4; j += 2) {
                __builtin_prefetch(reinterpret_cast<const char*>(weights + i + j * LANES) + AHEAD);
                u32v pairs;
                std::memcpy(&pairs, weights + i + j * LANES, sizeof(pairs));
                sums[j] += wkv::bit_cast<f32v>(pairs << 16) * load(in.x + i + j * LANES);
                sums[j + 1] += wkv::bit_cast<f32v>(pairs & 0xffff0000u) * load(in.x + i + (j + 1) * LANES);
            }
        }
        return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
};

template <>
struct Product<Kind::int8> {
    using Weight = int8_t;
    static LANES_INLINE float row(const int8_t* weights, float scale, const Input& in, int64_t K) {
        float sum = 0.0f;
        for (int64_t begin = 0; begin < K; begin += FLUSH)
            sum += static_cast<float>(products(weights + begin, in.whole + begin, std::min(FLUSH, K - begin)));
        return sum * (scale * in.scale);
    }

    // Sum of `count` products, exact: a multiple of 64, at most FLUSH.
    static LANES_INLINE int64_t products(const int8_t* weights, const int16_t* x, int64_t count) {
        int64_t sum = 0;
#if defined(__AVX512BW__)
        __m512i sums[2] = {};
        for (int64_t i = 0; i < count; i += 64) {
            __builtin_prefetch(weights + i + AHEAD);
            for (int64_t j = 0; j < 2; ++j) {
                const auto* words = reinterpret_cast<const __m256i*>(weights + i + 32 * j);
                const __m512i w = _mm512_cvtepi8_epi16(_mm256_loadu_si256(words));
                sums[j] = accumulate(sums[j], w, _mm512_loadu_si512(x + i + 32 * j));
            }
        }
        int32_t lanes[16];
        const __m512i both = _mm512_add_epi32(sums[0], sums[1]);
        std::memcpy(lanes, &both, sizeof(lanes));
        for (const int32_t lane : lanes) sum += lane;
#elif defined(__AVX2__)
        __m256i sums[2] = {};
        for (int64_t i = 0; i < count; i += 32) {
            __builtin_prefetch(weights + i + AHEAD);
            for (int64_t j = 0; j < 2; ++j) {
                const auto* words = reinterpret_cast<const __m128i*>(weights + i + 16 * j);
                const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(words));
                const __m256i whole = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i + 16 * j));
                sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(w, whole));
            }
        }
        int32_t lanes[16];
        std::memcpy(lanes, sums, sizeof(lanes));
        for (const int32_t lane : lanes) sum += lane;
#else
        for (int64_t i = 0; i < count; ++i) sum += static_cast<int32_t>(weights[i]) * x[i];
#endif
        return sum;
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
