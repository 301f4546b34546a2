// Cross-entropies of rows of logits that are there already.
#include <cstdint>

#include "softmax.h"

using namespace segue;

extern "C" {

// Of each row of logits [rows, columns]: loss[r] = log sum exp - logit of the target; hit[r] = whether none is larger;
// and the row becomes softmax - one-hot.
void segue_cross_entropy(float* logits, const int64_t* targets, int64_t rows, int64_t columns, float* loss,
                         uint8_t* hit) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        loss[r] = cross_entropy(logits + r * columns, columns, targets[r], 1.0f, hit + r);
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
        loss[r] = sampled_cross_entropy(of, targets[r], scale, positive + r, hit + r);
    }
}

}  // extern "C"
