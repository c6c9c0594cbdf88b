#include <cohort/io/compression.h>
#include <gtest/gtest.h>

#include <random>

#include "testing/temp_dir.h"

namespace cohort::io {
namespace {

std::string Text(std::size_t bytes) {
  std::string text;
  for (std::size_t i = 0; text.size() < bytes; ++i) {
    text += std::to_string(i * i) + ",";
  }
  return text;
}

TEST(Compression, RoundTripOfManySizes) {
  for (const std::size_t size : {0, 1, 1000, 300'000, 3'000'000}) {
    const std::string text = Text(size);
    EXPECT_EQ(*Gunzip(Gzip(text), "x"), text);
  }
}

TEST(Compression, ManyZerosComeOutOfFewBytes) {
  // All input is taken in long before the last output is out.
  const std::string zeros(5'000'000, '\0');
  EXPECT_EQ(*Gunzip(Gzip(zeros), "x"), zeros);
}

TEST(Compression, MembersReadAsOne) {
  EXPECT_EQ(*Gunzip(Gzip("one ") + Gzip("") + Gzip("two"), "x"), "one two");
  EXPECT_EQ(*Gunzip(Gzip("one") + std::string(512, '\0'), "x"), "one") << "padding is no member";
}

// Members end at every place of what is read at once (64 KiB), with what little or much behind
// them.
TEST(Compression, MembersEndAnywhere) {
  std::mt19937 random(4);
  std::string noise(200'000, '\0');
  for (char& byte : noise) {
    byte = static_cast<char>(random());
  }
  const std::string tail = Gzip("the end");
  for (std::size_t end = 65536 - 12; end <= 65536 + 12; ++end) {
    // A member of stored bytes, so that its length can be chosen: about 30 bytes of frame.
    std::string first = Gzip(noise.substr(0, end - 30));
    while (first.size() < end) {
      first = Gzip(noise.substr(0, end - 30 + end - first.size()));
    }
    const std::string content = OrThrow(Gunzip(first, "first"));
    ASSERT_EQ(OrThrow(Gunzip(first + tail, "x")), content + "the end") << end;
    ASSERT_EQ(OrThrow(Gunzip(first + tail + std::string(9, '\0'), "x")), content + "the end")
        << end;
    ASSERT_FALSE(Gunzip(first + tail.substr(0, 5), "x").ok()) << end;
  }
  std::string packed;
  std::string all;
  for (int i = 0; i < 200; ++i) {
    const std::size_t size = random() % (i % 10 == 0 ? 150'000 : 900);
    const std::string member =
        i % 3 == 0 ? noise.substr(0, size) : std::string(size, static_cast<char>('a' + i % 26));
    packed += Gzip(member);
    all += member;
  }
  EXPECT_EQ(OrThrow(Gunzip(packed, "x")), all);
}

// A header with every field that there is, at every place of what is read at once (64 KiB).
TEST(Compression, HeadersOfAnyLengthEndAnywhere) {
  const std::string plain = Gzip("the end");
  const std::string extra(300, '\x05');
  std::string head = plain.substr(0, 10);
  head[3] = 0x04 | 0x08 | 0x10;  // FEXTRA, FNAME, FCOMMENT (RFC 1952)
  head += std::string("\x2c\x01", 2) + extra + std::string("name\0a comment\0", 15);
  const std::string with_all = head + plain.substr(10);
  ASSERT_EQ(OrThrow(Gunzip(with_all, "x")), "the end");
  std::string noise(66'000, '\0');
  std::mt19937 random(9);
  for (char& byte : noise) {
    byte = static_cast<char>(random());
  }
  for (std::size_t at = 65536 - 340; at <= 65536; at += at < 65500 ? 7 : 1) {
    std::string first = Gzip(noise.substr(0, at - 40));
    while (first.size() < at) {
      first = Gzip(noise.substr(0, at - 40 + at - first.size()));
    }
    const std::string content = OrThrow(Gunzip(first, "first"));
    ASSERT_EQ(OrThrow(Gunzip(first + with_all, "x")), content + "the end") << at;
  }
}

TEST(Compression, EmptyMembersAreCheckedToo) {
  std::string many;
  for (int i = 0; i < 5000; ++i) {
    many += Gzip("");
  }
  EXPECT_EQ(OrThrow(Gunzip(many + Gzip("x") + many, "x")), "x");
  for (std::size_t at = 1; at <= 8; ++at) {
    std::string bad = Gzip("");
    bad[bad.size() - at] = 1;
    EXPECT_EQ(Gunzip(many + bad + many, "x").status().code(), StatusCode::kDataLoss) << at;
  }
}

TEST(Compression, EveryTruncationIsAnErrorThatNamesTheFile) {
  const std::string packed = Gzip(Text(2000));
  for (std::size_t size = 0; size < packed.size(); ++size) {
    const auto result = Gunzip(packed.substr(0, size), "images.gz");
    ASSERT_EQ(result.status().code(), StatusCode::kDataLoss) << size;
    EXPECT_NE(result.status().message().find("images.gz"), std::string::npos);
    EXPECT_NE(result.status().message().find("cut off"), std::string::npos);
  }
}

TEST(Compression, DamageIsAnError) {
  const std::string packed = Gzip(Text(2000));
  for (std::size_t at = 10; at < packed.size(); ++at) {  // from the end of the header
    std::string bad = packed;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_EQ(Gunzip(bad, "x").status().code(), StatusCode::kDataLoss) << at;
  }
  EXPECT_EQ(Gunzip("hello, world, this is no gzip", "x").status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(Gunzip(Gzip("one") + "rubbish", "x").status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(Gunzip(Gzip("one") + std::string(3, '\0') + "x", "x").status().code(),
            StatusCode::kDataLoss);
}

TEST(Compression, SizeIsBounded) {
  const std::string packed = Gzip(std::string(1'000'000, 'a'));
  EXPECT_EQ(Gunzip(packed, "bomb.gz", 999'999).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(Gunzip(packed, "bomb.gz", 1'000'000).ok());
}

TEST(Compression, ReadMaybeCompressed) {
  testing::TempDir dir;
  FileSystem& files = FileSystem::Local();
  ASSERT_TRUE(WriteFileAtomically(files, dir / "raw", "plain").ok());
  ASSERT_TRUE(WriteFileAtomically(files, dir / "packed", Gzip("content")).ok());
  ASSERT_TRUE(WriteFileAtomically(files, dir / "empty", "").ok());
  EXPECT_EQ(*ReadMaybeCompressed(files, dir / "raw"), "plain");
  EXPECT_EQ(*ReadMaybeCompressed(files, dir / "packed"), "content");
  EXPECT_EQ(*ReadMaybeCompressed(files, dir / "empty"), "");
  EXPECT_EQ(ReadMaybeCompressed(files, dir / "none").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace cohort::io
