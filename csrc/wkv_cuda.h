// Entry points of the CUDA kernels: raw pointers to contiguous arrays on the device, and a stream. No torch, no CUDA
// header.
#pragma once

#include <cstdint>

namespace wkv::gpu {

constexpr int64_t CHECKPOINT_STEPS = 64;

enum class Type { float32, bfloat16, float16 };

struct Sizes {
    int64_t B, T, C;
    double log_eps, k_max;  // -infinity and infinity for none
    Type type;              // of k, v, y and their gradients; everything else is float32
};

// Floats of device memory that the kernels need beside their results; 0 where time is not cut.
struct Scratch {
    int64_t forward, backward;
};

Scratch scratch_of(const Sizes& sizes);

// Shapes as in wkv_cpu.h, none of them empty. Both return null, or why the launch failed.
const char* forward(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v,
                    const float* state, void* y, float* state_out, float* checkpoints, float* scratch, void* stream);
const char* backward(const Sizes& sizes, const float* w, const float* u, const void* k, const void* v,
                     const float* checkpoints, const void* gy, const float* gstate, float* gw, float* gu, void* gk,
                     void* gv, float* gstate_in, float* scratch, void* stream);

}  // namespace wkv::gpu
