// IDX files, good and bad.

#include <cohort/data/idx.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>
#include <numeric>

#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Bytes(std::initializer_list<int> values) {
  std::string bytes;
  for (const int value : values) {
    bytes += static_cast<char>(value);
  }
  return bytes;
}

class IdxTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_ / name;
    OrThrow(OrThrow(files_.OpenForWrite(path))->Append(AsBytes(bytes)));
    return path;
  }
  std::string Content(const std::string& path) { return OrThrow(ReadFile(files_, path)); }
  // `count` images of 2 x 3 bytes 0, 1, 2, ...
  std::string WriteImages(const std::string& name, std::int64_t count) {
    Tensor images(DType::kUInt8, {count, 2, 3});
    std::iota(images.data<std::uint8_t>().begin(), images.data<std::uint8_t>().end(), 0);
    OrThrow(WriteIdx(files_, folder_ / name, images));
    return folder_ / name;
  }
  std::string WriteLabels(const std::string& name, std::int64_t count) {
    Tensor labels(DType::kUInt8, {count});
    std::iota(labels.data<std::uint8_t>().begin(), labels.data<std::uint8_t>().end(), 3);
    OrThrow(WriteIdx(files_, folder_ / name, labels));
    return folder_ / name;
  }
  Status ReadStatus(const std::string& bytes) {
    return ReadIdx(files_, Write("bad", bytes)).status();
  }

  FileSystem& files_ = FileSystem::Local();
  testing::TempDir folder_;
};

