// What rounding takes of the gradients of rows comes with the next ones; of no more rows than was
// asked for, and of pushes that counted.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <list>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

#include "parameter_server/rows/row_residuals.h"
#include "row_feedback_model.h"

namespace cohort::ps {
namespace {

using Wire = TableSpec::Wire;

TableSpec Spec(Wire wire, std::int64_t dim, std::uint64_t rows = 1000) {
  TableSpec spec;
  spec.name = "items";
  spec.dim = dim;
  spec.wire = wire;
  spec.wire_feedback = rows;
  return spec;
}

struct Push {
  std::vector<std::uint64_t> ids;
  std::vector<float> gradients;
  double weight = 1;
  std::vector<std::uint32_t> counts{};  // empty: 1 each
};

// What arrives of a push; staged.
std::vector<float> Staged(RowResiduals& residuals, const TableSpec& spec, Push push) {
  const auto dim = static_cast<std::size_t>(spec.dim);
  push.counts.resize(push.ids.size(), 1);
  std::vector<std::byte> bytes(EncodedBytes(spec.wire, dim, push.ids.size()), std::byte{0xAA});
  EXPECT_FALSE(
      residuals.Encode(push.ids, push.counts, push.weight, push.gradients, bytes).has_value());
  std::vector<float> arrived(push.gradients.size());
  DecodeRows(spec.wire, dim, bytes, arrived);
  for (std::size_t i = EncodedRowBytes(spec.wire, dim) * push.ids.size(); i < bytes.size(); ++i) {
    EXPECT_EQ(bytes[i], std::byte{0});
  }
  return arrived;
}
std::vector<float> Settled(RowResiduals& residuals, const TableSpec& spec, const Push& push) {
  std::vector<float> arrived = Staged(residuals, spec, push);
  residuals.Settle();
  return arrived;
}
// Of a table of one value a row, up to the rounding of the peek.
float KeptOf(RowResiduals& residuals, const TableSpec& spec, std::uint64_t id) {
  const float kept = Staged(residuals, spec, {.ids = {id}, .gradients = {0}})[0];
  residuals.Forget();
  return kept;
}

// The same gradient a thousand times, of which rounding takes the same each time.
TEST(RowResiduals, SumsArriveWithinOneRounding) {
  constexpr int kSteps = 1000;
  const std::vector<float> gradient = {100, 0.3F, -0.1F};
  for (const Wire wire : {Wire::kBFloat16, Wire::kFloat16, Wire::kInt8}) {
    SCOPED_TRACE(WireName(wire));
    const TableSpec spec = Spec(wire, 3);
    RowResiduals residuals(spec);
    std::array<double, 3> arrived{};
    std::array<double, 3> plain{};
    const std::vector<float> rounded = Rounded(wire, gradient);
    for (int step = 0; step < kSteps; ++step) {
      const auto row = Settled(residuals, spec, {.ids = {7}, .gradients = gradient});
      for (std::size_t k = 0; k < 3; ++k) {
        arrived[k] += row[k];
        plain[k] += rounded[k];
      }
    }
    for (std::size_t k = 0; k < 3; ++k) {
      const double exact = static_cast<double>(gradient[k]) * kSteps;
      const double one = wire == Wire::kInt8
                             ? 101.0 / 254
                             : std::abs(gradient[k]) * (wire == Wire::kFloat16 ? 0x1p-10 : 0x1p-7);
      EXPECT_NEAR(arrived[k], exact, one) << k;
      if (k > 0) {
        EXPECT_GT(std::abs(plain[k] - exact), 10 * one) << k << ": nothing was lost";
      }
    }
    EXPECT_EQ(residuals.stats().dropped, 0U);
  }
}

TEST(RowResiduals, TheLeastRecentlyPushedAreDroppedForWantOfRoom) {
  const TableSpec spec = Spec(Wire::kBFloat16, 1, 3);
  RowResiduals residuals(spec);
  const float lossy = 1 + 0x1p-10F;
  Settled(residuals, spec, {.ids = {1, 2, 3}, .gradients = {lossy, lossy, lossy}});
  Settled(residuals, spec, {.ids = {1}, .gradients = {lossy}});
  EXPECT_EQ(residuals.stats().rows, 3U);
  EXPECT_EQ(residuals.stats().dropped, 0U);
  Settled(residuals, spec, {.ids = {4}, .gradients = {lossy}});
  EXPECT_EQ(residuals.stats().rows, 3U);
  EXPECT_EQ(residuals.stats().dropped, 1U);
  EXPECT_EQ(KeptOf(residuals, spec, 1), 2 * 0x1p-10F) << "twice the same";
  EXPECT_EQ(KeptOf(residuals, spec, 2), 0) << "the oldest";
  EXPECT_EQ(KeptOf(residuals, spec, 3), 0x1p-10F);
  EXPECT_EQ(KeptOf(residuals, spec, 4), 0x1p-10F);
  // To look at one is not to use it, and one of which nothing is left makes room.
  Settled(residuals, spec, {.ids = {1}, .gradients = {1 - 2 * 0x1p-10F}});
  EXPECT_EQ(residuals.stats().rows, 2U);
  Settled(residuals, spec, {.ids = {5}, .gradients = {lossy}});
  EXPECT_EQ(residuals.stats().dropped, 1U);
  Settled(residuals, spec, {.ids = {6}, .gradients = {lossy}});
  EXPECT_EQ(residuals.stats().dropped, 2U);
  EXPECT_EQ(KeptOf(residuals, spec, 3), 0);
  // More in one push than there is room for.
  Settled(residuals, spec, {.ids = {11, 12, 13, 14, 15}, .gradients = std::vector(5, lossy)});
  EXPECT_EQ(residuals.stats().rows, 3U);
  EXPECT_EQ(residuals.stats().dropped, 2U + 5U);
  EXPECT_EQ(KeptOf(residuals, spec, 15), 0x1p-10F);
}

// Ids that come, go and come back, in tables that grow and that are full.
TEST(RowResiduals, EqualAMapWithTheSameBound) {
  for (const auto& [bound, all] : {std::pair{200U, 3000U}, std::pair{5000U, 3000U}}) {
    const TableSpec spec = Spec(Wire::kInt8, 3, bound);
    RowResiduals residuals(spec);
    FeedbackModel model{.wire = spec.wire};
    std::list<std::uint64_t> order;  // the most recent first
    std::uint64_t dropped = 0;
    const Philox random(bound, "pushes");
    std::uint64_t bytes = 0;
    for (std::uint64_t push = 0; push < 1500; ++push) {
      Push call;
      while (call.ids.size() < 1 + push % 40) {
        const std::uint64_t draw = push * 100 + call.ids.size() * 2;
        const float u = random.Uniform(draw, call.ids.size());
        const auto id = static_cast<std::uint64_t>(u * u * static_cast<float>(all)) << 40;
        if (std::ranges::find(call.ids, id) != call.ids.end()) {
          break;
        }
        call.ids.push_back(id);
        // Zeros, whose residuals arrive in the end, among others.
        for (std::uint64_t k = 0; k < 3; ++k) {
          const bool zero = random.Below(3, draw, 50) == 0;
          call.gradients.push_back(zero ? 0 : std::ldexp(random.Normal(draw, k + 60), 3));
        }
      }
      const bool counts = push % 7 != 3;
      const std::vector<float> arrived = Staged(residuals, spec, call);
      for (std::size_t i = 0; i < call.ids.size(); ++i) {
        const std::vector<float> gradient(call.gradients.begin() + static_cast<long>(3 * i),
                                          call.gradients.begin() + static_cast<long>(3 * i + 3));
        const std::vector<float> expected = model.Push(call.ids[i], gradient, 1, counts);
        for (std::size_t k = 0; k < 3; ++k) {
          ASSERT_EQ(arrived[3 * i + k], expected[k]) << "push " << push << ", id " << call.ids[i];
        }
      }
      if (!counts) {
        residuals.Forget();
        continue;
      }
      residuals.Settle();
      const std::set<std::uint64_t> there(order.begin(), order.end());
      for (const bool old : {true, false}) {
        for (const std::uint64_t id : call.ids) {
          if (there.contains(id) != old) {
            continue;
          }
          order.remove(id);
          if (std::ranges::any_of(model.kept[id], [](float value) { return value != 0; })) {
            order.push_front(id);
          } else {
            model.kept.erase(id);
          }
        }
      }
      while (order.size() > bound) {
        model.kept.erase(order.back());
        order.pop_back();
        ++dropped;
      }
      ASSERT_EQ(residuals.stats().rows, order.size()) << push;
      ASSERT_EQ(residuals.stats().dropped, dropped) << push;
      if (push == 1000) {
        bytes = residuals.stats().bytes;
      }
    }
    EXPECT_EQ(dropped > 0, bound < all);
    if (bound < all) {
      EXPECT_EQ(residuals.stats().bytes, bytes) << "a full table takes no more memory";
    }
  }
}

TEST(RowResiduals, WhatDoesNotArriveLeavesThemAlone) {
  const TableSpec spec = Spec(Wire::kBFloat16, 1);
  RowResiduals residuals(spec);
  const float lossy = 1 + 0x1p-10F;
  Settled(residuals, spec, {.ids = {1}, .gradients = {lossy}});
  Staged(residuals, spec, {.ids = {1, 2}, .gradients = {lossy, lossy}});
  residuals.Forget();  // refused, say
  EXPECT_EQ(KeptOf(residuals, spec, 1), 0x1p-10F);
  EXPECT_EQ(KeptOf(residuals, spec, 2), 0);
  // Nothing arrives of a weight of 0, nor of one beyond float32, nor where a row is not finite.
  for (const double weight : {0.0, 1e60, 1e-60}) {
    const auto arrived =
        Settled(residuals, spec, {.ids = {1, 3}, .gradients = {lossy, lossy}, .weight = weight});
    EXPECT_EQ(arrived, (std::vector<float>{1, 1})) << weight;
    EXPECT_EQ(KeptOf(residuals, spec, 1), 0x1p-10F) << weight;
  }
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const auto arrived = Settled(residuals, spec, {.ids = {1, 3}, .gradients = {value, lossy}});
    EXPECT_FALSE(std::isfinite(arrived[0]));
    EXPECT_EQ(arrived[1], 1);
    EXPECT_EQ(KeptOf(residuals, spec, 1), 0x1p-10F);
    Settled(residuals, spec, {.ids = {3}, .gradients = {1 - 0x1p-10F}});  // nothing is left of it
  }
  EXPECT_EQ(residuals.stats().rows, 1U);
}

TEST(RowResiduals, AGradientThatFitsIsNotRefusedForWhatAnotherLeft) {
  const TableSpec spec = Spec(Wire::kFloat16, 1);
  RowResiduals residuals(spec);
  EXPECT_EQ(Settled(residuals, spec, {.ids = {1}, .gradients = {65519}})[0], 65504);
  // 15 are kept, with which 65519 would be infinite.
  EXPECT_EQ(Settled(residuals, spec, {.ids = {1}, .gradients = {65519}})[0], 65504);
  EXPECT_EQ(Settled(residuals, spec, {.ids = {1}, .gradients = {0}})[0], 30);
  std::array<float, 2> sums = {1, 65520};
  std::array<std::byte, 4> bytes{};
  EXPECT_EQ(residuals.Encode(std::array<std::uint64_t, 2>{1, 2}, std::array<std::uint32_t, 2>{1, 1},
                             1, sums, bytes),
            1U);
}

TEST(RowResiduals, ARowOfZerosBringsWhatWasKept) {
  const TableSpec spec = Spec(Wire::kInt8, 3);
  RowResiduals residuals(spec);
  EXPECT_EQ(Settled(residuals, spec, {.ids = {1}, .gradients = {0, 0, 0}}),
            (std::vector<float>{0, 0, 0}));
  EXPECT_EQ(residuals.stats().rows, 0U);
  EXPECT_EQ(Settled(residuals, spec, {.ids = {1}, .gradients = {127, 0.25F, 0}}),
            (std::vector<float>{127, 0, 0}));
  EXPECT_EQ(residuals.stats().rows, 1U);
  EXPECT_EQ(Settled(residuals, spec, {.ids = {1}, .gradients = {0, 0, 0}}),
            (std::vector<float>{0, 0.25F, 0}));
  EXPECT_EQ(residuals.stats().rows, 0U);
}

// By weight, and by count where gradients are divided by it: as much as would have been applied.
TEST(RowResiduals, AreInUnitsOfWhatIsApplied) {
  for (const bool mean : {false, true}) {
    TableSpec spec = Spec(Wire::kBFloat16, 1);
    spec.mean_of_occurrences = mean;
    RowResiduals residuals(spec);
    const float lossy = 1 + 0x1p-10F;
    Settled(residuals, spec, {.ids = {1}, .gradients = {lossy}, .weight = 2, .counts = {4}});
    const float applied = 0x1p-10F / 2 / (mean ? 4 : 1);
    EXPECT_EQ(KeptOf(residuals, spec, 1), applied);
    const auto arrived =
        Staged(residuals, spec, {.ids = {1}, .gradients = {0}, .weight = 8, .counts = {2}});
    EXPECT_EQ(arrived[0] / 8 / (mean ? 2 : 1), applied);
  }
}

// ---- Which pushes count -------------------------------------------------------------------------

class Feedback {
 public:
  explicit Feedback(int backup_workers = 0, bool copies = false) {
    ModelSpec model;
    model.tables = {spec_};
    model.consistency.backup_workers = backup_workers;
    model.copies = copies;
    feedback_ = std::make_unique<RowFeedback>(model);
  }
  // One more of what rounding takes, under the number; the push ends well or not.
  float Push(std::uint64_t number, const RowClient::Part* part = nullptr, bool well = true) {
    const std::array<std::uint64_t, 1> numbers = {number};
    feedback_->Begin(numbers, part);
    const float arrived =
        Staged(*feedback_->Of(0), spec_, {.ids = {1}, .gradients = {1 + 0x1p-10F}})[0];
    feedback_->End(well ? OkStatus() : InvalidArgument("refused"));
    return arrived;
  }
  // In units of that; what is staged is over then.
  float Kept() {
    feedback_->Begin(std::array<std::uint64_t, 1>{1'000'000}, nullptr);
    return KeptOf(*feedback_->Of(0), spec_, 1) / 0x1p-10F;
  }
  void Elect(std::uint64_t round, std::uint32_t attempt, std::uint32_t part) {
    Commit commit;
    commit.set_round(round);
    commit.set_attempt(attempt);
    commit.add_winners(part);
    feedback_->Elected(commit);
  }

