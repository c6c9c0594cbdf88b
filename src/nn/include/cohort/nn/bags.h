// Bags: any number of rows for each example, combined into one.
//
//   const data::Ragged& words = batch.lists("words");
//   Variable y = Combine(embedding(tape, words.values), words.splits, Combiner::kMean);
//
// So with the rows of every Embedding: a dense table with dense or sparse gradient, or a sparse
// table of this process or of parameter servers. A row that a bag has twice counts twice.

#pragma once

#include <cohort/nn/tape.h>

namespace cohort::nn {

// Of a bag with rows e_i and weights w_i (1 each where none are given):
enum class Combiner {
  kSum,    // sum w_i e_i
  kMean,   // sum w_i e_i / sum w_i
  kSqrtN,  // sum w_i e_i / sqrt(sum w_i^2)
};

// rows [values, width]: [batch, width], of float32. splits: int64 [batch + 1], from 0 to the number
// of values, in the host's memory; bag b has rows [splits[b], splits[b + 1]). weights: float32
// [values], in the host's memory, without a gradient. A bag that is empty, or whose weights are all
// 0, gives zeros. InvalidArgument from Finish: splits that are none, weights that are not finite,
// or that add up to 0 where the mean divides by that.
Variable Combine(const Variable& rows, const Tensor& splits, Combiner combiner,
                 const Tensor& weights = {});

}  // namespace cohort::nn
