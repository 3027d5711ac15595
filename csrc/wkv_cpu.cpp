// The WKV scan on the CPU: one task per sequence and vector of channels, walking time in tiles that stay in the L1
// cache.
#include "wkv_cpu.h"

#include <vector>

#include "wkv_math.h"

namespace wkv {
namespace {

constexpr int64_t AHEAD = 2;  // vectors

template <class M>
using Tile = typename M::F[CPU_TILE];

// One tile of a tensor [B,T,C] over a vector of channels, `stride` numbers from step to step; the walk comes to the
// numbers `ahead` of these soon.
template <class Number>
struct Column {
    Number* at;
    int64_t stride, ahead;

    LANES_INLINE auto operator[](int t) const { return load(at + t * stride); }
    template <class F>
    LANES_INLINE void put(int t, F x) const {
        store(at + t * stride, x);
    }
    // Rows lie too far apart for the processor to foresee which of their numbers come next.
    LANES_INLINE void fetch_ahead(int t) const {
        __builtin_prefetch(at + t * stride + ahead, !std::is_const_v<Number>);
    }
};

// Where the last vector reaches past the last channel, its columns are read from and written to copies that are wide
// enough.
template <class M, class Number>
struct Edge {
    Number numbers[CPU_TILE][M::LANES];

    LANES_INLINE Column<const Number> read(const Number* from, int64_t C, int64_t ahead, int steps, int width) {
        if (width == M::LANES) return {from, C, ahead};
        for (int t = 0; t < steps; ++t)
            for (int c = 0; c < M::LANES; ++c) numbers[t][c] = c < width ? from[t * C + c] : Number{};
        return {numbers[0], M::LANES, 0};
    }
    LANES_INLINE Column<Number> place(Number* to, int64_t C, int64_t ahead, int width) {
        return width == M::LANES ? Column<Number>{to, C, ahead} : Column<Number>{numbers[0], M::LANES, 0};
    }
    LANES_INLINE void write(Number* to, int64_t C, int steps, int width) const {
        if (width == M::LANES) return;
        for (int t = 0; t < steps; ++t)
            for (int c = 0; c < width; ++c) to[t * C + c] = numbers[t][c];
    }
};

template <class M>
LANES_INLINE typename M::F read_row(const typename M::Scalar* from, int width) {
    if (width == M::LANES) return load(from);
    typename M::Scalar padded[M::LANES] = {};
    for (int c = 0; c < width; ++c) padded[c] = from[c];
    return load(padded);
}

template <class M>
LANES_INLINE void write_row(typename M::Scalar* to, typename M::F row, int width) {
    if (width == M::LANES) return store(to, row);
    for (int c = 0; c < width; ++c) to[c] = row[c];
}

template <class M>
LANES_INLINE Sums<typename M::F> read_sums(const typename M::Scalar* from, int64_t C, int width) {
    return {read_row<M>(from, width), read_row<M>(from + C, width), read_row<M>(from + 2 * C, width)};
}

template <class M>
LANES_INLINE void write_sums(typename M::Scalar* to, const Sums<typename M::F>& s, int64_t C, int width) {
    write_row<M>(to, s.a, width);
    write_row<M>(to + C, s.b, width);
    write_row<M>(to + 2 * C, s.p, width);
}

// What a task keeps for its channels over the whole walk.
template <class M>
struct Channels {
    using F = typename M::F;
    F w, u, decay, bonus, log_eps, k_max;
    int width;

    template <class Number>
    void read(const Inputs<Number, typename M::Scalar>& in, int64_t c) {
        using Scalar = typename M::Scalar;
        width = static_cast<int>(in.C - c < M::LANES ? in.C - c : M::LANES);
        w = read_row<M>(in.w + c, width);
        u = read_row<M>(in.u + c, width);
        decay = M::exp(w);
        bonus = M::exp_bounded(u);  // read only where |u| is below GUARD
        log_eps = F{} + static_cast<Scalar>(in.log_eps);
        k_max = F{} + static_cast<Scalar>(in.k_max);
    }
};

// The keys of one tile, cut off at k_max, and what decides between a shared scale and exact steps.
template <class M>
struct Keys {
    using F = typename M::F;
    Tile<M> k;
    F scale, last_p;  // m, and the running maximum p after the tile
    bool exact;

