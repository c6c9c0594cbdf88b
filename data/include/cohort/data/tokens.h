// Text as tokens, and pieces of a sequence of tokens: what language models read.
//
// Thread rules: values and free functions, any thread.

#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

// The bytes that occur in a text, numbered in their order.
class ByteVocabulary {
 public:
  explicit ByteVocabulary(std::string_view text);

  int size() const { return static_cast<int>(bytes_.size()); }
  // int32 [bytes]. InvalidArgument names the first byte that the vocabulary does not have, and its
  // place.
  Result<Tensor> Encode(std::string_view text) const;
  // Tokens are in [0, size()).
  std::string Decode(std::span<const std::int32_t> tokens) const;

 private:
  std::string bytes_;
  std::array<std::int32_t, 256> tokens_;  // -1: does not occur
};

// Examples are the pieces of `length` tokens that begin at 0, stride, 2 * stride, ...: features
// "tokens" and "next", int32 [length], of which the latter is one token further on. `tokens` is
// int32 [n]; its memory is shared with the caller's handles and must not change any more.
// InvalidArgument: of another type or rank, too few for one piece, or a length or stride below 1.
Result<Dataset> TokenWindows(const Tensor& tokens, std::int64_t length, std::int64_t stride);

// Sentences drawn from a small grammar, a line each: the text of a fresh machine. What can be
// learned is spelling, the kinds of words in their order, and that verbs agree with subjects some
// words before them.
struct GeneratedText {
  std::string text;
  // The entropy of the choices that it took, over the bytes: nobody who has seen all before a
  // character predicts it better on average.
  double nats_per_byte = 0;
};
// At least so many bytes, to the end of a sentence. A pure function of both.
GeneratedText GenerateText(std::int64_t bytes, std::uint64_t seed = 1);

}  // namespace cohort::data
