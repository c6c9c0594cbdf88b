// Zipf: ranks whose popularity falls with a power of the rank, as ids of people, pages and products
// do.
//
// Source: rejection-inversion. Hörmann, Derflinger, "Rejection-inversion to generate variates from
// monotone discrete distributions", ACM TOMACS 6, 1996. No table: a draw costs two powers at least,
// little more than one try on average, for any number of ranks.
//
// Thread rules: immutable.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace cohort {

class Zipf {
 public:
  // Rank k of [1, ranks] with probability proportional to k^-exponent; exponent >= 0.
  Zipf(std::uint64_t ranks, double exponent)
      : exponent_(exponent), ranks_(static_cast<double>(std::max<std::uint64_t>(ranks, 1))) {
    low_ = Integral(1.5) - 1;
    high_ = Integral(ranks_ + 0.5);
    accept_ = 2 - Inverse(Integral(2.5) - Density(2));
  }

  std::uint64_t ranks() const { return static_cast<std::uint64_t>(ranks_); }

  // `uniform()` gives the next number of [0, 1).
  template <typename Uniform>
  std::uint64_t operator()(Uniform&& uniform) const {
    for (;;) {
      const double u = high_ + uniform() * (low_ - high_);
      const double x = Inverse(u);
      const double k = std::clamp(std::floor(x + 0.5), 1.0, ranks_);
      if (k - x <= accept_ || u >= Integral(k + 0.5) - Density(k)) {
        return static_cast<std::uint64_t>(k);
      }
    }
  }

 private:
  double Density(double x) const { return std::exp(-exponent_ * std::log(x)); }
  // Of the density from 1, (x^(1-s) - 1) / (1 - s), and its inverse; also for s = 1.
  double Integral(double x) const {
    const double log = std::log(x);
    const double t = (1 - exponent_) * log;
    return log * (std::abs(t) > 1e-8 ? std::expm1(t) / t : 1 + t / 2);
  }
  double Inverse(double y) const {
    const double t = std::max(y * (1 - exponent_), -1.0);
    return std::exp(y * (std::abs(t) > 1e-8 ? std::log1p(t) / t : 1 - t / 2));
  }

  double exponent_;
  double ranks_;
  double low_ = 0, high_ = 0;
  double accept_ = 0;
};

}  // namespace cohort
