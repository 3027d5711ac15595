// What the CUDA kernels of the WKV scan share. Every byte is read once, no atomics, the same result on every run.
//
// A block owns W channels of a segment of one sequence and walks time in tiles. Its threads lie over the channels and
// over sub-chunks of STEPS consecutive steps, which each thread holds in registers while the next tile is already on
// its way. A thread sums up its sub-chunk, the summaries meet in shared memory, and every thread combines those before
// it (after it, for gradients) with what the block carries from tile to tile. A narrow W spreads few channels over more
// blocks and more of time over a block.
//
// Within a sub-chunk all weights share one scale, its largest key. A sub-chunk whose keys spread beyond GUARD, or that
// the end of the sequence cuts short, is walked step by step instead, each step with its own scale, reading its inputs
// again.
#pragma once

#include <cstdint>

#include "wkv_math.h"
#include "wkv_split.h"

#ifdef __CUDACC__
#define WKV_DEVICE __device__ __forceinline__
#define WKV_GLOBAL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define WKV_SHARED __shared__
#endif

namespace wkv::gpu {

constexpr int CHECKPOINT = 64;  // steps between two saved states
constexpr int FORWARD_STEPS = 16;
constexpr int BACKWARD_STEPS = 8;  // all the registers hold

struct bf16 {
    uint16_t bits;
};

struct fp16 {
    uint16_t bits;
};

struct Scalar {
    using F = float;
    static WKV_INLINE float exp(float x) {
#ifdef __CUDA_ARCH__
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
        return y;
#else
        return __builtin_expf(x);
#endif
    }
    static WKV_INLINE float reciprocal(float x) {
#ifdef __CUDA_ARCH__
        float y;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
#else
        return 1.0f / x;
#endif
    }
};

WKV_INLINE float widen(float x) { return x; }
WKV_INLINE void narrow(float& to, float x) { to = x; }

// The bits of a float rounded to bfloat16, to nearest and even; NaN where `number` is false.
WKV_INLINE uint16_t rounded(uint32_t bits, bool number) {
    return number ? static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : uint16_t{0x7fc0};
}

#ifdef __CUDA_ARCH__
WKV_INLINE float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
WKV_INLINE float widen(fp16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
#if __CUDA_ARCH__ >= 800
WKV_INLINE void narrow(bf16& to, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#else
WKV_INLINE void narrow(bf16& to, float x) { to.bits = rounded(__float_as_uint(x), x == x); }
#endif
WKV_INLINE void narrow(fp16& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#else
WKV_INLINE float widen(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    __builtin_memcpy(&y, &bits, sizeof(y));
    return y;
}
WKV_INLINE void narrow(bf16& to, float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    to.bits = rounded(bits, x == x);
}
#endif

// A number that waits in a register for its tile: as wide as the register, which spares moving halves about.
template <class Number>
struct Held {
    uint32_t bits;
};

template <>
struct Held<float> {
    float x;
};

template <class Number>
WKV_INLINE Held<Number> hold(Number x) {
    return {x.bits};
}
template <class Number>
WKV_INLINE float widen(Held<Number> x) {
    return widen(Number{static_cast<uint16_t>(x.bits)});
}
WKV_INLINE float widen(Held<float> x) { return x.x; }
WKV_INLINE Held<float> hold(float x) { return {x}; }

// k, v, gy and their kind [B,T,C]; w, u [C]; -infinity and infinity for no den_eps and no k_max.
template <class Number>
struct Inputs {
    int T, C;
    int segments, length;  // of time, as in Layout
    const float *w, *u;
    const Number *k, *v;
    float log_eps, k_max;
};

// One thread's place: its channel, and its sub-chunk of the tile.
template <int W, int STEPS>
struct Place {
    static constexpr int SUBCHUNKS = THREADS / W;
    static constexpr int TILE = SUBCHUNKS * STEPS;
    int n, segment, first, end;  // sequence, segment and the steps of it
    int64_t row;                 // of an array [B,segments,...]
    int c, sub;                  // channel, sub-chunk
    bool inside;                 // the channel exists

    template <class Number>
    WKV_DEVICE Place(const Inputs<Number>& in) {
        const int groups = (in.C + W - 1) / W;
        row = blockIdx.x / groups;
        n = blockIdx.x / groups / in.segments;
        segment = blockIdx.x / groups % in.segments;
        first = segment * in.length;
        end = in.T - first > in.length ? first + in.length : in.T;
        c = blockIdx.x % groups * W + threadIdx.x % W;
        sub = threadIdx.x / W;
        inside = c < in.C;
    }
    // where this channel of the sequence begins
    template <class Number>
    WKV_DEVICE int64_t sequence(const Inputs<Number>& in) const {
        return static_cast<int64_t>(n) * in.T * in.C + c;
    }
    // steps of the sub-chunk that begins at `start`
    WKV_DEVICE int steps(int start) const {
        const int left = end - start;
        return !inside || left <= 0 ? 0 : left < STEPS ? left : STEPS;
    }
};

// Sums in an array [...,3,C].
WKV_DEVICE Sums<float> load(const float* from, int64_t C) { return {from[0], from[C], from[2 * C]}; }
WKV_DEVICE void save(float* to, const Sums<float>& s, int64_t C) { to[0] = s.a, to[C] = s.b, to[2 * C] = s.p; }

// Where the thread of sub-chunk `sub` that has this thread's channel keeps its numbers.
template <int W>
WKV_DEVICE int entry(int sub) {
    return sub * W + threadIdx.x % W;
}

// Three numbers per thread, where threads read those of others.
struct Board {
    float a[THREADS], b[THREADS], scale[THREADS];

    WKV_DEVICE void put(int at, float x, float y, float z) { a[at] = x, b[at] = y, scale[at] = z; }
};

// The weighted sum of (a, b), of scale `scale` as it has decayed on its way here, and of `count` sub-chunks from the
// neighbour of `sub` in `direction` on, each farther by a log-decay `span` than the one before.
template <int W>
WKV_DEVICE Sums<float> combine(float a, float b, float scale, const Board& board, int sub, int count, int direction,
                               float span) {
    const int nearest = entry<W>(sub + direction), step = direction * W;
    float highest = scale, gap = 0.0f;
#pragma unroll 2
    for (int i = 0, at = nearest; i < count; ++i, at += step, gap += span)
        highest = larger(highest, board.scale[at] + gap);
    const float own = Scalar::exp(scale - highest);
    Sums<float> sum = {a * own, b * own, highest};
    gap = -highest;
#pragma unroll 2
    for (int i = 0, at = nearest; i < count; ++i, at += step, gap += span) {
        const float weight = Scalar::exp(board.scale[at] + gap);
        sum.a += board.a[at] * weight;
        sum.b += board.b[at] * weight;
    }
    return sum;
}

template <class Number, int STEPS>
WKV_DEVICE void fetch(Held<Number> (&to)[STEPS], const Number* from, int C) {
#pragma unroll
    for (int t = 0; t < STEPS; ++t) to[t] = hold(from[static_cast<int64_t>(t) * C]);
}

// A sub-chunk in registers: e = e^{k-m} in the scale of its largest key, and the sums over it alone in that scale. None
// of it holds where a key is cut off or the keys spread beyond GUARD.
template <int STEPS>
struct Chunk {
    float e[STEPS], v[STEPS];
    float highest, lowest;
    Sums<float> sums;

    WKV_DEVICE bool holds(float k_max) const { return highest <= k_max && highest - lowest <= GUARD; }
};

template <class Number>
WKV_DEVICE float key(const Number* k, float k_max) {
    return smaller(k_max, widen(*k));
}

template <class Number, int STEPS>
WKV_DEVICE void summarise(Chunk<STEPS>& chunk, const Held<Number> (&k)[STEPS], const Held<Number> (&v)[STEPS],
                          float decay) {
    chunk.highest = chunk.lowest = widen(k[0]);
#pragma unroll
    for (int t = 0; t < STEPS; ++t) {
        chunk.e[t] = widen(k[t]);
        chunk.v[t] = widen(v[t]);
        chunk.highest = larger(chunk.highest, chunk.e[t]);
        chunk.lowest = smaller(chunk.lowest, chunk.e[t]);
    }
    float a = 0.0f, b = 0.0f;
#pragma unroll
    for (int t = 0; t < STEPS; ++t) {
        chunk.e[t] = Scalar::exp(chunk.e[t] - chunk.highest);
        tile_advance(a, b, decay, chunk.e[t], chunk.e[t] * chunk.v[t]);
    }
    chunk.sums = {a, b, chunk.highest};
}

// The same sums in the scale that the recurrence of RWKV-4 would give them: the largest key as it has decayed by the
// end.
template <class Number, int STEPS>
WKV_DEVICE Sums<float> as_recurrence(const Sums<float>& sums, const Held<Number> (&k)[STEPS], float w) {
    float p = NO_HISTORY;
#pragma unroll
    for (int t = 0; t < STEPS; ++t) p = larger(p + w, widen(k[t]));
    const float out = Scalar::exp(sums.p - p);
    return {sums.a * out, sums.b * out, p};
}

template <class Number>
WKV_DEVICE Sums<float> walk(Sums<float> s, const Number* k, const Number* v, int C, int steps, float w, float k_max) {
#pragma unroll 1
    for (int t = 0; t < steps; ++t, k += C, v += C) s = exact_advance<Scalar>(s, w, key(k, k_max), widen(*v));
    return s;
}

}  // namespace wkv::gpu
