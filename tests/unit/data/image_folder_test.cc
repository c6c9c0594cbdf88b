#include <cohort/data/image_folder.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Red grows from left to right, green from top to bottom; blue is one number.
Tensor Gradient(std::int64_t height, std::int64_t width, std::uint8_t blue) {
  Tensor image(DType::kUInt8, {height, width, 3});
  const auto out = image.data<std::uint8_t>();
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const auto at = static_cast<std::size_t>((y * width + x) * 3);
      out[at] = static_cast<std::uint8_t>(x * 255 / std::max<std::int64_t>(1, width - 1));
      out[at + 1] = static_cast<std::uint8_t>(y * 255 / std::max<std::int64_t>(1, height - 1));
      out[at + 2] = blue;
    }
  }
  return image;
}

struct ImageFolderTest : ::testing::Test {
  testing::TempDir dir;

  void Write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories(std::filesystem::path(dir / name).parent_path());
    OrThrow(WriteFileAtomically(FileSystem::Local(), dir / name, bytes));
  }
  void WriteImage(const std::string& name, std::uint8_t blue, std::int64_t height = 4,
                  std::int64_t width = 4) const {
    const Tensor image = Gradient(height, width, blue);
    if (name.ends_with("png") || name.ends_with("PNG")) {
      Write(name, EncodePng(image));
      return;
    }
    std::ranges::fill(image.data<std::uint8_t>(), blue);  // JPEG has half of the colours' places
    Write(name, EncodeJpeg(image, 95));
  }
  ImageFolderOptions Small() const {
    return {.image = {.height = 4, .width = 4, .unit_range = false}};
  }
  std::string Refused(const ImageFolderOptions& options) const {
    const auto made = ImageFolder(dir.path(), options);
    EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
    return made.status().message();
  }
};

std::int64_t Label(const Source& source, std::int64_t index) {
  return OrThrow(source.Read(index)).at("label").data<std::int64_t>()[0];
}
int Blue(const Source& source, std::int64_t index) {
  return OrThrow(source.Read(index)).at("image").data<std::uint8_t>()[2];
}

TEST_F(ImageFolderTest, LabelsAreThePlacesOfTheClassesInBytewiseOrder) {
  WriteImage("dog/b.png", 20);
  WriteImage("dog/a.PNG", 10);
  WriteImage("Zebra/1.png", 30);
  WriteImage("cat/7.jpeg", 40);
  WriteImage("cat/8.jpg", 50);
  Write("cat/.DS_Store", "of another program");
  Write(".git/config", "of another program");
  const LabelledImages images = OrThrow(ImageFolder(dir.path(), Small()));
  EXPECT_THAT(images.classes, ElementsAre("Zebra", "cat", "dog"));
  const Source& source = images.dataset.source();
  ASSERT_EQ(source.size(), 5);
  const std::vector<std::pair<std::string, int>> expected = {{"Zebra/1.png", 30},
                                                             {"cat/7.jpeg", 40},
                                                             {"cat/8.jpg", 50},
                                                             {"dog/a.PNG", 10},
                                                             {"dog/b.png", 20}};
  const std::int64_t labels[] = {0, 1, 1, 2, 2};
  for (std::int64_t i = 0; i < 5; ++i) {
    const auto& [name, blue] = expected[static_cast<std::size_t>(i)];
    EXPECT_EQ(source.Where(i), dir / name);
    EXPECT_NEAR(Blue(source, i), blue, 4) << name;
    EXPECT_EQ(Label(source, i), labels[i]) << name;
  }
  // What a PNG of the size asked for holds is what is read.
  const Tensor image = OrThrow(source.Read(4)).at("image");
  const Tensor written = Gradient(4, 4, 20);
  EXPECT_TRUE(std::ranges::equal(image.data<std::uint8_t>(), written.data<std::uint8_t>()));
}

TEST_F(ImageFolderTest, ValuesAreInTheUnitRangeUnlessAskedForOtherwise) {
  WriteImage("a/1.png", 51);
  const auto images = OrThrow(ImageFolder(dir.path(), {.image = {.height = 2, .width = 3}}));
  const Tensor image = OrThrow(images.dataset.source().Read(0)).at("image");
  ASSERT_EQ(image.shape(), (Shape{2, 3, 3}));
  ASSERT_EQ(image.dtype(), DType::kFloat32);
  EXPECT_FLOAT_EQ(image.data<float>()[2], 0.2F);
}