 private:
  TableSpec spec_ = Spec(Wire::kBFloat16, 1);
  std::unique_ptr<RowFeedback> feedback_;
};

TEST(RowFeedback, APushCountsThatSucceeds) {
  Feedback feedback;
  feedback.Push(0);
  feedback.Push(1, nullptr, /*well=*/false);
  feedback.Push(2);
  EXPECT_EQ(feedback.Kept(), 2);
}

TEST(RowFeedback, OfARoundTheLastAttempt) {
  Feedback feedback;
  const std::array<RowClient::Part, 3> parts = {
      {{.round = 1}, {.round = 1, .attempt = 1}, {.round = 2}}};
  for (std::uint64_t i = 0; i < parts.size(); ++i) {
    feedback.Push(i, &parts[i]);
  }
  EXPECT_EQ(feedback.Kept(), 2);
}

TEST(RowFeedback, WithBackupWorkersAPartThatIsElected) {
  const RowClient::Part first{.round = 1, .attempt = 1, .part = 2, .parts = 3};
  for (const auto& [attempt, part, counts] :
       {std::tuple{1U, 2U, true}, std::tuple{1U, 0U, false}, std::tuple{0U, 2U, false}}) {
    Feedback feedback(/*backup_workers=*/1);
    feedback.Push(0, &first);
    feedback.Elect(1, attempt, part);
    feedback.Elect(1, attempt, part);  // told again
    EXPECT_EQ(feedback.Kept(), counts ? 1 : 0);
  }
  Feedback late(/*backup_workers=*/1);
  late.Push(0, &first);
  late.Elect(2, 1, 2);  // of its own nobody tells
  EXPECT_EQ(late.Kept(), 0);
}

TEST(RowFeedback, OneThatIsSentAgainIsTheSame) {
  Feedback feedback(0, /*copies=*/true);
  for (std::uint64_t number = 0; number < 9; ++number) {
    const float arrived = feedback.Push(number);
    EXPECT_EQ(feedback.Push(number), arrived);
    EXPECT_EQ(feedback.Push(number, nullptr, /*well=*/false), arrived);
    EXPECT_EQ(feedback.Push(number), arrived);
  }
  // A step of bfloat16 is 8 of them.
  EXPECT_EQ(feedback.Kept(), 9 - 8);
}

TEST(RowFeedback, NothingWhereNothingIsRounded) {
  ModelSpec model;
  model.tables = {Spec(Wire::kFloat32, 2), Spec(Wire::kInt8, 2, 0), Spec(Wire::kInt8, 2, 5)};
  const RowFeedback feedback(model);
  EXPECT_EQ(feedback.Of(0), nullptr);
  EXPECT_EQ(feedback.Of(1), nullptr);
  EXPECT_NE(feedback.Of(2), nullptr);
}

}  // namespace
}  // namespace cohort::ps
