// What a block does to each row by itself: norms, SiLU, the gate, dropout; forward and backward.
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

using namespace segue;

// Which lanes there are of the numbers from j on, of a row of `width`.
Ints there(int64_t j, int64_t width) { return counting() < splat(static_cast<int32_t>(width - j)); }

// The numbers j … j + LANES - 1 of a row of `width`, zeros beyond.
Floats take(const float* row, int64_t j, int64_t width) {
    if (j + LANES <= width) return load(row + j);
#if defined(__AVX2__) && LANES == 8
    return (Floats)_mm256_maskload_ps(row + j, (__m256i)there(j, width));
#else
    Floats found = Floats{};
    for (int64_t lane = 0; j + lane < width; lane++) found[lane] = row[j + lane];
    return found;
#endif
}

void put(float* row, int64_t j, int64_t width, Floats x) {
    if (j + LANES <= width) return store(row + j, x);
#if defined(__AVX2__) && LANES == 8
    _mm256_maskstore_ps(row + j, (__m256i)there(j, width), (__m256)x);
#else
    for (int64_t lane = 0; j + lane < width; lane++) row[j + lane] = x[lane];
#endif
}

// (x - mean) * rate is the normed row.
struct Norm {
    float mean, rate;

    Norm(const float* row, int64_t width, float epsilon) {
        Floats total = Floats{}, squares = Floats{};
        for (int64_t j = 0; j < width; j += LANES) total += take(row, j, width);
        mean = sum(total) / width;
        for (int64_t j = 0; j < width; j += LANES) {
            Floats apart = take(row, j, width) - mean;
            if (j + LANES > width) apart = (Floats)((Ints)apart & there(j, width));
            squares += apart * apart;
        }
        rate = 1.0f / std::sqrt(sum(squares) / width + epsilon);
    }

    Floats operator()(Floats x) const { return (x - mean) * rate; }
};

// Sums over a row of a gradient of its normed numbers, and of it times these: what the norm's backward needs.
struct Along {
    Floats plain = Floats{}, times = Floats{};
    void add(Floats grad, Floats normed) {
        plain += grad;
        times += grad * normed;
    }
};

float length(const float* row, int64_t width, float least) {
    Floats squares = Floats{};
    for (int64_t j = 0; j < width; j += LANES) {
        const Floats x = take(row, j, width);
        squares += x * x;
    }
    const float found = std::sqrt(sum(squares));
    return found < least ? least : found;  // of what is no number, no number
}

Ints scramble(Ints x) {  // lowbias32, by Chris Wellons's search
    typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
    Bits b = (Bits)x;
    b ^= b >> 16;
    b *= 0x7feb352du;
    b ^= b >> 15;
    b *= 0x846ca68bu;
    b ^= b >> 16;
    return (Ints)b;
}

// What dropout multiplies numbers of a matrix by: 0 or 1 / (1 - share), by seed, row and column alone.
struct Dropout {
    int32_t threshold, seed;
    float factor;

    Dropout(float share, int64_t given)
        : threshold(static_cast<int32_t>(share * 16777216.0f)),
          seed(static_cast<int32_t>(given)),
          factor(1.0f / (1.0f - share)) {}
};

struct DropoutOfRow {
    Ints of_row;
    int32_t threshold;
    float factor;

    DropoutOfRow(const Dropout& given, int64_t row)
        : of_row(scramble(splat(static_cast<int32_t>(row) ^ given.seed))),
          threshold(given.threshold),
          factor(given.factor) {}

    Floats operator()(int64_t j) const {
        if (threshold == 0) return splat(1.0f);
        const Ints drawn = scramble((counting() + static_cast<int32_t>(j)) ^ of_row);
        return (Floats)(((drawn & 0xffffff) >= splat(threshold)) & (Ints)splat(factor));
    }
};

// Asks for a row that is read some rows later: the next one lies a stride away, which the processor does not foresee.
void expect(const float* row, int64_t width) {
    for (int64_t j = 0; j < width; j += 16) __builtin_prefetch(row + j);
}

constexpr int64_t AHEAD = 8;

}  // namespace

extern "C" {

void segue_layer_norm(const float* x, int64_t rows, int64_t width, float epsilon, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float* row = x + r * width;
        const Norm norm(row, width, epsilon);
        for (int64_t j = 0; j < width; j += LANES) put(out + r * width, j, width, norm(take(row, j, width)));
    }
}

