#include <cohort/data/tokens.h>

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace cohort::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Tensor Numbers(std::int32_t count) {
  std::vector<std::int32_t> numbers;
  for (std::int32_t i = 0; i < count; ++i) {
    numbers.push_back(i);
  }
  return Tensor::Of<std::int32_t>({count}, numbers);
}

std::vector<std::int32_t> Read(const Dataset& windows, std::int64_t index, const char* feature) {
  const Example example = OrThrow(windows.source().Read(index));
  const auto values = example.at(feature).data<std::int32_t>();
  return {values.begin(), values.end()};
}

TEST(ByteVocabulary, NumbersTheBytesThatOccur) {
  const ByteVocabulary vocabulary("hello\n\xff");
  EXPECT_EQ(vocabulary.size(), 6);
  const Tensor tokens = OrThrow(vocabulary.Encode("\nhole\xff"));
  EXPECT_THAT(tokens.data<std::int32_t>(), ElementsAre(0, 2, 4, 3, 1, 5));
  EXPECT_EQ(vocabulary.Decode(tokens.data<std::int32_t>()), "\nhole\xff");
  const Status missing = vocabulary.Encode("he!").status();
  EXPECT_EQ(missing.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(missing.message(), HasSubstr("byte 33 at place 2"));
  EXPECT_EQ(ByteVocabulary("").size(), 0);
  const std::int32_t none = 6;
  EXPECT_THROW(vocabulary.Decode({&none, 1}), ContractError);
}

TEST(TokenWindows, ArePiecesAndWhatFollowsEachToken) {
  const Dataset windows = OrThrow(TokenWindows(Numbers(10), 3, 2));
  ASSERT_EQ(windows.size(), 4);  // from 0, 2, 4 and 6
  EXPECT_THAT(Read(windows, 0, "tokens"), ElementsAre(0, 1, 2));
  EXPECT_THAT(Read(windows, 0, "next"), ElementsAre(1, 2, 3));
  EXPECT_THAT(Read(windows, 3, "tokens"), ElementsAre(6, 7, 8));
  EXPECT_THAT(Read(windows, 3, "next"), ElementsAre(7, 8, 9));
  EXPECT_EQ(OrThrow(TokenWindows(Numbers(4), 3, 1)).size(), 1);
  EXPECT_EQ(OrThrow(TokenWindows(Numbers(5), 3, 1)).size(), 2);
  EXPECT_EQ(OrThrow(TokenWindows(Numbers(6), 3, 3)).size(), 1);
  EXPECT_EQ(OrThrow(TokenWindows(Numbers(7), 3, 3)).size(), 2);
}

TEST(TokenWindows, SayWhatIsWrong) {
  const auto message = [](const Tensor& tokens, std::int64_t length, std::int64_t stride) {
    const Status status = TokenWindows(tokens, length, stride).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_THAT(message(Numbers(3), 3, 1), HasSubstr("length 3 in 3 tokens"));
  EXPECT_THAT(message(Numbers(3), 0, 1), HasSubstr("length 0"));
  EXPECT_THAT(message(Numbers(3), 1, 0), HasSubstr("0 apart"));
  EXPECT_THAT(message(Tensor(DType::kInt64, {5}), 1, 1), HasSubstr("int64[5]"));
}

TEST(TokenWindows, DifferInTheirFingerprints) {
  std::set<std::uint64_t> seen;
  for (const auto& [count, length, stride] :
       {std::array{10, 3, 2}, std::array{10, 3, 1}, std::array{10, 2, 2}, std::array{11, 3, 2}}) {
    seen.insert(OrThrow(TokenWindows(Numbers(count), length, stride)).Fingerprint());
  }
  EXPECT_EQ(seen.size(), 4U);
  EXPECT_EQ(OrThrow(TokenWindows(Numbers(10), 3, 2)).Fingerprint(),
            OrThrow(TokenWindows(Numbers(10), 3, 2)).Fingerprint());
}

TEST(GeneratedText, IsAFunctionOfItsSeed) {
  const GeneratedText text = GenerateText(10'000, 1);
  EXPECT_EQ(text.text, GenerateText(10'000, 1).text);
  EXPECT_NE(text.text, GenerateText(10'000, 2).text);
  EXPECT_GE(text.text.size(), 10'000U);
  EXPECT_LT(text.text.size(), 10'100U);
  EXPECT_EQ(text.text.back(), '\n');
  const auto sentences = static_cast<double>(std::count(text.text.begin(), text.text.end(), '\n'));
  EXPECT_NEAR(text.nats_per_byte * static_cast<double>(text.text.size()) / sentences,
              std::log(2.0 * 4 * 8 * 12 * 8 * 12 * 6), 1e-6);
  EXPECT_EQ(GenerateText(0).text, "");
}

// Of all sentences none is another one: what was chosen can be read off, so that the entropy of the
// choices is the text's.
TEST(GeneratedText, VerbsAgreeWithSubjects) {
  const GeneratedText text = GenerateText(200'000);
  std::size_t begin = 0;
  while (begin < text.text.size()) {
    const std::size_t end = text.text.find('\n', begin);
    const std::string sentence = text.text.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t the = sentence.find(" the ");
    const std::size_t a = sentence.find(" a ");
    ASSERT_LT(the, a) << sentence;
    const std::size_t verb = sentence.rfind(' ', a - 1);
    ASSERT_NE(sentence[a - 1] == 's', sentence[verb - 1] == 's') << sentence;
  }
}

}  // namespace
}  // namespace cohort::data
