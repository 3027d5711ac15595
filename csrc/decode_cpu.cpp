// A token costs one read of all weights, so the matrices are stored as they are read: rows filled up to whole vectors,
// bfloat16 as pairs that a shift and a mask take apart, int8 with a scale per row.
#include "decode_cpu.h"

#include <cmath>
#include <vector>

#include "decode_rows.h"

namespace decode {
namespace {

using wkv::store;

constexpr int64_t TASK_BYTES = 1 << 18;  // least work worth another thread
constexpr int64_t MOST_TASKS = 64;
constexpr float LARGEST = 32700.0f;      // integer of the largest activation: below 2^15 after rounding

// A matrix [rows, padded(K)] times a vector.
struct Job {
    const char* matrix;
    int64_t rows, K;
    Input in;
    float* out;
};

struct Phase {
    Kind kind;
    const Job* jobs;
    int64_t count, tasks, rows;
};

template <Kind kind>
void some_rows(const Job& job, int64_t begin, int64_t end) {
    using P = Product<kind>;
    const float* scales = reinterpret_cast<const float*>(job.matrix);
    const auto* weights = reinterpret_cast<const typename P::Weight*>(job.matrix + 4 * padded(job.rows));
    for (int64_t n = begin; n < end; ++n) job.out[n] = P::row(weights + n * job.K, scales[n], job.in, job.K);
}

void run_tasks(int64_t begin, int64_t end, void* context) {
    const Phase& phase = *static_cast<const Phase*>(context);
    int64_t first = phase.rows * begin / phase.tasks, last = phase.rows * end / phase.tasks;
    for (int64_t j = 0; j < phase.count && last > 0; ++j) {
        const Job& job = phase.jobs[j];
        const int64_t from = std::max<int64_t>(first, 0), to = std::min(last, job.rows);
        if (phase.kind == Kind::fp32) some_rows<Kind::fp32>(job, from, to);
        if (phase.kind == Kind::bf16) some_rows<Kind::bf16>(job, from, to);
        if (phase.kind == Kind::int8) some_rows<Kind::int8>(job, from, to);
        first -= job.rows;
        last -= job.rows;
    }
}

LANES_INLINE f32v sigmoid(f32v x) {
    const f32v low = f32v{} - 80.0f;
    return 1.0f / (1.0f + wkv::Float32::exp(-(x < low ? low : x)));
}

LANES_INLINE f32v largest(f32v x, f32v y) { return x > y ? x : y; }

// The work space of one token and what is done with it.
class Pass {
   public:
    Pass(const Model& model, wkv::Parallel parallel)
        : model_(model), parallel_(parallel), C_(padded(model.C)), F_(padded(model.F)) {
        memory_.assign(9 * C_ + 2 * F_ + 2 * LANES, 0.0f);
        auto address = reinterpret_cast<uintptr_t>(memory_.data());
        float* next = memory_.data() + (64 - address % 64) % 64 / sizeof(float);
        for (float** place : {&stream_, &x_, &mixed_[0], &mixed_[1], &mixed_[2], &k_, &v_, &r_, &last_}) {
            *place = next;
            next += C_;
        }
        hidden_ = next;
        whole_.assign(3 * std::max(C_, F_), 0);
    }

    void run(const float* embedding, const float* state, float* state_out, float* x, float* logits) {
        const int64_t C = model_.C;
        std::copy(embedding, embedding + C, stream_);
        for (int64_t l = 0; l < model_.L; ++l) {
            const Layer& layer = model_.layers[l];
            if (layer.ln0 >= 0) norm(layer.ln0, stream_, stream_);
            const float* before = state + l * 5 * C;
            float* after = state_out + l * 5 * C;
            sublayer_input(layer.ln1);
            if (layer.channel_first) {
                channel_mix(layer.att_vectors, layer.att_key, layer.att_value, layer.att_receptance, before, after);
                std::copy(before + C, before + 4 * C, after + C);
            } else {
                time_mix(layer, before, after);
            }
            sublayer_input(layer.ln2);
            channel_mix(layer.ffn_vectors, layer.ffn_key, layer.ffn_value, layer.ffn_receptance, before + 4 * C,
                        after + 4 * C);
        }
        norm(model_.head, stream_, x_);
        std::copy(x_, x_ + C, x);
        Job job = {model_.store + model_.head + 8 * C_, model_.V, C_, input(x_, C_, 0), logits};
        multiply(&job, 1);
    }

   private:
    const float* vector(int64_t offset, int64_t number) const {
        return reinterpret_cast<const float*>(model_.store + offset) + number * C_;
    }