// out = what the gradient of the normed rows is of x, plus `more`.
void segue_layer_norm_backward(const float* x, const float* grad, const float* more, int64_t rows, int64_t width,
                               float epsilon, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * width, *given = grad + r * width;
        const Norm norm(row, width, epsilon);
        Along along;
        for (int64_t j = 0; j < width; j += LANES) along.add(take(given, j, width), norm(take(row, j, width)));
        const float plain = sum(along.plain) / width, times = sum(along.times) / width;
        for (int64_t j = 0; j < width; j += LANES) {
            const Floats of_x = (take(given, j, width) - plain - norm(take(row, j, width)) * times) * norm.rate;
            put(out + r * width, j, width, of_x + take(more + r * width, j, width));
        }
    }
}

// Rows over their lengths, or over `least` where they are shorter.
void segue_unit(const float* x, int64_t rows, int64_t width, float least, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float over = 1.0f / length(x + r * width, width, least);
        for (int64_t j = 0; j < width; j += LANES) put(out + r * width, j, width, take(x + r * width, j, width) * over);
    }
}

// out = what the gradient of the unit rows is of x: across the row alone, but where `least` was the divisor.
void segue_unit_backward(const float* x, const float* grad, int64_t rows, int64_t width, float least, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * width, *given = grad + r * width;
        const float long_as = length(row, width, least), over = 1.0f / long_as;
        Floats total = Floats{};
        for (int64_t j = 0; j < width; j += LANES) total += take(given, j, width) * take(row, j, width);
        const float along = long_as > least ? sum(total) * over * over : 0.0f;
        for (int64_t j = 0; j < width; j += LANES)
            put(out + r * width, j, width, (take(given, j, width) - take(row, j, width) * along) * over);
    }
}

void segue_silu(const float* x, int64_t count, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < count; j += LANES) {
        const Floats s = take(x, j, count);
        put(out, j, count, s * sigmoid(s));
    }
}

// grad, of SiLU's results, becomes that of x.
void segue_silu_backward(const float* x, int64_t count, float* grad) {
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < count; j += LANES) {
        const Floats s = take(x, j, count), open = sigmoid(s);
        put(grad, j, count, take(grad, j, count) * (open + s * open * (1.0f - open)));
    }
}

// out = dropout(norm(gathered) * u); rows of u are `u_row` apart, all else is side by side.
void segue_gate(const float* gathered, const float* u, int64_t u_row, int64_t rows, int64_t width, float epsilon,
                float share, int64_t seed, float* out) {
    const Dropout dropout(share, seed);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float* row = gathered + r * width;
        if (r + AHEAD < rows) expect(u + (r + AHEAD) * u_row, width);
        const Norm norm(row, width, epsilon);
        const DropoutOfRow kept(dropout, r);
        for (int64_t j = 0; j < width; j += LANES)
            put(out + r * width, j, width, norm(take(row, j, width)) * take(u + r * u_row, j, width) * kept(j));
    }
}

// grad, of the results, becomes that of gathered; the others are given; `out` is made again, for the product after it.
void segue_gate_backward(const float* gathered, const float* u, int64_t u_row, int64_t rows, int64_t width,
                         float epsilon, float share, int64_t seed, float* grad, float* grad_u, int64_t grad_u_row,
                         float* out) {
    const Dropout dropout(share, seed);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = gathered + r * width, *gate = u + r * u_row;
        float* own = grad + r * width;
        if (r + AHEAD < rows) {
            expect(u + (r + AHEAD) * u_row, width);
            expect(grad_u + (r + AHEAD) * grad_u_row, width);
        }
        const Norm norm(row, width, epsilon);
        const DropoutOfRow dropped(dropout, r);
        Along along;
        for (int64_t j = 0; j < width; j += LANES) {
            const Floats kept = dropped(j), normed = norm(take(row, j, width)), open = take(gate, j, width);
            const Floats given = take(own, j, width) * kept;
            put(out + r * width, j, width, normed * open * kept);
            put(grad_u + r * grad_u_row, j, width, given * normed);
            put(own, j, width, given * open);
            along.add(given * open, normed);
        }
        const float plain = sum(along.plain) / width, times = sum(along.times) / width;
        for (int64_t j = 0; j < width; j += LANES)
            put(own, j, width, (take(own, j, width) - plain - norm(take(row, j, width)) * times) * norm.rate);
    }
}

// Its own gradient too.
void segue_dropout(const float* x, int64_t rows, int64_t width, float share, int64_t seed, float* out) {
    const Dropout dropout(share, seed);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const DropoutOfRow kept(dropout, r);
        for (int64_t j = 0; j < width; j += LANES)
            put(out + r * width, j, width, take(x + r * width, j, width) * kept(j));
    }
}

}  // extern "C"
