// The WKV scan on the CPU: one task per sequence and block of channels, walking time in tiles that stay in the L1 cache.
#include "wkv_cpu.h"

#include <vector>

#include "wkv_math.h"

namespace wkv {
namespace {

constexpr int VECTORS = 2;

template <class M>
constexpr int WIDTH = VECTORS * M::LANES;

template <class M>
using Row = typename M::F[VECTORS];

template <class M>
using Tile = Row<M>[CPU_TILE];

template <class M>
using BlockSums = Sums<typename M::F>[VECTORS];

// A row of `width` channels, the rest zero.
template <class M, class Number>
LANES_INLINE void read_row(typename M::F* to, const Number* from, int width) {
    if (width == WIDTH<M>) {
        for (int j = 0; j < VECTORS; ++j) to[j] = load(from + j * M::LANES);
        return;
    }
    typename M::Scalar padded[WIDTH<M>] = {};
    for (int c = 0; c < width; ++c) padded[c] = widen(from[c]);
    for (int j = 0; j < VECTORS; ++j) to[j] = load(padded + j * M::LANES);
}

template <class M, class Number>
LANES_INLINE void write_row(Number* to, const typename M::F* from, int width) {
    if (width == WIDTH<M>) {
        for (int j = 0; j < VECTORS; ++j) store(to + j * M::LANES, from[j]);
        return;
    }
    Number padded[WIDTH<M>];
    for (int j = 0; j < VECTORS; ++j) store(padded + j * M::LANES, from[j]);
    for (int c = 0; c < width; ++c) to[c] = padded[c];
}

template <class M>
LANES_INLINE bool any_above(const typename M::F* row, typename M::Scalar limit) {
    typename M::Scalar lanes[WIDTH<M>];
    std::memcpy(lanes, row, sizeof(lanes));
    bool found = false;
    for (int c = 0; c < WIDTH<M>; ++c) found |= lanes[c] > limit;
    return found;
}

// What a task keeps for its channels over the whole walk.
template <class M>
struct Channels {
    using F = typename M::F;
    Row<M> w, u, decay, bonus;
    F log_eps, k_max;
    int width;

    template <class Number>
    void read(const Inputs<Number, typename M::Scalar>& in, int64_t c) {
        using Scalar = typename M::Scalar;
        width = static_cast<int>(in.C - c < WIDTH<M> ? in.C - c : WIDTH<M>);
        read_row<M>(w, in.w + c, width);
        read_row<M>(u, in.u + c, width);
        log_eps = F{} + static_cast<Scalar>(in.log_eps);
        k_max = F{} + static_cast<Scalar>(in.k_max);
        for (int j = 0; j < VECTORS; ++j) {
            decay[j] = M::exp(w[j]);
            bonus[j] = M::exp_bounded(u[j]);  // read only where |u| is below GUARD
        }
    }
};

// Keys and values of one tile, and what decides between a shared scale and exact steps.
template <class M>
struct Loaded {
    using F = typename M::F;
    Tile<M> k, v;
    Row<M> scale, last_p;  // m, and the running maximum p after the tile
    bool exact;

