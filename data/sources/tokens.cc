#include <cohort/data/tokens.h>

#include <cstring>
#include <memory>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/io/crc32c.h>

namespace cohort::data {
namespace {

class TokenWindowSource final : public Source {
 public:
  TokenWindowSource(Tensor tokens, std::int64_t length, std::int64_t stride)
      : tokens_(std::move(tokens)),
        length_(length),
        stride_(stride),
        features_{{"tokens", DType::kInt32, {length}}, {"next", DType::kInt32, {length}}} {}

  std::int64_t size() const override { return (tokens_.elements() - 1 - length_) / stride_ + 1; }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const std::int32_t* first = tokens_.data<std::int32_t>().data() + index * stride_;
    std::memcpy(rows[0], first, features_[0].bytes());
    std::memcpy(rows[1], first + 1, features_[1].bytes());
    return {};
  }

  std::string Where(std::int64_t index) const override {
    return "tokens from " + std::to_string(index * stride_);
  }
  std::uint64_t Fingerprint() const override {
    return Hash64("tokens " + std::to_string(tokens_.elements()) + " " + std::to_string(length_) +
                      " " + std::to_string(stride_),
                  io::Crc32c({tokens_.raw(), tokens_.bytes()}));
  }

 private:
  Tensor tokens_;
  std::int64_t length_;
  std::int64_t stride_;
  std::vector<FeatureSpec> features_;
};

}  // namespace

ByteVocabulary::ByteVocabulary(std::string_view text) {
  std::array<bool, 256> occurs = {};
  for (const char c : text) {
    occurs[static_cast<unsigned char>(c)] = true;
  }
  tokens_.fill(-1);
  for (std::size_t byte = 0; byte < occurs.size(); ++byte) {
    if (occurs[byte]) {
      tokens_[byte] = size();
      bytes_ += static_cast<char>(byte);
    }
  }
}

Result<Tensor> ByteVocabulary::Encode(std::string_view text) const {
  Tensor tokens(DType::kInt32, {static_cast<std::int64_t>(text.size())});
  const auto out = tokens.data<std::int32_t>();
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    out[i] = tokens_[byte];
    if (out[i] < 0) {
      return InvalidArgument("byte " + std::to_string(byte) + " at place " + std::to_string(i) +
                             " is not one of the vocabulary's " + std::to_string(size()));
    }
  }
  return tokens;
}

std::string ByteVocabulary::Decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    Require(0 <= token && token < size(), "tokens of the vocabulary");
    text += bytes_[static_cast<std::size_t>(token)];
  }
  return text;
}

Result<Dataset> TokenWindows(const Tensor& tokens, std::int64_t length, std::int64_t stride) {
  if (tokens.dtype() != DType::kInt32 || tokens.shape().rank() != 1) {
    return InvalidArgument("token windows of " + std::string(DTypeName(tokens.dtype())) +
                           tokens.shape().ToString() + " [tokens are int32 [n]]");
  }
  if (length < 1 || stride < 1) {
    return InvalidArgument("token windows of length " + std::to_string(length) + ", " +
                           std::to_string(stride) + " apart [both are at least 1]");
  }
  if (tokens.elements() <= length) {
    return InvalidArgument("token windows of length " + std::to_string(length) + " in " +
                           std::to_string(tokens.elements()) +
                           " tokens [it takes one more than the length]");
  }
  return Dataset(std::make_shared<TokenWindowSource>(tokens, length, stride));
}

}  // namespace cohort::data
