// Vectors of floats as wide as the processor has them, the exponential of one, and small matrix products in registers.
//
// GCC's and Clang's vector extensions alone, so that the same source serves AVX2, AVX-512, NEON: what is not there is
// made of what is.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 8
#else
#define LANES 8
#define TILE_ROWS 6
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace segue {

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr int64_t TILE_COLUMNS = 2 * LANES;  // of a product in registers

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
static inline Ints load(const int32_t* from) { return *reinterpret_cast<const Ints*>(from); }
static inline void store(float* to, Floats x) { *reinterpret_cast<Floats*>(to) = x; }
static inline Floats splat(float x) { return x - Floats{}; }  // plus nothing would be an addition: -0 + 0 is 0
static inline Ints splat(int32_t x) { return x - Ints{}; }
static inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
static inline Ints greater(Ints a, Ints b) { return a > b ? a : b; }
static inline Ints lesser(Ints a, Ints b) { return a < b ? a : b; }

// The lanes' own numbers.
static inline Ints counting() {
#if LANES == 16
    return Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    return Ints{0, 1, 2, 3, 4, 5, 6, 7};
#endif
}

static inline float sum(Floats x) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

static inline float largest(Floats x) {
    float found = x[0];
    for (int lane = 1; lane < LANES; lane++) found = x[lane] > found ? x[lane] : found;
    return found;
}

// Whether all lanes are alike.
static inline bool alike(Ints x) {
    const Ints same = x == splat(x[0]);
#if LANES == 16 && defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)same) == 0xffff;
#elif LANES == 8 && defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)same) == -1;
#else
    for (int lane = 0; lane < LANES; lane++)
        if (!same[lane]) return false;
    return true;
#endif
}

// Rows of lanes become columns, in place.
static inline void turn(Floats* rows) {
#if defined(__GNUC__) && !defined(__clang__)
    const Ints lane = counting();
#pragma GCC unroll 4
    for (int step = 1; step < LANES; step *= 2) {
        const Ints upper = lane & step;
        const Ints first = upper == 0 ? lane : lane - step + LANES, second = upper == 0 ? lane + step : lane + LANES;
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++)
            if ((r & step) == 0) {
                const Floats a = rows[r], b = rows[r + step];
                rows[r] = __builtin_shuffle(a, b, first);
                rows[r + step] = __builtin_shuffle(a, b, second);
            }
    }
#else
    for (int r = 0; r < LANES; r++)
        for (int c = r + 1; c < LANES; c++) {
            const float kept = rows[r][c];
            rows[r][c] = rows[c][r];
            rows[c][r] = kept;
        }
#endif
}

// table[index] of each lane. Neighbours are mostly alike where this is asked.
static inline Floats look_up(const float* table, Ints index) {
    if (alike(index)) return splat(table[index[0]]);
#if LANES == 16
    return (Floats)_mm512_i32gather_ps((__m512i)index, table, 4);
#elif defined(__AVX2__)
    return (Floats)_mm256_i32gather_ps(table, (__m256i)index, 4);
#else
    Floats found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = table[index[lane]];
    return found;
#endif
}

// e^x within 2 units in the last place; below -87.3 it is that of -87.3, some 1e-38. Of what is no number, no number.
//
// x = n log 2 + r with |r| <= log(2) / 2; e^r by Taylor's series made minimax (Cephes), 2^n by its exponent's bits.
static inline Floats exponential(Floats x) {
    const Floats least = splat(-87.33654f), most = splat(88.37626f);
    x = x < least ? least : x;
    x = x > most ? most : x;
    const Floats shifter = splat(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const Floats shifted = x * 1.44269504f + shifter;
    const Floats whole = shifted - shifter;
    const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats y = splat(1.9875691500e-4f);
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * (rest * rest) + rest + 1.0f;
    return (Floats)((Ints)y + ((Ints)shifted << 23));
}

static inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

// c[r, :] (+)= sum over k of a[r, k] b[k, :], for ROWS rows and one tile of columns, accumulated in registers.
//
// a's rows and columns may lie in any strides; b's and c's columns lie side by side.
template <int ROWS, bool ADD>
static inline void product_in_registers(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                                        float* c, int64_t c_row, int64_t depth) {
    Floats left[ROWS], right[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        left[r] = ADD ? load(c + r * c_row) : Floats{};
        right[r] = ADD ? load(c + r * c_row + LANES) : Floats{};
    }
    for (int64_t k = 0; k < depth; k++) {
        const Floats b_left = load(b + k * b_k), b_right = load(b + k * b_k + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Floats factor = splat(a[r * a_row + k * a_k]);
            left[r] += factor * b_left;
            right[r] += factor * b_right;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        store(c + r * c_row, left[r]);
        store(c + r * c_row + LANES, right[r]);
    }
}

template <bool ADD>
static inline void product_of_rows(int64_t rows, const float* a, int64_t a_row, int64_t a_k, const float* b,
                                   int64_t b_k, float* c, int64_t c_row, int64_t depth) {
    switch (rows) {
        case 1: return product_in_registers<1, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
        case 2: return product_in_registers<2, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
        case 3: return product_in_registers<3, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
        case 4: return product_in_registers<4, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
        case 5: return product_in_registers<5, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
        case 6: return product_in_registers<6, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
#if TILE_ROWS > 6
        case 7: return product_in_registers<7, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
        case 8: return product_in_registers<8, ADD>(a, a_row, a_k, b, b_k, c, c_row, depth);
#endif
    }
}

}  // namespace segue
