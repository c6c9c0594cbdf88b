// Generated digits: the data set of a fresh machine. 28 x 28 images of the digits 0 to 9, drawn
// from strokes in several styles, bent, slanted, moved, and disturbed by noise, stray strokes and
// gaps. A linear model stays below 92 % on it, a small convolutional network passes 97 %.
//
// Example i is a pure function of (seed, first + i): no files, equal everywhere. It is drawn when
// it is first read (some tens of microseconds) and then kept: 784 bytes an example.

#pragma once

#include <array>
#include <cstdint>

#include <cohort/data/dataset.h>
#include <cohort/data/idx.h>

namespace cohort::data {

struct DigitsOptions {
  std::int64_t count = 8000;
  std::uint64_t seed = 1;
  // Different ranges [first, first + count) of one seed have no example in common: train and test.
  std::int64_t first = 0;
};

struct Digit {
  std::array<std::uint8_t, 784> pixels;  // 28 rows of 28
  int label = 0;
};
Digit DrawDigit(std::uint64_t seed, std::int64_t index);

// Features "image" (float32 [28,28,1] in [0, 1]) and "label" (int64, a scalar), as
// LoadImageClassification has them.
Dataset GeneratedDigits(const DigitsOptions& options = {});

// Train and test digits of one seed.
ImageClassification GenerateImageClassification(std::int64_t train = 8000, std::int64_t test = 2000,
                                                std::uint64_t seed = 1);

}  // namespace cohort::data