TEST_F(ImageFolderTest, OtherImagesGetTheLabelsOfTheClassesGiven) {
  WriteImage("b/1.png", 1);
  WriteImage("c/1.png", 2);
  ImageFolderOptions options = Small();
  options.classes = {"c", "a", "b"};
  const auto images = OrThrow(ImageFolder(dir.path(), options));
  EXPECT_EQ(images.classes, options.classes);
  const Source& source = images.dataset.source();
  EXPECT_EQ(Label(source, 0), 0);
  EXPECT_EQ(Blue(source, 0), 2) << "by label";
  EXPECT_EQ(Label(source, 1), 2);
  options.classes = {"c", "a"};
  EXPECT_THAT(Refused(options), AllOf(HasSubstr(dir / "b"), HasSubstr("none of the 2 classes")));
  options.classes = {"c", "b", "c"};
  EXPECT_THAT(Refused(options), HasSubstr("twice"));
}

TEST_F(ImageFolderTest, WhatIsNotThereForItsImagesIsNamed) {
  WriteImage("a/1.png", 1);
  std::filesystem::create_directories(dir / "empty");
  EXPECT_THAT(Refused(Small()), AllOf(HasSubstr(dir / "empty"), HasSubstr("without images")));
  std::filesystem::remove(dir / "empty");
  Write("a/labels.txt", "1 a");
  EXPECT_THAT(Refused(Small()), HasSubstr(dir / "a/labels.txt"));
  Write("README", "of the data");
  EXPECT_THAT(Refused(Small()), HasSubstr(dir / "README"));

  ImageFolderOptions options = Small();
  options.skip_others = true;
  std::vector<std::string> logged;
  options.log = Log([&](LogLevel, std::string_view text) { logged.emplace_back(text); });
  EXPECT_EQ(OrThrow(ImageFolder(dir.path(), options)).dataset.size(), 1);
  EXPECT_THAT(logged, ElementsAre(AllOf(HasSubstr("2 files"), HasSubstr(dir / "README"))));

  EXPECT_EQ(ImageFolder(dir / "missing", Small()).status().code(), StatusCode::kNotFound);
  std::filesystem::remove_all(dir / "a");
  EXPECT_THAT(Refused(options), HasSubstr("no folders of classes with images"));
}

TEST_F(ImageFolderTest, AnImageThatCannotBeReadIsAnErrorWithItsName) {
  WriteImage("a/1.png", 1);
  Write("a/2.jpg", "no image");
  WriteImage("a/3.jpg", 1, 32, 32);
  std::filesystem::resize_file(dir / "a/3.jpg", std::filesystem::file_size(dir / "a/3.jpg") / 2);
  WriteImage("a/4.png", 1);
  const auto images = OrThrow(ImageFolder(dir.path(), Small()));
  std::filesystem::remove(dir / "a/4.png");
  const auto status = [&](std::int64_t i) { return images.dataset.source().Read(i).status(); };
  EXPECT_TRUE(status(0).ok());
  EXPECT_EQ(status(1).code(), StatusCode::kDataLoss);
  EXPECT_THAT(status(1).message(), AllOf(HasSubstr(dir / "a/2.jpg"), HasSubstr("JPEG nor PNG")));
  EXPECT_EQ(status(2).code(), StatusCode::kDataLoss);
  EXPECT_THAT(status(2).message(), HasSubstr(dir / "a/3.jpg"));
  EXPECT_EQ(status(3).code(), StatusCode::kNotFound);
  EXPECT_THAT(status(3).message(), HasSubstr(dir / "a/4.png"));
}

TEST_F(ImageFolderTest, OptionsOutOfTheirRangeAreRefused) {
  WriteImage("a/1.png", 1);
  const auto with = [&](const auto& change) {
    ImageFolderOptions options = Small();
    options.augmentation.emplace();
    change(options);
    return Refused(options);
  };
  EXPECT_THAT(with([](auto& o) { o.image.height = 0; }), HasSubstr("one pixel"));
  EXPECT_THAT(with([](auto& o) { o.image.decode.channels = 2; }), HasSubstr("channels"));
  EXPECT_THAT(with([](auto& o) { o.center = 0; }), HasSubstr("center"));
  EXPECT_THAT(with([](auto& o) { o.augmentation->min_area = 0; }), HasSubstr("min_area"));
  EXPECT_THAT(with([](auto& o) { o.augmentation->max_area = 1.1; }), HasSubstr("max_area"));
  EXPECT_THAT(with([](auto& o) { o.augmentation->max_aspect = 0.9; }), HasSubstr("max_aspect"));
}

TEST_F(ImageFolderTest, TheMiddleIsWhatIsLookedAt) {
  WriteImage("a/1.png", 1, 100, 200);
  ImageFolderOptions options = Small();
  options.image.height = options.image.width = 64;
  options.center = 0.64;  // 64 of the 100 x 100 in the middle
  const auto images = OrThrow(ImageFolder(dir.path(), options));
  const Tensor image = OrThrow(images.dataset.source().Read(0)).at("image");
  const Tensor expected = OrThrow(Crop(Gradient(100, 200, 1), 18, 68, 64, 64));
  EXPECT_TRUE(std::ranges::equal(image.data<std::uint8_t>(), expected.data<std::uint8_t>()));
}

