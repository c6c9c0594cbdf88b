// The generated digits: a pure function, balanced, and neither too easy nor noise.

#include <cohort/data/digits.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>
#include <thread>

namespace cohort::data {
namespace {

TEST(Digits, AreAPureFunctionOfSeedAndIndex) {
  const Digit digit = DrawDigit(1, 17);
  EXPECT_EQ(DrawDigit(1, 17).pixels, digit.pixels);
  EXPECT_EQ(DrawDigit(1, 17).label, digit.label);
  EXPECT_NE(DrawDigit(1, 18).pixels, digit.pixels);
  EXPECT_NE(DrawDigit(2, 17).pixels, digit.pixels);

  const Dataset from_ten = GeneratedDigits({.count = 10, .seed = 1, .first = 10});
  const Example example = OrThrow(from_ten.source().Read(7));
  EXPECT_EQ(example.at("label").data<std::int64_t>()[0], digit.label);
  EXPECT_EQ(example.at("image").shape(), Shape({28, 28, 1}));
  for (std::size_t p = 0; p < digit.pixels.size(); ++p) {
    ASSERT_EQ(example.at("image").data<float>()[p], static_cast<float>(digit.pixels[p]) / 255.F);
  }
  EXPECT_NE(from_ten.Fingerprint(), GeneratedDigits({.count = 10, .seed = 1}).Fingerprint());
  EXPECT_EQ(from_ten.source().Where(7), "generated digit 17 of seed 1");
  EXPECT_THROW(GeneratedDigits({.count = -1}), ContractError);
}

TEST(Digits, AreBalancedAndAllDifferent) {
  std::array<int, 10> counts = {};
  std::set<std::array<std::uint8_t, 784>> seen;
  for (std::int64_t i = 0; i < 500; ++i) {
    const Digit digit = DrawDigit(3, i);
    ++counts.at(static_cast<std::size_t>(digit.label));
    seen.insert(digit.pixels);
  }
  EXPECT_EQ(seen.size(), 500U);
  for (const int count : counts) {
    EXPECT_GT(count, 25);
    EXPECT_LT(count, 80);
  }
}

TEST(Digits, AreDrawnOnceAlsoWhenManyThreadsAskForThem) {
  const Dataset data = GeneratedDigits({.count = 40, .seed = 5});
  std::vector<std::vector<float>> images(4);
  std::vector<std::thread> threads;
  for (auto& image : images) {
    threads.emplace_back([&data, &image] {
      for (std::int64_t i = 0; i < data.size(); ++i) {
        const Example example = OrThrow(data.source().Read(i));
        const auto pixels = example.at("image").data<float>();
        image.insert(image.end(), pixels.begin(), pixels.end());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const auto& image : images) {
    EXPECT_EQ(image, images[0]);
  }
}

// Softmax regression by stochastic gradient descent, on the split that examples use.
class Linear {
 public:
  void Step(std::span<const float> image, std::int64_t label, float rate) {
    const std::array<float, 10> p = Probabilities(image);
    for (std::size_t c = 0; c < 10; ++c) {
      const float g = rate * (p[c] - (c == static_cast<std::size_t>(label) ? 1.F : 0.F));
      for (std::size_t i = 0; i < 784; ++i) {
        weights_[c][i] -= g * image[i];
      }
      bias_[c] -= g;
    }
  }
  std::int64_t Predict(std::span<const float> image) const {
    const std::array<float, 10> p = Probabilities(image);
    return std::max_element(p.begin(), p.end()) - p.begin();
  }

 private:
  std::array<float, 10> Probabilities(std::span<const float> image) const {
    std::array<float, 10> p = {};
    float sum = 0;
    for (std::size_t c = 0; c < 10; ++c) {
      std::array<float, 8> partial = {};
      for (std::size_t i = 0; i < 784; ++i) {
        partial[i % 8] += weights_[c][i] * image[i];
      }
      p[c] = std::exp(std::accumulate(partial.begin(), partial.end(), bias_[c]));
      sum += p[c];
    }
    for (float& value : p) {
      value /= sum;
    }
    return p;
  }

  std::array<std::array<float, 784>, 10> weights_ = {};
  std::array<float, 10> bias_ = {};
};

TEST(Digits, ALinearModelLearnsThemButNotWell) {
  const ImageClassification digits = GenerateImageClassification();
  EXPECT_EQ(digits.train.size(), 8000);
  EXPECT_EQ(digits.test.size(), 2000);
  EXPECT_EQ(digits.num_classes, 10);
  Linear model;
  for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
    auto batches = OrThrow(digits.train.Shuffle(1).Batch(100).Iterate({.epoch = epoch}));
    while (const auto batch = OrThrow(batches->Next())) {
      for (std::int64_t i = 0; i < batch->size; ++i) {
        model.Step((*batch)["image"].Rows(i, i + 1).data<float>(),
                   (*batch)["label"].data<std::int64_t>()[static_cast<std::size_t>(i)],
                   0.02F / static_cast<float>(epoch + 1));
      }
    }
  }
  std::int64_t correct = 0;
  for (std::int64_t i = 0; i < digits.test.size(); ++i) {
    const Example example = OrThrow(digits.test.source().Read(i));
    correct += model.Predict(example.at("image").data<float>()) ==
               example.at("label").data<std::int64_t>()[0];
  }
  const double accuracy = static_cast<double>(correct) / 2000;
  RecordProperty("accuracy", std::to_string(accuracy));
  EXPECT_LT(accuracy, 0.92);
  EXPECT_GT(accuracy, 0.75);
}

}  // namespace
}  // namespace cohort::data
