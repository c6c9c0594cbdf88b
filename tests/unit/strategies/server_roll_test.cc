// Who a chief knows the servers to be.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "parameter_server/chief/server_roll.h"
#include "parameter_server/job_check.h"

namespace cohort::ps {
namespace {

ServerRoll ThreeServers() {
  ServerRoll roll(3);
  for (int s = 0; s < 3; ++s) {
    roll.Enter(s, static_cast<std::uint64_t>(11 + s));
  }
  return roll;
}

TEST(ServerRoll, NobodyIsKnownAtFirstAndNobodyLost) {
  const ServerRoll roll(2);
  EXPECT_EQ(roll.process(1), 0U);
  EXPECT_TRUE(roll.complete());
  EXPECT_TRUE(roll.why().ok());
  EXPECT_EQ(roll.loss(0), nullptr);
  EXPECT_EQ(roll.NamesOfLost(), "");
}

TEST(ServerRoll, ALostServerIsLostUntilAnotherProcessIsInItsPlace) {
  ServerRoll roll = ThreeServers();
  roll.Lost(2, Unavailable("the first loss"));
  roll.Lost(2, Unavailable("the same server again"));
  roll.Lost(0, Unavailable("another server"));
  EXPECT_EQ(roll.losses(), 3);
  EXPECT_EQ(roll.NamesOfLost(), "ps:0, ps:2");
  EXPECT_EQ(roll.why().message(), "another server");
  ASSERT_NE(roll.loss(2), nullptr);
  EXPECT_EQ(roll.loss(2)->why.message(), "the first loss");

  roll.Enter(0, 21);
  EXPECT_EQ(roll.process(0), 21U);
  EXPECT_FALSE(roll.complete());
  roll.Enter(2, 23);
  EXPECT_TRUE(roll.complete());
  EXPECT_EQ(roll.losses(), 3);
}

TEST(ServerRoll, AnEpochThatAServerSaysIsANumberFromOne) {
  EXPECT_EQ(OrThrow(ParseEpoch("key", "1")), 1U);
  EXPECT_EQ(OrThrow(ParseEpoch("key", "18446744073709551614")), 18446744073709551614U);
  for (const std::string value :
       {"", "0", "-1", " 7", "7 ", "7x", "0x7", "18446744073709551615", "18446744073709551616"}) {
    const Status status = ParseEpoch("parameter_server/address/0/9/epoch", value).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << value;
    EXPECT_THAT(status.message(),
                ::testing::HasSubstr("parameter_server/address/0/9/epoch of the coordination "
                                     "service says '" +
                                     value + "'"));
  }
}

}  // namespace
}  // namespace cohort::ps