TEST_F(IdxTest, WritesTheFormatOfMnist) {
  EXPECT_EQ(Content(WriteImages("images", 1)),
            Bytes({0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(Content(WriteLabels("labels", 2)), Bytes({0, 0, 8, 1, 0, 0, 0, 2, 3, 4}));
}

TEST_F(IdxTest, ReadsImagesAndLabelsRawAndGzip) {
  for (const std::string suffix : {"", ".gz"}) {
    const Dataset data =
        OrThrow(Idx(WriteImages("images" + suffix, 3), WriteLabels("labels" + suffix, 3)));
    EXPECT_EQ(data.size(), 3);
    const auto batch = OrThrow(OrThrow(data.Batch(2).Iterate({.first_batch = 1}))->Next());
    ASSERT_TRUE(batch.has_value());
    EXPECT_EQ((*batch)["image"].shape(), Shape({1, 2, 3, 1}));
    EXPECT_THAT((*batch)["image"].data<float>(), ElementsAre(12 / 255.F, 13 / 255.F, 14 / 255.F,
                                                             15 / 255.F, 16 / 255.F, 17 / 255.F));
    EXPECT_THAT((*batch)["label"].data<std::int64_t>(), ElementsAre(5));
  }
  EXPECT_LT(Content(folder_ / "images.gz").find("\x1f\x8b"), 1U) << "gzip's magic";
  EXPECT_EQ(OrThrow(Idx(folder_ / "images", folder_ / "labels")).Fingerprint(),
            OrThrow(Idx(folder_ / "images.gz", folder_ / "labels.gz")).Fingerprint());
}

TEST_F(IdxTest, KeepsBytesAndAxesOnRequest) {
  const Dataset data = OrThrow(Idx(WriteImages("images", 2), WriteLabels("labels", 2),
                                   {.unit_range = false, .channel_axis = false}));
  const Example example = OrThrow(data.source().Read(1));
  EXPECT_EQ(example.at("image").shape(), Shape({2, 3}));
  EXPECT_THAT(example.at("image").data<std::uint8_t>(), ElementsAre(6, 7, 8, 9, 10, 11));
  EXPECT_EQ(data.source().Where(1), (folder_ / "images") + ", image 1");
  ASSERT_EQ(data.source().files().size(), 1U);
  EXPECT_EQ(data.source().files()[0].end, 2);
}

TEST_F(IdxTest, ReadsEveryElementType) {
  const auto read = [this](const std::string& bytes) {
    return OrThrow(ReadIdx(files_, Write("t", bytes)));
  };
  EXPECT_THAT(read(Bytes({0, 0, 9, 1, 0, 0, 0, 2, 0xFF, 5})).data<std::int32_t>(),
              ElementsAre(-1, 5));
  EXPECT_THAT(read(Bytes({0, 0, 0xB, 1, 0, 0, 0, 2, 0xFF, 0xFE, 1, 2})).data<std::int32_t>(),
              ElementsAre(-2, 258));
  EXPECT_THAT(read(Bytes({0, 0, 0xC, 1, 0, 0, 0, 1, 1, 2, 3, 4})).data<std::int32_t>(),
              ElementsAre(0x01020304));
  EXPECT_THAT(read(Bytes({0, 0, 0xD, 1, 0, 0, 0, 1, 0x3F, 0x80, 0, 0})).data<float>(),
              ElementsAre(1.0F));
  EXPECT_THAT(read(Bytes({0, 0, 0xE, 1, 0, 0, 0, 1, 0xC0, 0, 0, 0, 0, 0, 0, 0})).data<double>(),
              ElementsAre(-2.0));
  EXPECT_EQ(read(Bytes({0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 7})).shape(), Shape({0, 7}));
}

TEST_F(IdxTest, BadHeadersNameFieldAndOffset) {
  EXPECT_THAT(
      ReadStatus("").message(),
      AllOf(StartsWith(folder_ / "bad"), HasSubstr("magic at byte 0: 4 bytes expected, 0 there")));
  EXPECT_EQ(ReadStatus("").code(), StatusCode::kDataLoss);
  EXPECT_THAT(ReadStatus(Bytes({0, 0, 8})).message(), HasSubstr("4 bytes expected, 3 there"));
  EXPECT_THAT(ReadStatus("\x89PNG....").message(),
              HasSubstr("magic at byte 0: 89504e47 is not IDX"));
  EXPECT_THAT(ReadStatus(Bytes({0, 0, 7, 1, 0, 0, 0, 0})).message(),
              HasSubstr("00000701 is not IDX"));
  EXPECT_THAT(ReadStatus(Bytes({0, 0, 8, 0})).message(), HasSubstr("00000800 is not IDX"));
  EXPECT_THAT(ReadStatus(Bytes({0, 0, 8, 2, 0, 0, 0, 1, 0, 0})).message(),
              HasSubstr("size of axis 1 at byte 8: 4 bytes expected, 2 there"));
  EXPECT_THAT(
      ReadStatus(Bytes({0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}))
          .message(),
      HasSubstr("size of axis 1 at byte 8"));
}

TEST_F(IdxTest, DataThatIsShortOrLongIsSaidSo) {
  const std::string good = Content(WriteImages("images", 2));
  for (std::size_t size = 16; size < good.size(); ++size) {
    EXPECT_THAT(
        ReadStatus(good.substr(0, size)).message(),
        HasSubstr("data at byte 16: 12 bytes expected, " + std::to_string(size - 16) + " there"));
  }
  EXPECT_THAT(ReadStatus(good + "x").message(),
              HasSubstr("bytes follow the data of [2,2,3], from byte 28"));
  // Sizes beyond what the file can hold are refused before memory is asked for.
  EXPECT_THAT(ReadStatus(Bytes({0, 0, 8, 2, 0, 255, 255, 255, 0, 255, 255, 255, 1})).message(),
              HasSubstr("data at byte 12: 281474943156225 bytes expected, 1 there"));
}

TEST_F(IdxTest, DamagedGzipIsAnErrorWhereverItIsCutOrFlipped) {
  const std::string path = WriteImages("images.gz", 40);
  const std::string good = Content(path);
  ASSERT_TRUE(ReadIdx(files_, path).ok());
  for (std::size_t size = 2; size < good.size(); ++size) {
    EXPECT_EQ(ReadStatus(good.substr(0, size)).code(), StatusCode::kDataLoss) << size;
  }
  // Some bits mean nothing (time stamp, padding of a stored block): then the content is unchanged.
  const Tensor images = OrThrow(ReadIdx(files_, path));
  int refused = 0;
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    const Result<Tensor> read = ReadIdx(files_, Write("bad", bad));
    if (read.ok()) {
      EXPECT_EQ(std::memcmp(read->raw(), images.raw(), images.bytes()), 0) << i;
    } else {
      EXPECT_EQ(read.status().code(), StatusCode::kDataLoss) << i;
      ++refused;
    }
  }
  EXPECT_GT(refused, 250) << "of " << good.size();
  EXPECT_THAT(ReadStatus(good.substr(0, good.size() / 2)).message(), HasSubstr("cut off"));
  EXPECT_EQ(ReadStatus(good + "x").code(), StatusCode::kDataLoss);
  EXPECT_TRUE(ReadStatus(good + std::string(512, '\0')).ok()) << "padding is allowed";
}

TEST_F(IdxTest, GzipOfSeveralMembersIsOneContent) {
  const std::string raw = Content(WriteImages("images", 2));
  std::string members;
  for (const std::string& part : {raw.substr(0, 9), raw.substr(9)}) {
    const std::string path = folder_ / "part.gz";
    gzFile file = gzopen(path.c_str(), "wb");
    ASSERT_EQ(gzwrite(file, part.data(), static_cast<unsigned>(part.size())),
              static_cast<int>(part.size()));
    gzclose(file);
    members += Content(path);
  }
  EXPECT_EQ(OrThrow(ReadIdx(files_, Write("two.gz", members))).shape(), Shape({2, 2, 3}));
}

TEST_F(IdxTest, FilesThatDoNotBelongTogether) {
  const std::string images = WriteImages("images", 3);
  EXPECT_THAT(Idx(images, WriteLabels("labels", 2)).status().message(),
              AllOf(HasSubstr("images has 3 images"), HasSubstr("labels has 2 labels")));
  EXPECT_THAT(
      Idx(WriteLabels("labels", 3), images).status().message(),
      HasSubstr(
          "labels have one axis, this file has shape [3,2,3] [are images and labels swapped?]"));
  EXPECT_EQ(Idx(images, folder_ / "nothing").status().code(), StatusCode::kNotFound);
  const std::string floats = Write("floats", Bytes({0, 0, 0xD, 1, 0, 0, 0, 0}));
  EXPECT_THAT(Idx(images, floats).status().message(), HasSubstr("labels are integers"));
}

TEST_F(IdxTest, FoldersOfImagesAreFoundByTheirNames) {
  const Status missing = LoadImageClassification(folder_.path()).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_THAT(
      missing.message(),
      AllOf(HasSubstr("train-images-idx3-ubyte[.gz]"), HasSubstr("train-labels-idx1-ubyte[.gz]"),
            HasSubstr("t10k-images-idx3-ubyte[.gz]"), HasSubstr("t10k-labels-idx1-ubyte[.gz]"),
            HasSubstr("cohort data digits")));
  WriteImages("train-images-idx3-ubyte.gz", 4);
  WriteLabels("train-labels-idx1-ubyte", 4);
  WriteImages("t10k-images-idx3-ubyte", 2);
  EXPECT_THAT(LoadImageClassification(folder_.path()).status().message(),
              HasSubstr("missing t10k-labels-idx1-ubyte[.gz] ["));
  WriteLabels("t10k-labels-idx1-ubyte.gz", 2);
  const ImageClassification data = OrThrow(LoadImageClassification(folder_.path()));
  EXPECT_EQ(data.train.size(), 4);
  EXPECT_EQ(data.test.size(), 2);
  EXPECT_EQ(data.num_classes, 7);  // labels 3, 4, 5, 6
}

// Sums over all pixels and labels, computed by another program (Python's gzip).
TEST(IdxRealData, MnistToTheLastPixel) {
  const std::string folder = testing::RealData("mnist");
  if (folder.empty()) {
    GTEST_SKIP() << "no real data [COHORT_TEST_DATA]";
  }
  const ImageClassification data = OrThrow(LoadImageClassification(folder, {.unit_range = false}));
  EXPECT_EQ(data.train.size(), 8000);
  EXPECT_EQ(data.test.size(), 2000);
  EXPECT_EQ(data.num_classes, 10);
  std::int64_t pixels = 0;
  std::int64_t labels = 0;
  auto iterator = OrThrow(data.train.Shuffle(1).Batch(64).Prefetch(2).Iterate());
  while (const auto batch = OrThrow(iterator->Next())) {
    for (const std::uint8_t pixel : (*batch)["image"].data<std::uint8_t>()) {
      pixels += pixel;
    }
    for (const std::int64_t label : (*batch)["label"].data<std::int64_t>()) {
      labels += label;
    }
  }
  EXPECT_EQ(pixels, 208058241);
  EXPECT_EQ(labels, 35634);
}

}  // namespace
}  // namespace cohort::data
