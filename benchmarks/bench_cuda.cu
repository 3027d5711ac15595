// Kernels the benchmark times ours against: one thread per channel walking all of time, and the depthwise convolution.
#include <cuda_runtime.h>

#include "wkv_kernels.h"

namespace {

using namespace wkv::gpu;
using wkv::NO_HISTORY;
using wkv::Sums;

// One thread per (sequence, channel). scratch [3,B,T,C] receives the sums before every step where it is given.
template <class Number>
__global__ void sequential_forward_kernel(int B, int T, int C, const float* w, const float* u, const Number* k,
                                          const Number* v, Number* y, float* scratch) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= B * C) return;
    const int c = i % C;
    const int64_t size = static_cast<int64_t>(B) * T * C;
    int64_t at = static_cast<int64_t>(i / C) * T * C + c;
    Sums<float> s = {0.0f, 0.0f, NO_HISTORY};
    for (int t = 0; t < T; ++t, at += C) {
        const float key = widen(k[at]), value = widen(v[at]);
        if (scratch) scratch[at] = s.a, scratch[at + size] = s.b, scratch[at + 2 * size] = s.p;
        narrow(y[at], wkv::exact_output<Scalar>(s, u[c], key, value, -INFINITY).y);
        s = wkv::exact_advance<Scalar>(s, w[c], key, value);
    }
}

template <class Number>
__global__ void sequential_backward_kernel(int B, int T, int C, const float* w, const float* u, const Number* k,
                                           const Number* v, const float* scratch, const Number* gy, float* gw,
                                           float* gu, Number* gk, Number* gv) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= B * C) return;
    const int c = i % C;
    const int64_t size = static_cast<int64_t>(B) * T * C;
    int64_t at = (static_cast<int64_t>(i / C) * T + T - 1) * C + c;
    Sums<float> g = {0.0f, 0.0f, NO_HISTORY};
    float gw_sum = 0.0f, gu_sum = 0.0f;
    for (int t = T - 1; t >= 0; --t, at -= C) {
        const Sums<float> s = {scratch[at], scratch[at + size], scratch[at + 2 * size]};
        const auto step =
            wkv::exact_backward<Scalar>(g, s, w[c], u[c], widen(k[at]), widen(v[at]), widen(gy[at]), -INFINITY);
        gw_sum += step.decay, gu_sum += step.bonus;
        narrow(gk[at], step.k);
        narrow(gv[at], step.v);
    }
    gw[i] = gw_sum, gu[i] = gu_sum;
}

// y_t = sum_{u<=t} curve[t-u] x_u for x, y [B,C,T], curve [C,T]: a block per (sequence, channel), both rows in shared
// memory.
__global__ void convolution_kernel(int T, int C, const float* curve, const float* x, float* y) {
    extern __shared__ float shared[];
    float *curve_row = shared, *x_row = shared + T;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * T;
    for (int t = threadIdx.x; t < T; t += blockDim.x) {
        curve_row[t] = curve[static_cast<int64_t>(blockIdx.x % C) * T + t];
        x_row[t] = x[row + t];
    }
    __syncthreads();
    for (int t = threadIdx.x; t < T; t += blockDim.x) {
        float sum = 0.0f;
        for (int u = 0; u <= t; ++u) sum += curve_row[t - u] * x_row[u];
        y[row + t] = sum;
    }
}

constexpr int CHANNELS_PER_BLOCK = 32;

int blocks(int B, int C) { return (B * C + CHANNELS_PER_BLOCK - 1) / CHANNELS_PER_BLOCK; }

template <class Run>
int with_type(bool half, Run run) {
    if (half)
        run(bf16{});
    else
        run(float{});
    return cudaGetLastError();
}

}  // namespace

extern "C" int sequential_forward(bool half, int B, int T, int C, const float* w, const float* u, const void* k,
                                  const void* v, void* y, float* scratch, cudaStream_t stream) {
    return with_type(half, [&](auto number) {
        using Number = decltype(number);
        sequential_forward_kernel<<<blocks(B, C), CHANNELS_PER_BLOCK, 0, stream>>>(
            B, T, C, w, u, static_cast<const Number*>(k), static_cast<const Number*>(v), static_cast<Number*>(y),
            scratch);
    });
}

extern "C" int sequential_backward(bool half, int B, int T, int C, const float* w, const float* u, const void* k,
                                   const void* v, const float* scratch, const void* gy, float* gw, float* gu, void* gk,
                                   void* gv, cudaStream_t stream) {
    return with_type(half, [&](auto number) {
        using Number = decltype(number);
        sequential_backward_kernel<<<blocks(B, C), CHANNELS_PER_BLOCK, 0, stream>>>(
            B, T, C, w, u, static_cast<const Number*>(k), static_cast<const Number*>(v), scratch,
            static_cast<const Number*>(gy), gw, gu, static_cast<Number*>(gk), static_cast<Number*>(gv));
    });
}

extern "C" int convolution(int B, int T, int C, const float* curve, const float* x, float* y, cudaStream_t stream) {
    const int bytes = 2 * T * static_cast<int>(sizeof(float));
    cudaFuncSetAttribute(convolution_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    convolution_kernel<<<B * C, 256, bytes, stream>>>(T, C, curve, x, y);
    return cudaGetLastError();
}
