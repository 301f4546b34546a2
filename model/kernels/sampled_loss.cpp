// A softmax over a target and negatives of its own, all of them rows of one matrix, with the gradients of both sides.
//
// Of each target its own rows are read, twice, from a near cache where the matrix fits one: neither are they copied, nor
// are scores made that nobody asked for.
#include <cstdint>
#include <cstring>

#include "softmax.h"
#include "vectors.h"

extern "C" {

// Arrays side by side; null where there is none. `width` is a multiple of the lanes.
struct SegueSampledLoss {
    int64_t targets, width, items, negatives, parts;
    const float *x, *rows;                 // [targets, width], [items, width]
    const int32_t *target_ids, *ids;       // [targets], [targets, negatives]: rows
    const float* offsets;                  // [items], added to the logit of a negative
    float scale;                           // of a score
    float* scores;                         // [parts, 2, negatives], memory
    float* loss;                           // [targets]
    uint8_t* hit;                          // [targets]
    float *grad_x, *grad_rows;             // [targets, width], [parts, items, width]; null where nobody asks
};

}  // extern "C"

namespace {

using namespace segue;

float dot(const float* a, const float* b, int64_t width) {
    Floats total = Floats{};
    for (int64_t e = 0; e < width; e += LANES) total += load(a + e) * load(b + e);
    return sum(total);
}

// grad_a += g b, grad_b += g a.
void add_product(float g, const float* a, const float* b, int64_t width, float* grad_a, float* grad_b) {
    for (int64_t e = 0; e < width; e += LANES) {
        store(grad_a + e, load(grad_a + e) + g * load(b + e));
        store(grad_b + e, load(grad_b + e) + g * load(a + e));
    }
}

void do_target(const SegueSampledLoss& call, int64_t t, float* scores, float* grad_rows) {
    const int64_t width = call.width;
    const float* x = call.x + t * width;
    const int32_t *ids = call.ids + t * call.negatives, target = call.target_ids[t];
    float* offsets = call.offsets ? scores + call.negatives : nullptr;
    for (int64_t m = 0; m < call.negatives; m++) {
        scores[m] = dot(x, call.rows + ids[m] * width, width);
        if (offsets) offsets[m] = call.offsets[ids[m]];
    }
    float positive = dot(x, call.rows + target * width, width);
    const Negatives negatives = {scores, ids, offsets, call.negatives};
    call.loss[t] = sampled_cross_entropy(negatives, target, call.scale, &positive, call.hit + t);
    if (call.grad_x == nullptr) return;
    float* grad_x = call.grad_x + t * width;
    add_product(positive, x, call.rows + target * width, width, grad_x, grad_rows + target * width);
    for (int64_t m = 0; m < call.negatives; m++)
        add_product(scores[m], x, call.rows + ids[m] * width, width, grad_x, grad_rows + ids[m] * width);
}

}  // namespace

extern "C" {

// Lanes, of which the width must be a multiple.
int64_t segue_lanes() { return LANES; }

// Gradients of the rows are left to be summed over the parts.
void segue_sampled_loss(const SegueSampledLoss* call) {
#pragma omp parallel for schedule(static, 1)
    for (int64_t part = 0; part < call->parts; part++) {
        const int64_t end = call->targets * (part + 1) / call->parts;
        float* grad_rows = call->grad_rows ? call->grad_rows + part * call->items * call->width : nullptr;
        for (int64_t t = call->targets * part / call->parts; t < end; t++)
            do_target(*call, t, call->scores + part * 2 * call->negatives, grad_rows);
    }
}

}  // extern "C"
