// Cross-entropy of rows of logits, and what it is of the logits, in the memory of the logits.
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

using namespace segue;

constexpr float LEAST = -87.0f;  // whose exponential, and any below, counts as nothing

// The largest of a row and of `found`.
float largest_of(const float* row, int64_t columns, float found) {
    Floats most = splat(found);
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) most = greater(load(row + j), most);
    found = largest(most);
    for (; j < columns; j++) found = row[j] > found ? row[j] : found;
    return found;
}

// row = e^(row - most); the sum of it.
float exponentials(float* row, int64_t columns, float most) {
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

void scale_row(float* row, int64_t columns, float factor) {
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
float logits_of(const Negatives& of, int32_t target, float scale, float* most_score) {
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

}  // namespace

extern "C" {

// Of each row of logits [rows, columns]: loss[r] = log sum exp - logit of the target; hit[r] = whether none is larger;
// and the row becomes (softmax - one-hot) * scale.
void segue_cross_entropy(float* logits, const int64_t* targets, int64_t rows, int64_t columns, float scale, float* loss,
                         uint8_t* hit) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float* row = logits + r * columns;
        const float target = row[targets[r]];
        const float most = largest_of(row, columns, row[0]);
        const float total = exponentials(row, columns, most);
        loss[r] = most + std::log(total) - target;
        hit[r] = target >= most;
        scale_row(row, columns, scale / total);
        row[targets[r]] -= scale;
    }
}

// A softmax over a target and its negatives, for each row of scores [rows, negatives]: loss[r], hit[r] as above, offsets
// apart; the row becomes softmax * scale, 0 where the negative is the target; positive[r], a score, becomes
// (share - 1) * scale. A row of ids and of offsets follows `ids_row` after the one before: 0 where all share one.
void segue_sampled_cross_entropy(float* scores, const int32_t* ids, const float* offsets, int64_t ids_row,
                                 const int32_t* targets, float* positive, int64_t rows, int64_t negatives, float scale,
                                 float* loss, uint8_t* hit) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const Negatives of = {scores + r * negatives, ids + r * ids_row, offsets ? offsets + r * ids_row : nullptr,
                              negatives};
        const float target = positive[r] * scale;
        float most_score;
        float most = logits_of(of, targets[r], scale, &most_score);
        hit[r] = target >= most_score;
        most = target > most ? target : most;
        const float own = std::exp(target - most);
        const float total = exponentials(of.scores, negatives, most) + own;
        loss[r] = most + std::log(total) - target;
        scale_row(of.scores, negatives, scale / total);
        positive[r] = (own / total - 1.0f) * scale;
    }
}

}  // extern "C"