    // x = ln(stream); post-norm blocks go on from x.
    void sublayer_input(int64_t offset) {
        norm(offset, stream_, x_);
        if (!model_.pre_norm) std::copy(x_, x_ + C_, stream_);
    }

    // Weight and bias are zero behind channel C, and so is the result.
    void norm(int64_t offset, const float* from, float* to) const {
        f32v sums = {};
        for (int64_t i = 0; i < C_; i += LANES) sums += load(from + i);
        const float mean = total(sums) / model_.C;
        f32v squares = {};
        int64_t i = 0;
        for (; i + LANES <= model_.C; i += LANES) {
            const f32v d = load(from + i) - mean;
            squares += d * d;
        }
        float sum = total(squares);
        for (; i < model_.C; ++i) sum += (from[i] - mean) * (from[i] - mean);
        const float scale = 1.0f / std::sqrt(sum / model_.C + model_.ln_eps);
        const float *weight = vector(offset, 0), *bias = vector(offset, 1);
        for (i = 0; i < C_; i += LANES)
            store(to + i, (load(from + i) - mean) * scale * load(weight + i) + load(bias + i));
    }

    // mixed = last + share (x - last) for each role; x is the last input of the next token.
    void shift(int64_t shares, int roles, const float* last, float* last_out) {
        std::copy(last, last + model_.C, last_);
        for (int role = 0; role < roles; ++role) {
            const float* share = vector(shares, role);
            for (int64_t i = 0; i < C_; i += LANES) {
                const f32v before = load(last_ + i), m = load(share + i), x = load(x_ + i);
                store(mixed_[role] + i, x * m + before * (1.0f - m));
            }
        }
        std::copy(x_, x_ + model_.C, last_out);
    }

    Input input(const float* x, int64_t length, int place) {
        if (model_.kind != Kind::int8) return {x, nullptr, 1.0f};
        f32v sizes = {};
        for (int64_t i = 0; i < length; i += LANES)
            sizes = largest(wkv::bit_cast<f32v>(wkv::bit_cast<u32v>(load(x + i)) & 0x7fffffffu), sizes);
        float most = 0.0f;
        for (int64_t lane = 0; lane < LANES; ++lane) most = std::max(most, sizes[lane]);
        const float scale = most > 0.0f ? most / LARGEST : 1.0f, inverse = most > 0.0f ? LARGEST / most : 1.0f;
        int16_t* whole = whole_.data() + place * std::max(C_, F_);
        for (int64_t i = 0; i < length; i += LANES) {
            // Adding 1.5 * 2^23 leaves the rounded number in the low bits.
            const u32v bits = wkv::bit_cast<u32v>(load(x + i) * inverse + 12582912.0f);
            const wkv::u16v half = __builtin_convertvector(bits, wkv::u16v);
            std::memcpy(whole + i, &half, sizeof(half));
        }
        return {x, whole, scale};
    }

    void multiply(const Job* jobs, int64_t count) {
        int64_t bytes = 0, rows = 0;
        for (int64_t j = 0; j < count; ++j) {
            bytes += matrix_bytes(jobs[j].rows, jobs[j].K, model_.kind);
            rows += jobs[j].rows;
        }
        const int64_t tasks = std::clamp<int64_t>(bytes / TASK_BYTES, 1, MOST_TASKS);
        Phase phase = {model_.kind, jobs, count, tasks, rows};
        if (tasks == 1) return run_tasks(0, 1, &phase);
        parallel_(tasks, run_tasks, &phase);
    }

    void time_mix(const Layer& layer, const float* before, float* after) {
        const int64_t C = model_.C;
        shift(layer.att_vectors, 3, before, after);
        const Job jobs[] = {{model_.store + layer.att_key, C, C_, input(mixed_[0], C_, 0), k_},
                            {model_.store + layer.att_value, C, C_, input(mixed_[1], C_, 1), v_},
                            {model_.store + layer.att_receptance, C, C_, input(mixed_[2], C_, 2), r_}};
        multiply(jobs, 3);
        const float *w = vector(layer.att_vectors, 3), *u = vector(layer.att_vectors, 4);
        int64_t i = 0;
        for (; i + LANES <= C; i += LANES) scan(w + i, u + i, i, before + C + i, after + C + i, C);
        if (i < C) {
            float sums[3 * LANES] = {}, out[3 * LANES];
            for (int64_t row = 0; row < 3; ++row)
                std::copy(before + (1 + row) * C + i, before + (2 + row) * C, sums + row * LANES);
            scan(w + i, u + i, i, sums, out, LANES);
            for (int64_t row = 0; row < 3; ++row)
                std::copy(out + row * LANES, out + row * LANES + (C - i), after + (1 + row) * C + i);
            std::fill(mixed_[0] + C, mixed_[0] + C_, 0.0f);
        }
        const Job output = {model_.store + layer.att_output, C, C_, input(mixed_[0], C_, 0), k_};
        multiply(&output, 1);
        for (int64_t j = 0; j < C_; j += LANES) store(stream_ + j, load(stream_ + j) + load(k_ + j));
    }