// What an image of 200 x 100 was made of, told by its corners.
struct Seen {
  double left, right, top, bottom;  // of the part, as shares of the sides
  bool flipped;
};
Seen WhatIsSeen(const Tensor& image) {
  const std::int64_t height = image.shape()[0];
  const std::int64_t width = image.shape()[1];
  const auto at = [&](std::int64_t y, std::int64_t x, std::int64_t c) {
    return image.data<float>()[static_cast<std::size_t>((y * width + x) * 3 + c)];
  };
  const double first = at(0, 0, 0);
  const double last = at(0, width - 1, 0);
  return {std::min(first, last), std::max(first, last), at(0, 0, 1), at(height - 1, 0, 1),
          first > last};
}

TEST_F(ImageFolderTest, AugmentationTakesPartsOfTheAreaAndAspectAskedFor) {
  constexpr std::int64_t kHeight = 200;
  constexpr std::int64_t kWidth = 100;
  WriteImage("a/1.png", 1, kHeight, kWidth);
  ImageFolderOptions options = {.image = {.height = 32, .width = 32}};
  options.augmentation = ImageAugmentation{.min_area = 0.1, .max_area = 0.3, .seed = 4};
  const auto images = OrThrow(ImageFolder(dir.path(), options));
  constexpr int kEpochs = 400;
  int flipped = 0;
  double smallest = 1;
  double largest = 0;
  double least_left = 1;
  double most_right = 0;
  for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const auto source = images.dataset.source().AtEpoch(epoch);
    const Seen seen = WhatIsSeen(OrThrow(source->Read(0)).at("image"));
    // The corners are half a result's pixel inside of the part.
    const double width = (seen.right - seen.left) * 32 / 31;
    const double height = (seen.bottom - seen.top) * 32 / 31;
    const double aspect = width * kWidth / (height * kHeight);
    EXPECT_GT(aspect, 0.75 * 0.93) << epoch;
    EXPECT_LT(aspect, 1 / 0.75 / 0.93) << epoch;
    flipped += seen.flipped ? 1 : 0;
    smallest = std::min(smallest, width * height);
    largest = std::max(largest, width * height);
    least_left = std::min(least_left, seen.left);
    most_right = std::max(most_right, seen.right);
  }
  EXPECT_NEAR(flipped, kEpochs / 2, 60) << "six deviations";
  EXPECT_NEAR(smallest, 0.1, 0.02);
  EXPECT_NEAR(largest, 0.3, 0.03);
  EXPECT_LT(least_left, 0.03) << "parts lie anywhere";
  EXPECT_GT(most_right, 0.97);

  options.augmentation->flip = false;
  const auto upright = OrThrow(ImageFolder(dir.path(), options));
  for (std::int64_t epoch = 0; epoch < 20; ++epoch) {
    const auto source = upright.dataset.source().AtEpoch(epoch);
    EXPECT_FALSE(WhatIsSeen(OrThrow(source->Read(0)).at("image")).flipped);
  }
}

TEST_F(ImageFolderTest, AnImageWithoutAPartOfThatAspectIsTakenInTheMiddle) {
  WriteImage("a/1.png", 1, 1, 50);
  ImageFolderOptions options = {.image = {.height = 8, .width = 8}};
  options.augmentation = ImageAugmentation{.min_area = 0.9, .flip = false};
  const auto images = OrThrow(ImageFolder(dir.path(), options));
  const Seen seen = WhatIsSeen(OrThrow(images.dataset.source().Read(0)).at("image"));
  EXPECT_NEAR(seen.left, 0.5, 0.03);
  EXPECT_NEAR(seen.right, 0.5, 0.03);
}

// By label, which is one for each image here.
std::map<std::int64_t, std::vector<float>> Epoch(const Dataset& dataset, std::int64_t epoch,
                                                 int workers, std::int64_t first_batch = 0) {
  std::map<std::int64_t, std::vector<float>> images;
  for (int worker = 0; worker < workers; ++worker) {
    auto batches = OrThrow(dataset.Iterate(
        {.num_workers = workers, .worker = worker, .epoch = epoch, .first_batch = first_batch}));
    while (const auto batch = OrThrow(batches->Next())) {
      for (std::int64_t i = 0; i < batch->size; ++i) {
        const auto pixels = (*batch)["image"].Rows(i, i + 1).data<float>();
        images[(*batch)["label"].data<std::int64_t>()[static_cast<std::size_t>(i)]] = {
            pixels.begin(), pixels.end()};
      }
    }
  }
  return images;
}