    template <class Number>
    LANES_INLINE void read(const Inputs<Number, typename M::Scalar>& in, int64_t offset, int steps, const Channels<M>& ch,
                           const BlockSums<M>& before) {
        Row<M> low;
        for (int j = 0; j < VECTORS; ++j) {
            scale[j] = larger(before[j].p, ch.log_eps);
            last_p[j] = before[j].p;
            low[j] = ch.k_max;
        }
        for (int t = 0; t < steps; ++t) {
            read_row<M>(k[t], in.k + offset + t * in.C, ch.width);
            read_row<M>(v[t], in.v + offset + t * in.C, ch.width);
            for (int j = 0; j < VECTORS; ++j) {
                k[t][j] = k[t][j] > ch.k_max ? ch.k_max : k[t][j];
                scale[j] = larger(scale[j], k[t][j]);
                low[j] = k[t][j] < low[j] ? k[t][j] : low[j];
                last_p[j] = larger(last_p[j] + ch.w[j], k[t][j]);
            }
        }
        Row<M> spread;
        for (int j = 0; j < VECTORS; ++j) spread[j] = scale[j] - low[j] + larger(ch.u[j], -ch.u[j]);
        exact = any_above<M>(spread, GUARD);
    }
};

template <class M>
LANES_INLINE void read_sums(BlockSums<M>& s, const typename M::Scalar* from, int64_t C, int width) {
    Row<M> rows[3];
    for (int i = 0; i < 3; ++i) read_row<M>(rows[i], from + i * C, width);
    for (int j = 0; j < VECTORS; ++j) s[j] = {rows[0][j], rows[1][j], rows[2][j]};
}

template <class M>
LANES_INLINE void write_sums(typename M::Scalar* to, const BlockSums<M>& s, int64_t C, int width) {
    Row<M> rows[3];
    for (int j = 0; j < VECTORS; ++j) rows[0][j] = s[j].a, rows[1][j] = s[j].b, rows[2][j] = s[j].p;
    for (int i = 0; i < 3; ++i) write_row<M>(to + i * C, rows[i], width);
}

template <class M>
LANES_INLINE void no_history(BlockSums<M>& s) {
    using F = typename M::F;
    for (int j = 0; j < VECTORS; ++j) s[j] = {F{}, F{}, F{} + NO_HISTORY};
}

// Both forward passes leave y in the place of v.
template <class M>
LANES_INLINE void forward_exact(BlockSums<M>& s, Loaded<M>& tile, int steps, const Channels<M>& ch) {
    for (int t = 0; t < steps; ++t)
        for (int j = 0; j < VECTORS; ++j) {
            const auto k = tile.k[t][j], v = tile.v[t][j];
            tile.v[t][j] = exact_output<M>(s[j], ch.u[j], k, v, ch.log_eps).y;
            s[j] = exact_advance<M>(s[j], ch.w[j], k, v);
        }
}

template <class M>
LANES_INLINE void forward_tile(BlockSums<M>& s, Loaded<M>& tile, int steps, const Channels<M>& ch) {
    using F = typename M::F;
    for (int t = 0; t < steps; ++t)
        for (int j = 0; j < VECTORS; ++j) tile.k[t][j] = M::exp_bounded(tile.k[t][j] - tile.scale[j]);
    for (int j = 0; j < VECTORS; ++j) {
        const F into = M::exp(s[j].p - tile.scale[j]), eps = M::exp(ch.log_eps - tile.scale[j]);
        F a = s[j].a * into, b = s[j].b * into;
        for (int t = 0; t < steps; ++t) {
            const F e = tile.k[t][j], ev = e * tile.v[t][j];
            tile.v[t][j] = (ch.bonus[j] * ev + a) / tile_denominator(b, ch.bonus[j], e, eps);
            tile_advance(a, b, ch.decay[j], e, ev);
        }
        const F out = M::exp_bounded(tile.scale[j] - tile.last_p[j]);
        s[j] = {a * out, b * out, tile.last_p[j]};
    }
}

template <class M>
struct BlockGrad {
    BlockSums<M> sums;
    Row<M> w, u;
};

// Both leave gk and gv in the place of k and v.
template <class M>
LANES_INLINE void backward_exact(BlockGrad<M>& g, BlockSums<M>& s, Loaded<M>& tile, const Tile<M>& gy, int steps,
                                 const Channels<M>& ch) {
    BlockSums<M> before[CPU_TILE];
    for (int t = 0; t < steps; ++t)
        for (int j = 0; j < VECTORS; ++j) {
            before[t][j] = s[j];
            s[j] = exact_advance<M>(s[j], ch.w[j], tile.k[t][j], tile.v[t][j]);
        }
    for (int t = steps - 1; t >= 0; --t)
        for (int j = 0; j < VECTORS; ++j) {
            const auto step = exact_backward<M>(g.sums[j], before[t][j], ch.w[j], ch.u[j], tile.k[t][j], tile.v[t][j],
                                                gy[t][j], ch.log_eps);
            tile.k[t][j] = step.k, tile.v[t][j] = step.v;
            g.u[j] += step.bonus, g.w[j] += step.decay;
        }
}

template <class M>
LANES_INLINE void backward_tile(BlockGrad<M>& g, BlockSums<M>& s, Loaded<M>& tile, const Tile<M>& gy, int steps,
                                const Channels<M>& ch) {
    using F = typename M::F;
    F as[CPU_TILE], bs[CPU_TILE], ys[CPU_TILE], scaled[CPU_TILE];
    for (int t = 0; t < steps; ++t)
        for (int j = 0; j < VECTORS; ++j) tile.k[t][j] = M::exp_bounded(tile.k[t][j] - tile.scale[j]);
    for (int j = 0; j < VECTORS; ++j) {
        const F m = tile.scale[j], into = M::exp(s[j].p - m), eps = M::exp(ch.log_eps - m);
        F a = s[j].a * into, b = s[j].b * into;
        for (int t = 0; t < steps; ++t) {
            const F e = tile.k[t][j], ev = e * tile.v[t][j];
            as[t] = a, bs[t] = b;
            const F inverse = M::reciprocal(tile_denominator(b, ch.bonus[j], e, eps));
            ys[t] = (ch.bonus[j] * ev + a) * inverse;
            scaled[t] = gy[t][j] * inverse;
            tile_advance(a, b, ch.decay[j], e, ev);
        }
        // at most e^GUARD: the gradient's scale is at most -p of the tile's end, and that p is at least the last key
        const F lift = M::exp(g.sums[j].p + m);
        F ga = g.sums[j].a * lift, gb = g.sums[j].b * lift, gw = F{}, gu = F{};
        for (int t = steps - 1; t >= 0; --t) {
            const F e = tile.k[t][j], now = ch.bonus[j] * e;
            gw += ga * as[t] + gb * bs[t];
            const auto step = tile_backward(ga, gb, ch.decay[j], e, now, tile.v[t][j], ys[t], scaled[t]);
            tile.k[t][j] = step.k, tile.v[t][j] = step.v;
            gu += step.bonus;
        }
        g.sums[j] = {ga, gb, -m};
        g.w[j] += gw * ch.decay[j], g.u[j] += gu;
    }
}

// Calls walk(n, c, blocks) for runs of neighbouring blocks of channels of one sequence, so that a run reads whole rows.
template <class M, class Walk>
void for_each_run(int64_t B, int64_t C, Parallel parallel, Walk walk) {
    struct Work {
        Walk walk;
        int64_t blocks;
    } work = {walk, (C + WIDTH<M> - 1) / WIDTH<M>};
    parallel(
        B * work.blocks,
        [](int64_t begin, int64_t end, void* context) {
            Work& work = *static_cast<Work*>(context);
            while (begin < end) {
                const int64_t n = begin / work.blocks, first = begin % work.blocks;
                const int64_t count = end - begin < work.blocks - first ? end - begin : work.blocks - first;
                work.walk(n, first * WIDTH<M>, count);
                begin += count;
            }
        },
        &work);
}

LANES_INLINE int steps_of(int64_t T, int64_t start) { return static_cast<int>(T - start < CPU_TILE ? T - start : CPU_TILE); }

}  // namespace

template <class Number, class Sum>
void forward(const Inputs<Number, Sum>& in, const Sum* state, Number* y, Sum* state_out, Sum* checkpoints,
             Parallel parallel) {
    using M = MathOf<Sum>;
    struct Block {
        Channels<M> ch;
        BlockSums<M> s;
    };
    const int64_t tiles = (in.T + CPU_TILE - 1) / CPU_TILE, rows = tiles + 1;
    for_each_run<M>(in.B, in.C, parallel, [=](int64_t n, int64_t first, int64_t count) {
        std::vector<Block> blocks(count);
        for (int64_t i = 0; i < count; ++i) {
            Block& block = blocks[i];
            const int64_t c = first + i * WIDTH<M>;
            block.ch.read(in, c);
            no_history<M>(block.s);
            if (state) read_sums<M>(block.s, state + n * 3 * in.C + c, in.C, block.ch.width);
        }
        Loaded<M> tile;
        for (int64_t start = 0; start < in.T; start += CPU_TILE) {
            const int steps = steps_of(in.T, start);
            for (int64_t i = 0; i < count; ++i) {
                auto& [ch, s] = blocks[i];
                const int64_t c = first + i * WIDTH<M>, offset = (n * in.T + start) * in.C + c;
                if (checkpoints)
                    write_sums<M>(checkpoints + (n * rows + start / CPU_TILE) * 3 * in.C + c, s, in.C, ch.width);
                tile.read(in, offset, steps, ch, s);
                if (tile.exact)
                    forward_exact<M>(s, tile, steps, ch);
                else
                    forward_tile<M>(s, tile, steps, ch);
                for (int t = 0; t < steps; ++t) write_row<M>(y + offset + t * in.C, tile.v[t], ch.width);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            auto& [ch, s] = blocks[i];
            const int64_t c = first + i * WIDTH<M>;
            write_sums<M>(state_out + n * 3 * in.C + c, s, in.C, ch.width);
            if (checkpoints) write_sums<M>(checkpoints + ((n + 1) * rows - 1) * 3 * in.C + c, s, in.C, ch.width);
        }
    });
}

template <class Number, class Sum>
void backward(const Inputs<Number, Sum>& in, const Sum* checkpoints, const Number* gy, const Sum* gstate, Sum* gw, Sum* gu,
              Number* gk, Number* gv, Sum* gstate_in, Parallel parallel) {
    using M = MathOf<Sum>;
    using F = typename M::F;
    struct Block {
        Channels<M> ch;
        BlockSums<M> s;
        BlockGrad<M> g;
    };
    const int64_t tiles = (in.T + CPU_TILE - 1) / CPU_TILE, rows = tiles + 1;
    for_each_run<M>(in.B, in.C, parallel, [=](int64_t n, int64_t first, int64_t count) {
        std::vector<Block> blocks(count);
        for (int64_t i = 0; i < count; ++i) {
            auto& [ch, s, g] = blocks[i];
            const int64_t c = first + i * WIDTH<M>;
            ch.read(in, c);
            read_sums<M>(s, checkpoints + ((n + 1) * rows - 1) * 3 * in.C + c, in.C, ch.width);
            g = {};
            if (gstate) read_sums<M>(g.sums, gstate + n * 3 * in.C + c, in.C, ch.width);
            for (int j = 0; j < VECTORS; ++j) g.sums[j].p = -s[j].p;
        }
        Loaded<M> tile;
        Tile<M> gys;
        for (int64_t start = (tiles - 1) * CPU_TILE; start >= 0; start -= CPU_TILE) {
            const int steps = steps_of(in.T, start);
            for (int64_t i = 0; i < count; ++i) {
                auto& [ch, s, g] = blocks[i];
                const int64_t c = first + i * WIDTH<M>, offset = (n * in.T + start) * in.C + c;
                read_sums<M>(s, checkpoints + (n * rows + start / CPU_TILE) * 3 * in.C + c, in.C, ch.width);
                tile.read(in, offset, steps, ch, s);
                for (int t = 0; t < steps; ++t) read_row<M>(gys[t], gy + offset + t * in.C, ch.width);
                if (tile.exact)
                    backward_exact<M>(g, s, tile, gys, steps, ch);
                else
                    backward_tile<M>(g, s, tile, gys, steps, ch);
                for (int t = 0; t < steps; ++t) {
                    Row<M> raw;
                    read_row<M>(raw, in.k + offset + t * in.C, ch.width);
                    for (int j = 0; j < VECTORS; ++j) tile.k[t][j] = raw[j] > ch.k_max ? F{} : tile.k[t][j];
                    write_row<M>(gk + offset + t * in.C, tile.k[t], ch.width);
                    write_row<M>(gv + offset + t * in.C, tile.v[t], ch.width);
                }
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            auto& [ch, s, g] = blocks[i];
            const int64_t c = first + i * WIDTH<M>;
            read_sums<M>(s, checkpoints + n * rows * 3 * in.C + c, in.C, ch.width);
            for (int j = 0; j < VECTORS; ++j) {
                const F lift = M::exp(g.sums[j].p + s[j].p), ga = g.sums[j].a * lift, gb = g.sums[j].b * lift;
                s[j] = {ga, gb, ga * s[j].a + gb * s[j].b};
            }
            write_sums<M>(gstate_in + n * 3 * in.C + c, s, in.C, ch.width);
            write_row<M>(gw + n * in.C + c, g.w, ch.width);
            write_row<M>(gu + n * in.C + c, g.u, ch.width);
        }
    });
}

#define INSTANTIATE(Number, Sum)                                                                                         \
    template void forward(const Inputs<Number, Sum>&, const Sum*, Number*, Sum*, Sum*, Parallel);                        \
    template void backward(const Inputs<Number, Sum>&, const Sum*, const Number*, const Sum*, Sum*, Sum*, Number*, Number*, \
                           Sum*, Parallel);
INSTANTIATE(float, float)
INSTANTIATE(bf16, float)
INSTANTIATE(double, double)
#undef INSTANTIATE

}  // namespace wkv