    // Channels i to i + LANES: mixed[0] = sigmoid(r) wkv, and the sums a, b, p, which are `apart` numbers apart.
    void scan(const float* w, const float* u, int64_t i, const float* sums, float* out, int64_t apart) {
        using E = wkv::Float32;
        const f32v limit = f32v{} + static_cast<float>(model_.k_max), eps = f32v{} + static_cast<float>(model_.log_eps);
        f32v k = load(k_ + i);
        k = k > limit ? limit : k;
        const f32v v = load(v_ + i), a = load(sums), b = load(sums + apart), p = load(sums + 2 * apart);
        const f32v now = load(u) + k;
        f32v q = largest(largest(p, now), eps);
        f32v past = E::exp(p - q), present = E::exp(now - q);
        const f32v y = (past * a + present * v) / (past * b + present + E::exp(eps - q));
        store(mixed_[0] + i, sigmoid(load(r_ + i)) * y);
        const f32v decayed = p + load(w);
        q = largest(decayed, k);
        past = E::exp(decayed - q);
        present = E::exp(k - q);
        store(out, past * a + present * v);
        store(out + apart, past * b + present);
        store(out + 2 * apart, q);
    }

    void channel_mix(int64_t shares, int64_t key, int64_t value, int64_t receptance, const float* before,
                     float* after) {
        const int64_t C = model_.C, F = model_.F;
        shift(shares, 2, before, after);
        const Job jobs[] = {{model_.store + key, F, C_, input(mixed_[0], C_, 0), hidden_},
                            {model_.store + receptance, C, C_, input(mixed_[1], C_, 1), r_}};
        multiply(jobs, 2);
        for (int64_t i = 0; i < F_; i += LANES) {
            const f32v positive = largest(load(hidden_ + i), f32v{});
            store(hidden_ + i, positive * positive);
        }
        const Job output = {model_.store + value, C, F_, input(hidden_, F_, 0), v_};
        multiply(&output, 1);
        for (int64_t i = 0; i < C_; i += LANES)
            store(stream_ + i, load(stream_ + i) + sigmoid(load(r_ + i)) * load(v_ + i));
    }

    const Model& model_;
    wkv::Parallel parallel_;
    int64_t C_, F_;  // padded
    std::vector<float> memory_;
    std::vector<int16_t> whole_;
    float *stream_, *x_, *mixed_[3], *k_, *v_, *r_, *last_, *hidden_;
};

}  // namespace

int64_t reach(const Model& model) {
    const int64_t C = model.C, F = model.F, vectors = 4 * padded(C);
    int64_t end = 0;
    bool aligned = true;
    const auto use = [&](int64_t offset, int64_t bytes) {
        aligned &= offset >= 0 && offset % 64 == 0;
        end = std::max(end, offset + bytes);
    };
    const auto use_matrix = [&](int64_t offset, int64_t rows, int64_t columns) {
        use(offset, matrix_bytes(rows, columns, model.kind));
    };
    use(model.head, 2 * vectors + matrix_bytes(model.V, C, model.kind));
    for (int64_t l = 0; l < model.L; ++l) {
        const Layer& layer = model.layers[l];
        if (layer.ln0 != -1) use(layer.ln0, 2 * vectors);
        use(layer.ln1, 2 * vectors);
        use(layer.ln2, 2 * vectors);
        use(layer.att_vectors, (layer.channel_first ? 2 : 5) * vectors);
        use_matrix(layer.att_key, layer.channel_first ? F : C, C);
        use_matrix(layer.att_value, C, layer.channel_first ? F : C);
        use_matrix(layer.att_receptance, C, C);
        if (!layer.channel_first) use_matrix(layer.att_output, C, C);
        use(layer.ffn_vectors, 2 * vectors);
        use_matrix(layer.ffn_key, F, C);
        use_matrix(layer.ffn_value, C, F);
        use_matrix(layer.ffn_receptance, C, C);
    }
    return aligned ? end : -1;
}

void step(const Model& model, const float* embedding, const float* state, float* state_out, float* x, float* logits,
          wkv::Parallel parallel) {
    Pass(model, parallel).run(embedding, state, state_out, x, logits);
}

}  // namespace decode