TEST_F(ImageFolderTest, AugmentationIsAFunctionOfSeedEpochAndImage) {
  for (int i = 0; i < 12; ++i) {
    WriteImage(std::string(1, static_cast<char>('a' + i)) + "/1.png", 5, 40, 50);
  }
  ImageFolderOptions options = {.image = {.height = 8, .width = 8}};
  options.augmentation = ImageAugmentation{.seed = 7};
  const Dataset shuffled = OrThrow(ImageFolder(dir.path(), options)).dataset.Shuffle(1).Batch(4);
  const auto one = Epoch(shuffled, 3, 1);
  ASSERT_EQ(one.size(), 12U);
  EXPECT_EQ(Epoch(shuffled, 3, 1), one);
  EXPECT_EQ(Epoch(shuffled.Prefetch(3, 3), 3, 2), one);
  const auto rest = Epoch(shuffled, 3, 1, 2);
  ASSERT_EQ(rest.size(), 4U) << "resumed";
  for (const auto& [label, pixels] : rest) {
    EXPECT_EQ(pixels, one.at(label));
  }
  std::set<std::vector<float>> different;
  for (const auto& [label, pixels] : one) {
    different.insert(pixels);
  }
  EXPECT_EQ(different.size(), 12U) << "each image has its own";
  const auto next = Epoch(shuffled, 4, 1);
  options.augmentation->seed = 8;
  const Dataset other = OrThrow(ImageFolder(dir.path(), options)).dataset.Shuffle(1).Batch(4);
  const auto seeded = Epoch(other, 3, 1);
  for (const auto& [label, pixels] : one) {
    EXPECT_NE(next.at(label), pixels);
    EXPECT_NE(seeded.at(label), pixels);
  }
  EXPECT_NE(other.Fingerprint(), shuffled.Fingerprint());
}

TEST_F(ImageFolderTest, FingerprintIsOfTheContentWhereverItLies) {
  const testing::TempDir elsewhere;
  WriteImage("a/1.png", 1);
  WriteImage("b/1.png", 2);
  const auto fingerprint = [](const std::string& path, const ImageFolderOptions& options) {
    return OrThrow(ImageFolder(path, options)).dataset.Fingerprint();
  };
  const std::uint64_t mine = fingerprint(dir.path(), Small());
  std::filesystem::copy(dir.path(), elsewhere / "copy", std::filesystem::copy_options::recursive);
  EXPECT_EQ(fingerprint(elsewhere / "copy", Small()), mine);
  ImageFolderOptions other = Small();
  other.center = 0.5;
  EXPECT_NE(fingerprint(dir.path(), other), mine);
  WriteImage("b/1.png", 3);
  EXPECT_NE(fingerprint(dir.path(), Small()), mine);
}

TEST_F(ImageFolderTest, ReadsWhatPillowWrites) {
  // The test has one thread.
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  if (std::system("python3 -c 'import PIL' 2>/dev/null") != 0) {
    GTEST_SKIP() << "no Pillow [python3-pil]";
  }
  std::ofstream(dir / "write.py") << R"(import os
from PIL import Image
for name, color in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
    os.makedirs("images/" + name)
    image = Image.new("RGB", (30, 20), color)
    image.save("images/" + name + "/1.jpg", quality=90)
    image.save("images/" + name + "/2.jpeg", quality=90, progressive=True)
    image.save("images/" + name + "/3.png")
    image.convert("P").save("images/" + name + "/4.png")
    image.convert("RGBA").save("images/" + name + "/5.PNG")
    image.convert("L").save("images/" + name + "/6.JPG")
)";
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  ASSERT_EQ(std::system(("cd '" + dir.path() + "' && python3 write.py").c_str()), 0);
  const auto images = OrThrow(ImageFolder(dir / "images", Small()));
  EXPECT_THAT(images.classes, ElementsAre("green", "red"));
  ASSERT_EQ(images.dataset.size(), 12);
  for (std::int64_t i = 0; i < 12; ++i) {
    const Example example = OrThrow(images.dataset.source().Read(i));
    const auto pixel = example.at("image").data<std::uint8_t>().first(3);
    const bool gray = i % 6 == 5;
    const bool red = i >= 6;
    EXPECT_EQ(example.at("label").data<std::int64_t>()[0], red ? 1 : 0);
    EXPECT_NEAR(pixel[0], gray ? (red ? 60 : 117) : red ? 200 : 0, 5) << i;
    EXPECT_NEAR(pixel[1], gray ? (red ? 60 : 117) : red ? 0 : 200, 5) << i;
  }
}

}  // namespace
}  // namespace cohort::data
