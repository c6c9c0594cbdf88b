#include "cuda/libraries.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort::cuda {
namespace {

// Needs the libraries, not a GPU.
TEST(CudaLibraries, HaveEveryFunctionOrTheOneThatIsMissingIsNamed) {
  const auto calls = LoadLibraries();
  if (!calls.ok()) {
    EXPECT_EQ(calls.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(calls.status().message(), testing::HasSubstr("a GPU needs lib"));
    GTEST_SKIP() << calls.status().message();
  }
  EXPECT_STREQ((*calls)->cublasLtGetStatusName(CUBLAS_STATUS_NOT_SUPPORTED),
               "CUBLAS_STATUS_NOT_SUPPORTED");
  EXPECT_STREQ((*calls)->cudnnGetErrorString(CUDNN_STATUS_SUCCESS), "CUDNN_STATUS_SUCCESS");
  EXPECT_EQ(CudnnStatus(**calls, CUDNN_STATUS_SUCCESS, "a call"), OkStatus());
  EXPECT_THAT(CublasStatus(**calls, CUBLAS_STATUS_INVALID_VALUE, "a product").ToString(),
              testing::HasSubstr("Internal: a product: CUBLAS_STATUS_INVALID_VALUE"));
}

}  // namespace
}  // namespace cohort::cuda
