// One token through a model of WKV mixes and squared-ReLU channel mixes: raw pointers, and a way to run tasks in
// parallel.
#pragma once

#include <cstdint>

#include "wkv_cpu.h"

namespace decode {

enum class Kind : int64_t { fp32 = 0, bf16 = 1, int8 = 2 };

// Columns of a stored matrix are filled up with zeros to a multiple of this, vectors likewise.
constexpr int64_t PAD = 64;
// Number of int64 that describe a layer, and those before the first layer.
constexpr int64_t LAYER = 13, HEADER = 7;

constexpr int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

// Bytes of a stored matrix: scales [rows] in float32, then the rows.
constexpr int64_t matrix_bytes(int64_t rows, int64_t columns, Kind kind) {
    const int64_t size = kind == Kind::fp32 ? 4 : kind == Kind::bf16 ? 2 : 1;
    return 4 * padded(rows) + rows * padded(columns) * size;
}

// Byte offsets into the store, each a multiple of 64. Vectors are float32 of padded(C), one after the other.
struct Layer {
    int64_t channel_first;  // 1: a channel mix takes the place of the time mix
    int64_t ln0;            // weight and bias; -1: none
    int64_t ln1, ln2;
    int64_t att_vectors;  // shares of k, v and r, then w and u; of a channel mix: shares of k and r
    int64_t att_key, att_value, att_receptance, att_output;  // of a channel mix: value [C,F], output unused
    int64_t ffn_vectors;                                     // shares of k and r
    int64_t ffn_key, ffn_value, ffn_receptance;              // [F,C], [C,F], [C,C]
};
static_assert(sizeof(Layer) == LAYER * sizeof(int64_t));

struct Model {
    int64_t C, F, V, L;  // channels, hidden width, vocabulary, layers
    Kind kind;
    int64_t pre_norm;
    int64_t head;  // ln_out's weight and bias, then the matrix [V,C]
    const Layer* layers;
    const char* store;
    float ln_eps;
    double log_eps, k_max;
};

// Size of the store the offsets of `model` reach to, or -1 if one of them is negative or not aligned.
int64_t reach(const Model& model);

// embedding [C]; state and state_out [L,5,C]: last input, a, b, p of the time mix, last input of the channel mix, zeros
// and p = -1e30 before the first token; x [C], the output of the last norm; logits [V].
void step(const Model& model, const float* embedding, const float* state, float* state_out, float* x, float* logits,
          wkv::Parallel parallel);

}  // namespace decode