    template <class Number>
    LANES_INLINE void read(Column<const Number> from, int steps, const Channels<M>& ch, F p) {
        const F w = ch.w, k_max = ch.k_max;
        F high = larger(p, ch.log_eps), low = k_max;
        for (int t = 0; t < steps; ++t) {
            F x = from[t];
            from.fetch_ahead(t);
            x = x > k_max ? k_max : x;
            k[t] = x;
            high = larger(high, x);
            low = x < low ? x : low;
            p = larger(p + w, x);
        }
        scale = high, last_p = p;
        exact = any_lane(high - low + larger(ch.u, -ch.u) > GUARD);
    }
};

template <class M, class Number>
LANES_INLINE void forward_exact(Sums<typename M::F>& s, const Keys<M>& keys, Column<const Number> v, Column<Number> y,
                                int steps, const Channels<M>& ch) {
    for (int t = 0; t < steps; ++t) {
        const auto now = v[t];
        y.put(t, exact_output<M>(s, ch.u, keys.k[t], now, ch.log_eps).y);
        s = exact_advance<M>(s, ch.w, keys.k[t], now);
    }
}

template <class M, class Number>
LANES_INLINE void forward_tile(Sums<typename M::F>& s, const Keys<M>& keys, Column<const Number> v, Column<Number> y,
                               int steps, const Channels<M>& ch) {
    using F = typename M::F;
    const F decay = ch.decay, bonus = ch.bonus, m = keys.scale, into = M::exp(s.p - m), eps = M::exp(ch.log_eps - m);
    F a = s.a * into, b = s.b * into;
    for (int t = 0; t < steps; ++t) {
        const F e = M::exp_bounded(keys.k[t] - m), ev = e * v[t];
        v.fetch_ahead(t), y.fetch_ahead(t);
        y.put(t, (bonus * ev + a) / tile_denominator(b, bonus, e, eps));
        tile_advance(a, b, decay, e, ev);
    }
    const F out = M::exp_bounded(m - keys.last_p);
    s = {a * out, b * out, keys.last_p};
}

// Gradients of the sums after the present step, and of w and u over all steps from there on.
template <class M>
struct Gradient {
    Sums<typename M::F> sums;
    typename M::F w, u;
};

template <class M, class Number>
struct BackwardTile {
    Column<const Number> k, v, gy;
    Column<Number> gk, gv;
    int steps;
};

template <class M, class Number>
LANES_INLINE void put_gradients(const BackwardTile<M, Number>& tile, int t, const StepGrad<typename M::F>& step,
                                typename M::F k_max) {
    tile.gk.put(t, tile.k[t] > k_max ? typename M::F{} : step.k);
    tile.gv.put(t, step.v);
}

template <class M, class Number>
LANES_INLINE void backward_exact(Gradient<M>& g, Sums<typename M::F> s, const Keys<M>& keys,
                                 const BackwardTile<M, Number>& tile, const Channels<M>& ch) {
    Sums<typename M::F> before[CPU_TILE];
    for (int t = 0; t < tile.steps; ++t) {
        before[t] = s;
        s = exact_advance<M>(s, ch.w, keys.k[t], tile.v[t]);
    }
    for (int t = tile.steps - 1; t >= 0; --t) {
        const auto step =
            exact_backward<M>(g.sums, before[t], ch.w, ch.u, keys.k[t], tile.v[t], tile.gy[t], ch.log_eps);
        put_gradients(tile, t, step, ch.k_max);
        g.u += step.bonus, g.w += step.decay;
    }
}

template <class M, class Number>
LANES_INLINE void backward_tile(Gradient<M>& g, const Sums<typename M::F>& s, const Keys<M>& keys,
                                const BackwardTile<M, Number>& tile, const Channels<M>& ch) {
    using F = typename M::F;
    Tile<M> es, as, bs, ys, scaled;
    const F decay = ch.decay, bonus = ch.bonus, k_max = ch.k_max, m = keys.scale;
    const F into = M::exp(s.p - m), eps = M::exp(ch.log_eps - m);
    F a = s.a * into, b = s.b * into;
    for (int t = 0; t < tile.steps; ++t) {
        const F e = M::exp_bounded(keys.k[t] - m), ev = e * tile.v[t];
        tile.v.fetch_ahead(t), tile.gy.fetch_ahead(t), tile.gk.fetch_ahead(t), tile.gv.fetch_ahead(t);
        const F inverse = M::reciprocal(tile_denominator(b, bonus, e, eps));
        es[t] = e, as[t] = a, bs[t] = b;
        ys[t] = (bonus * ev + a) * inverse;
        scaled[t] = tile.gy[t] * inverse;
        tile_advance(a, b, decay, e, ev);
    }
    // at most e^GUARD: the gradient's scale is at most -p of the tile's end, and that p is at least the last key
    const F lift = M::exp(g.sums.p + m);
    F ga = g.sums.a * lift, gb = g.sums.b * lift, gw = F{}, gu = F{};
    for (int t = tile.steps - 1; t >= 0; --t) {
        gw += ga * as[t] + gb * bs[t];
        const auto step = tile_backward(ga, gb, decay, es[t], bonus * es[t], tile.v[t], ys[t], scaled[t]);
        put_gradients(tile, t, step, k_max);
        gu += step.bonus;
    }
    g = {{ga, gb, -m}, g.w + gw * decay, g.u + gu};
}

// Calls walk(n, c, count) for runs of neighbouring vectors of channels of one sequence, so that a run reads whole rows.
template <class M, class Walk>
void for_each_run(int64_t B, int64_t C, Parallel parallel, Walk walk) {
    struct Work {
        Walk walk;
        int64_t vectors;
    } work = {walk, (C + M::LANES - 1) / M::LANES};
    parallel(
        B * work.vectors,
        [](int64_t begin, int64_t end, void* context) {
            Work& work = *static_cast<Work*>(context);
            while (begin < end) {
                const int64_t n = begin / work.vectors, first = begin % work.vectors;
                const int64_t count = end - begin < work.vectors - first ? end - begin : work.vectors - first;
                work.walk(n, first * M::LANES, count);
                begin += count;
            }
        },
        &work);
}

LANES_INLINE int steps_of(int64_t T, int64_t start) {
    return static_cast<int>(T - start < CPU_TILE ? T - start : CPU_TILE);
}

}  // namespace

template <class Number, class Sum>
void forward(const Inputs<Number, Sum>& in, const Sum* state, Number* y, Sum* state_out, Sum* checkpoints,
             Parallel parallel) {
    using M = MathOf<Sum>;
    struct Walker {
        Channels<M> ch;
        Sums<typename M::F> s;
    };
    const int64_t C = in.C, tiles = (in.T + CPU_TILE - 1) / CPU_TILE, rows = tiles + 1;
    for_each_run<M>(in.B, C, parallel, [=](int64_t n, int64_t first, int64_t count) {
        std::vector<Walker> walkers(count);
        for (int64_t i = 0; i < count; ++i) {
            auto& [ch, s] = walkers[i];
            const int64_t c = first + i * M::LANES;
            ch.read(in, c);
            s.p += NO_HISTORY;
            if (state) s = read_sums<M>(state + n * 3 * C + c, C, ch.width);
        }
        Edge<M, Number> k_edge, v_edge, y_edge;
        Keys<M> keys;
        for (int64_t start = 0; start < in.T; start += CPU_TILE) {
            const int steps = steps_of(in.T, start);
            for (int64_t i = 0; i < count; ++i) {
                auto& [ch, s] = walkers[i];
                const int64_t c = first + i * M::LANES, offset = (n * in.T + start) * C + c;
                // past the end of the row comes the next tile
                const int64_t ahead = i + AHEAD < count ? AHEAD * M::LANES : CPU_TILE * C + (AHEAD - count) * M::LANES;
                if (checkpoints) write_sums<M>(checkpoints + (n * rows + start / CPU_TILE) * 3 * C + c, s, C, ch.width);
                keys.read(k_edge.read(in.k + offset, C, ahead, steps, ch.width), steps, ch, s.p);
                const auto v = v_edge.read(in.v + offset, C, ahead, steps, ch.width);
                const auto to = y_edge.place(y + offset, C, ahead, ch.width);
                if (keys.exact)
                    forward_exact(s, keys, v, to, steps, ch);
                else
                    forward_tile(s, keys, v, to, steps, ch);
                y_edge.write(y + offset, C, steps, ch.width);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            const auto& [ch, s] = walkers[i];
            const int64_t c = first + i * M::LANES;
            write_sums<M>(state_out + n * 3 * C + c, s, C, ch.width);
            if (checkpoints) write_sums<M>(checkpoints + ((n + 1) * rows - 1) * 3 * C + c, s, C, ch.width);
        }
    });
}

template <class Number, class Sum>
void backward(const Inputs<Number, Sum>& in, const Sum* checkpoints, const Number* gy, const Sum* gstate, Sum* gw,
              Sum* gu, Number* gk, Number* gv, Sum* gstate_in, Parallel parallel) {
    using M = MathOf<Sum>;
    using F = typename M::F;
    struct Walker {
        Channels<M> ch;
        Gradient<M> g;
    };
    const int64_t C = in.C, tiles = (in.T + CPU_TILE - 1) / CPU_TILE, rows = tiles + 1;
    for_each_run<M>(in.B, C, parallel, [=](int64_t n, int64_t first, int64_t count) {
        const auto saved = [=](int64_t row, int64_t c, int width) {
            return read_sums<M>(checkpoints + (n * rows + row) * 3 * C + c, C, width);
        };
        std::vector<Walker> walkers(count);
        for (int64_t i = 0; i < count; ++i) {
            auto& [ch, g] = walkers[i];
            const int64_t c = first + i * M::LANES;
            ch.read(in, c);
            if (gstate) g.sums = read_sums<M>(gstate + n * 3 * C + c, C, ch.width);
            g.sums.p = -saved(rows - 1, c, ch.width).p;
        }
        Edge<M, Number> k_edge, v_edge, gy_edge, gk_edge, gv_edge;
        Keys<M> keys;
        for (int64_t start = (tiles - 1) * CPU_TILE; start >= 0; start -= CPU_TILE) {
            const int steps = steps_of(in.T, start);
            for (int64_t i = 0; i < count; ++i) {
                auto& [ch, g] = walkers[i];
                const int64_t c = first + i * M::LANES, offset = (n * in.T + start) * C + c;
                constexpr int64_t ahead = AHEAD * M::LANES;
                const BackwardTile<M, Number> tile = {k_edge.read(in.k + offset, C, ahead, steps, ch.width),
                                                      v_edge.read(in.v + offset, C, ahead, steps, ch.width),
                                                      gy_edge.read(gy + offset, C, ahead, steps, ch.width),
                                                      gk_edge.place(gk + offset, C, ahead, ch.width),
                                                      gv_edge.place(gv + offset, C, ahead, ch.width),
                                                      steps};
                const Sums<F> s = saved(start / CPU_TILE, c, ch.width);
                keys.read(tile.k, steps, ch, s.p);
                if (keys.exact)
                    backward_exact(g, s, keys, tile, ch);
                else
                    backward_tile(g, s, keys, tile, ch);
                gk_edge.write(gk + offset, C, steps, ch.width);
                gv_edge.write(gv + offset, C, steps, ch.width);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            const auto& [ch, g] = walkers[i];
            const int64_t c = first + i * M::LANES;
            const Sums<F> s = saved(0, c, ch.width);
            const F lift = M::exp(g.sums.p + s.p), ga = g.sums.a * lift, gb = g.sums.b * lift;
            write_sums<M>(gstate_in + n * 3 * C + c, {ga, gb, ga * s.a + gb * s.b}, C, ch.width);
            write_row<M>(gw + n * C + c, g.w, ch.width);
            write_row<M>(gu + n * C + c, g.u, ch.width);
        }
    });
}

#define INSTANTIATE(Number, Sum)                                                                                   \
    template void forward(const Inputs<Number, Sum>&, const Sum*, Number*, Sum*, Sum*, Parallel);                  \
    template void backward(const Inputs<Number, Sum>&, const Sum*, const Number*, const Sum*, Sum*, Sum*, Number*, \
                           Number*, Sum*, Parallel);
INSTANTIATE(float, float)
INSTANTIATE(bf16, float)
INSTANTIATE(double, double)
#undef INSTANTIATE

}  // namespace wkv
