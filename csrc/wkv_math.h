// The arithmetic of one step of the WKV scan, shared by the CPU and the CUDA kernels and free of torch.
//
// M supplies the number type M::F (a scalar on the GPU, a vector of lanes on the CPU), M::exp and M::reciprocal.
// Letters follow the formula: w log-decay, u bonus, k key, v value, (a, b) the sums before the current token divided by
// e^p. "Exact" steps keep a scale per step (log-sum-exp, Peng et al. 2023); "tile" steps share the scale m of a whole
// tile and need one exponential e = e^{k-m} per element, which holds while no key is more than GUARD below m.
#pragma once

#ifdef __CUDACC__
#define WKV_INLINE __host__ __device__ __forceinline__
#else
#define WKV_INLINE inline __attribute__((always_inline))
#endif

namespace wkv {

constexpr float NO_HISTORY = -1e30f;
constexpr float GUARD = 60.0f;

// The sums (a, b) divided by e^p; or the gradient with respect to the undivided sums, divided by e^p with a p of its
// own.
template <class F>
struct Sums {
    F a, b, p;
};

// The larger and the smaller of two; NaN if y is, on the GPU also if x is.
template <class F>
WKV_INLINE F larger(F x, F y) {
    return x > y ? x : y;
}

template <class F>
WKV_INLINE F smaller(F x, F y) {
    return x < y ? x : y;
}

#ifdef __CUDA_ARCH__
template <>
WKV_INLINE float larger(float x, float y) {
    float z;
#if __CUDA_ARCH__ >= 800
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
#else
    z = x != x || y != y ? x + y : x > y ? x : y;
#endif
    return z;
}

template <>
WKV_INLINE float smaller(float x, float y) {
    float z;
#if __CUDA_ARCH__ >= 800
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
#else
    z = x != x || y != y ? x + y : x < y ? x : y;
#endif
    return z;
}
#endif

template <class F>
struct Output {
    F y, inverse, present, q;  // inverse = 1 / (D e^-q), present = e^{u+k-q}
};

template <class M, class F = typename M::F>
WKV_INLINE Output<F> exact_output(const Sums<F>& s, F u, F k, F v, F log_eps) {
    const F now = u + k;
    const F q = larger(larger(s.p, now), log_eps);
    const F past = M::exp(s.p - q), present = M::exp(now - q);
    const F inverse = M::reciprocal(past * s.b + present + M::exp(log_eps - q));
    return {(past * s.a + present * v) * inverse, inverse, present, q};
}

template <class M, class F = typename M::F>
WKV_INLINE Sums<F> exact_advance(const Sums<F>& s, F w, F k, F v) {
    const F decayed = s.p + w;
    const F q = larger(decayed, k);
    const F past = M::exp(decayed - q), present = M::exp(k - q);
    return {past * s.a + present * v, past * s.b + present, q};
}

// The sums after a span of log-decay `span` whose own sums, from nothing, are `late`.
template <class M, class F = typename M::F>
WKV_INLINE Sums<F> join(const Sums<F>& early, F span, const Sums<F>& late) {
    const F decayed = early.p + span;
    const F q = larger(decayed, late.p);
    const F past = M::exp(decayed - q), present = M::exp(late.p - q);
    return {past * early.a + present * late.a, past * early.b + present * late.b, q};
}

template <class F>
struct StepGrad {
    F k, v, bonus, decay;  // contributions to gk, gv, gu and gw
};

// Gradients of one step, given the sums before it and the gradient `g` of the sums after it, which becomes that before
// it.
template <class M, class F = typename M::F>
WKV_INLINE StepGrad<F> exact_backward(Sums<F>& g, const Sums<F>& s, F w, F u, F k, F v, F gy, F log_eps) {
    const Output<F> out = exact_output<M>(s, u, k, v, log_eps);
    const F scaled = gy * out.inverse;
    const F direct = out.present * scaled, through = M::exp(k + g.p);
    const F bonus = direct * (v - out.y);
    const F kept = M::exp(s.p + w + g.p);
    const StepGrad<F> step = {bonus + through * (g.a * v + g.b), direct + through * g.a, bonus,
                              kept * (g.a * s.a + g.b * s.b)};
    const F decayed = w + g.p;
    const F p = larger(decayed, -out.q);
    const F old = M::exp(decayed - p), fresh = M::exp(-out.q - p) * scaled;
    g = {old * g.a + fresh, old * g.b - fresh * out.y, p};
    return step;
}

// The tile's counterparts: e = e^{k-m}, ev = e v, bonus = e^u, decay = e^w, eps = den_eps e^-m; a and b in the scale of
// m.
template <class F>
WKV_INLINE F tile_denominator(F b, F bonus, F e, F eps) {
    return (bonus * e + b) + eps;
}

template <class F>
WKV_INLINE void tile_advance(F& a, F& b, F decay, F e, F ev) {
    a = decay * a + ev;
    b = decay * b + e;
}

// ga, gb: gradient of the sums after the step, then before it; scaled = gy / D, in the scale of m.
template <class F>
WKV_INLINE void tile_retreat(F& ga, F& gb, F decay, F scaled, F y) {
    ga = decay * ga + scaled;
    gb = decay * gb - scaled * y;
}

// As tile_retreat, and the contributions of the step; that to gw is left to the caller: decay (ga a + gb b), ga and gb
// as given.
template <class F>
WKV_INLINE StepGrad<F> tile_backward(F& ga, F& gb, F decay, F e, F now, F v, F y, F scaled) {
    const F direct = now * scaled;
    const F bonus = direct * (v - y);
    const StepGrad<F> step = {bonus + e * (ga * v + gb), direct + e * ga, bonus, F{}};
    tile_retreat(ga, gb, decay, scaled, y);
    return step;
}

}  // namespace wkv
