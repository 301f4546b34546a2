// Softmaxes and cross-entropies of single rows, in the memory of their logits.
#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace segue {

constexpr float LEAST = -87.0f;  // whose exponential, and any below, counts as nothing

// The largest of a row and of `found`.
static inline float largest_of(const float* row, int64_t columns, float found) {
    Floats most = splat(found);
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) most = greater(load(row + j), most);
    found = largest(most);
    for (; j < columns; j++) found = row[j] > found ? row[j] : found;
    return found;
}

// row = e^(row - most); the sum of it.
static inline float exponentials(float* row, int64_t columns, float most) {
    Floats total = Floats{};
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) {
        const Floats x = load(row + j) - most;
        const Floats e = x < LEAST ? Floats{} : exponential(x);
        store(row + j, e);
        total += e;
    }
    float rest = 0;
    for (; j < columns; j++) {
        const float x = row[j] - most;
        row[j] = x < LEAST ? 0.0f : exponential(splat(x))[0];
        rest += row[j];
    }
    return sum(total) + rest;
}

static inline void scale_row(float* row, int64_t columns, float factor) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) store(row + j, load(row + j) * factor);
    for (; j < columns; j++) row[j] *= factor;
}

// What one target is held against: logits = scale * score + offset, none where the id is the target's own.
struct Negatives {
    float* scores;
    const int32_t* ids;
    const float* offsets;  // null where there are none
    int64_t count;
};

// Scores become logits; returns the largest, and in `most_score` the largest without offsets.
static inline float logits_of(const Negatives& of, int32_t target, float scale, float* most_score) {
    const Floats nothing = splat(-INFINITY);
    Floats most = nothing, score_most = nothing;
    int64_t j = 0;
    for (; j + LANES <= of.count; j += LANES) {
        const Floats score = load(of.ids + j) == splat(target) ? nothing : load(of.scores + j) * scale;
        const Floats logit = of.offsets ? score + load(of.offsets + j) : score;
        store(of.scores + j, logit);
        score_most = greater(score, score_most);
        most = greater(logit, most);
    }
    float found = largest(most), found_score = largest(score_most);
    for (; j < of.count; j++) {
        const float score = of.ids[j] == target ? -INFINITY : of.scores[j] * scale;
        of.scores[j] = of.offsets ? score + of.offsets[j] : score;
        found_score = score > found_score ? score : found_score;
        found = of.scores[j] > found ? of.scores[j] : found;
    }
    *most_score = found_score;
    return found;
}

// row = row * scale + bias.
static inline void affine(float* row, int64_t columns, float scale, const float* bias) {
    if (scale == 1.0f && bias == nullptr) return;
    for (int64_t j = 0; j < columns; j++) row[j] = row[j] * scale + (bias ? bias[j] : 0.0f);
}

// log sum exp - logit of the target; `hit`: whether none is larger; the row becomes (softmax - one-hot) * scale.
static inline float cross_entropy(float* row, int64_t columns, int64_t target, float scale, uint8_t* hit) {
    const float own = row[target];
    const float most = largest_of(row, columns, row[0]);
    const float total = exponentials(row, columns, most);
    *hit = own >= most;
    scale_row(row, columns, scale / total);
    row[target] -= scale;
    return most + std::log(total) - own;
}

// The same of a target and its negatives; `positive`, its score, becomes (share - 1) * scale.
static inline float sampled_cross_entropy(const Negatives& of, int32_t target, float scale, float* positive,
                                          uint8_t* hit) {
    const float logit = *positive * scale;
    float most_score;
    float most = logits_of(of, target, scale, &most_score);
    *hit = logit >= most_score;
    most = logit > most ? logit : most;
    const float own = std::exp(logit - most);
    const float total = exponentials(of.scores, of.count, most) + own;
    scale_row(of.scores, of.count, scale / total);
    *positive = (own / total - 1.0f) * scale;
    return most + std::log(total) - logit;
}

}  // namespace segue
