#include <cohort/io/crc32c.h>
#include <gtest/gtest.h>

#include <string>

#include "testing/hex.h"

namespace cohort::io {
namespace {

// RFC 3720, appendix B.4.
TEST(Crc32c, PublishedVectors) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  std::string up;
  for (int i = 0; i < 32; ++i) {
    up += static_cast<char>(i);
  }
  EXPECT_EQ(Crc32c(up), 0x46dd794eU);
  EXPECT_EQ(Crc32c(std::string(up.rbegin(), up.rend())), 0x113fdb5cU);
}

TEST(Crc32c, MaskedVectors) {
  EXPECT_EQ(MaskCrc(Crc32c("")), 0xa282ead8U);
  EXPECT_EQ(MaskCrc(Crc32c(testing::FromHex("1a11") + "CRC test, one two")), 0x5794d08aU);
  EXPECT_EQ(UnmaskCrc(MaskCrc(0x12345678U)), 0x12345678U);
}

TEST(Crc32c, ContinuesWhereItStopped) {
  const std::string text = "the quick brown fox jumps over the lazy dog";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Crc32c(text.substr(cut), Crc32c(text.substr(0, cut))), Crc32c(text));
  }
}

}  // namespace
}  // namespace cohort::io
