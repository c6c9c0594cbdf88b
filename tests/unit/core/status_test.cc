#include <cohort/core/status.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace cohort {
namespace {

Result<int> Half(int x) {
  if (x % 2 != 0) {
    return InvalidArgument("odd");
  }
  return x / 2;
}

Status Quarter(int x, int* out) {
  COHORT_ASSIGN_OR_RETURN(const int half, Half(x));
  COHORT_ASSIGN_OR_RETURN(*out, Half(half));
  return {};
}

TEST(Status, MacrosPassErrorsOn) {
  int out = 0;
  EXPECT_TRUE(Quarter(8, &out).ok());
  EXPECT_EQ(out, 2);
  EXPECT_EQ(Quarter(6, &out), InvalidArgument("odd"));
}

TEST(Status, AnnotateKeepsTheCode) {
  EXPECT_EQ(Unavailable("gone").Annotate("worker:1").ToString(), "Unavailable: worker:1: gone");
  EXPECT_TRUE(OkStatus().Annotate("x").ok());
}

TEST(Result, ValueOfAnErrorIsAContractBreach) {
  Result<int> failed = Half(1);
  EXPECT_THROW(static_cast<void>(failed.value()), ContractError);
  EXPECT_THROW(static_cast<void>(Result<int>(OkStatus())), ContractError);
  EXPECT_THROW(OrThrow(Half(3)), StatusError);
}

TEST(Result, ConvertsFromDerived) {
  struct Base {
    virtual ~Base() = default;
  };
  struct Derived : Base {};
  Result<std::unique_ptr<Base>> result = std::make_unique<Derived>();
  EXPECT_TRUE(result.ok());
}

TEST(Status, ErrnoAndExitCodes) {
  EXPECT_EQ(ErrnoStatus(ENOSPC, "write f").code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(ECONNREFUSED, "connect").code(), StatusCode::kUnavailable);
  EXPECT_EQ(ExitCode(OkStatus()), 0);
  EXPECT_EQ(ExitCode(InvalidArgument("")), 2);
  EXPECT_EQ(ExitCode(Unavailable("")), 138);
  EXPECT_EQ(ExitCode(DataLoss("")), 2);
  EXPECT_EQ(ExitCode(Internal("")), 1);
}

}  // namespace
}  // namespace cohort
