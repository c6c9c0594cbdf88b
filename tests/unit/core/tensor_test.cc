#include <cohort/core/tensor.h>
#include <gtest/gtest.h>

#include <vector>

namespace cohort {
namespace {

TEST(Tensor, RowsShareMemory) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const Tensor t = Tensor::Of<float>({3, 2}, values);
  const Tensor middle = t.Rows(1, 2);
  EXPECT_EQ(middle.shape(), (Shape{1, 2}));
  middle.data<float>()[0] = 30;
  EXPECT_EQ(t.data<float>()[2], 30);
  EXPECT_EQ(t.Rows(3, 3).elements(), 0);
  EXPECT_THROW(t.Rows(2, 4), ContractError);
}

TEST(Tensor, EmptyTensorsHaveNoElements) {
  const Tensor t(DType::kInt32, {0, 5});
  EXPECT_EQ(t.bytes(), 0U);
  EXPECT_EQ(t.Rows(0, 0).shape(), (Shape{0, 5}));
}

TEST(Tensor, TypesAndShapesAreChecked) {
  const Tensor t(DType::kFloat32, {2, 3});
  EXPECT_THROW(static_cast<void>(t.data<double>()), ContractError);
  EXPECT_THROW(static_cast<void>(t.Reshaped({7})), ContractError);
  EXPECT_EQ(t.Reshaped({3, 2}).raw(), t.raw());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.raw()) % 64, 0U);
  EXPECT_THROW(Shape({-1}), ContractError);
}

}  // namespace
}  // namespace cohort
