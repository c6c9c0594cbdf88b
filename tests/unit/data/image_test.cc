// Decoding of JPEG and PNG, good and bad, and what is done to images. Golden files were made by
// Pillow 9.4 and by hand.

#include <cohort/data/image.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include <cohort/core/random.h>

#include "testing/hex.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::FloatEq;
using testing::FromHex;
using ::testing::HasSubstr;

// 8 x 8, pixel (x, y) about (30 x, 30 y, 15 (x + y)), progressive, 4:2:0, quality 75.
const char kProgressive[] =
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c19"
    "12130f141d1a1f1e1d1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffdb004301"
    "0909090c0b0c180d0d1832211c21323232323232323232323232323232323232323232323232323232323232323232"
    "3232323232323232323232323232323232ffc20011080008000803012200021101031101ffc4001500010100000000"
    "000000000000000000000004ffc4001501010100000000000000000000000000000001ffda000c0301000210031000"
    "00018c2fffc4001510010100000000000000000000000000000400ffda0008010100010502386fffc4001811000203"
    "000000000000000000000000000004031331ffda0008010301013f014db96ad3ffc400171100030100000000000000"
    "00000000000000010211ffda0008010201013f019a787fffc400151001010000000000000000000000000000003"
    "1ffda0008010100063f028fffc4001510010100000000000000000000000000000031ffda0008010100013f2189ffd"
    "a"
    "000c03010002000300000010f7ffc4001511010100000000000000000000000000000011ffda0008010301013f1090"
    "7fffc40014110100000000000000000000000000000000ffda0008010201013f1007ffc40015100101000000000000"
    "000000000000000000f1ffda0008010100013f108effd9";
const char kInks[] =  // 16 x 8, as Pillow writes CMYK: left cyan; right half magenta, all yellow, a
                      // quarter black
    "ffd8ffee000e41646f626500640000000000ffdb004300020101010101020101010202020202040302020202050404"
    "0304060506060605060606070908060709070606080b08090a0a0a0a0a06080b0c0b0a0c090a0a0affc00014080008"
    "0010044311004d11005911004b1100ffc4001f0000010501010101010100000000000000000102030405060708090a"
    "0bffc400b5100002010303020403050504040000017d01020300041105122131410613516107227114328191a10823"
    "42b1c11552d1f02433627282090a161718191a25262728292a3435363738393a434445464748494a53545556575859"
    "5a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5"
    "b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9faffda000e"
    "0443004d0059004b00003f00fe7febf7f2bf7f2bf7f2bfbfcafe7febf803afcffaffd9";
const char kPalette[] =  // 3 x 2: red, green (transparent), blue; blue, green, red
    "89504e470d0a1a0a0000000d49484452000000030000000204030000006f5a7b2900000012504c5445ff000000ff00"
    "0000ff000000000000000000af98f0460000000274524e53ff00e5b7304a0000000e49444154789c63605460506400"
    "0000cd0043673095db0000000049454e44ae426082";
const char kGray16[] =  // 2 x 1: 0, 65535
    "89504e470d0a1a0a0000000d494844520000000200000001100000000081d9fc150000000d49444154789c636060f8"
    "ff1f00030201ffe6770bae0000000049454e44ae426082";
const char kBits[] =  // 3 x 1: 1, 0, 1
    "89504e470d0a1a0a0000000d4948445200000003000000010100000000339b29190000000a49444154789c63580000"
    "00a200a1dc8db1cc0000000049454e44ae426082";
const char kInterlaced[] =  // 2 x 2: 10, 20; 30, 40
    "89504e470d0a1a0a0000000d494844520000000200000002080000000120da626e0000000f49444154789c63e06210"
    "6190d3000000f700659f55b2050000000049454e44ae426082";
const char kGrayAlpha[] =  // 2 x 1: 10 at 128, 20 at 255
    "89504e470d0a1a0a0000000d49484452000000020000000108040000005e2bb7010000000d49444154789c63e06a10"
    "f90f0002d4019eae62fe6d0000000049454e44ae426082";

std::vector<int> Pixels(const Tensor& image) {
  const auto data = image.data<std::uint8_t>();
  return {data.begin(), data.end()};
}

std::vector<int> PixelsOf(const char* hex, int channels) {
  return Pixels(OrThrow(DecodeImage(FromHex(hex), {.channels = channels})));
}

// Smooth, so that JPEG keeps it.
Tensor Ramp(std::int64_t height, std::int64_t width, std::int64_t channels) {
  Tensor image(DType::kUInt8, {height, width, channels});
  for (std::int64_t i = 0; i < image.elements(); ++i) {
    const std::int64_t x = i / channels % width;
    const std::int64_t y = i / channels / width;
    image.data<std::uint8_t>()[static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>((x * 2 + y * 3 + i % channels * 20) % 256);
  }
  return image;
}

TEST(ImageDecode, PngOfEveryKindBecomesWhatIsAskedFor) {
  EXPECT_THAT(PixelsOf(kPalette, 3), ElementsAre(255, 0, 0, 0, 255, 0, 0, 0, 255,  //
                                                 0, 0, 255, 0, 255, 0, 255, 0, 0));
  EXPECT_THAT(PixelsOf(kPalette, 4), ElementsAre(255, 0, 0, 255, 0, 255, 0, 0, 0, 0, 255, 255,  //
                                                 0, 0, 255, 255, 0, 255, 0, 0, 255, 0, 0, 255));
  EXPECT_THAT(PixelsOf(kPalette, 1), ElementsAre(76, 149, 29, 29, 149, 76));
  EXPECT_THAT(PixelsOf(kGray16, 1), ElementsAre(0, 255));
  EXPECT_THAT(PixelsOf(kGray16, 3), ElementsAre(0, 0, 0, 255, 255, 255));
  EXPECT_THAT(PixelsOf(kBits, 1), ElementsAre(255, 0, 255));
  EXPECT_THAT(PixelsOf(kInterlaced, 1), ElementsAre(10, 20, 30, 40));
  EXPECT_THAT(PixelsOf(kGrayAlpha, 1), ElementsAre(10, 20));
  EXPECT_THAT(PixelsOf(kGrayAlpha, 4), ElementsAre(10, 10, 10, 128, 20, 20, 20, 255));
}

TEST(ImageDecode, JpegAsPillowReadsIt) {
  const std::vector<int> rgb = PixelsOf(kProgressive, 3);
  ASSERT_EQ(rgb.size(), 192U);
  EXPECT_EQ(std::accumulate(rgb.begin(), rgb.end(), 0), 20141);
  EXPECT_THAT(std::vector<int>(rgb.begin(), rgb.begin() + 6), ElementsAre(3, 0, 0, 20, 5, 12));
  EXPECT_THAT(std::vector<int>(rgb.end() - 3, rgb.end()), ElementsAre(210, 210, 210));
  const std::vector<int> rgba = PixelsOf(kProgressive, 4);
  ASSERT_EQ(rgba.size(), 256U);
  for (std::size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(rgba[4 * i], rgb[3 * i]);
    EXPECT_EQ(rgba[4 * i + 3], 255);
  }
  EXPECT_EQ(PixelsOf(kProgressive, 1).size(), 64U);
}

TEST(ImageDecode, InksAsPillowReadsThem) {
  const auto expect = [](const std::vector<int>& pixels, std::size_t at,
                         const std::vector<int>& want) {
    for (std::size_t c = 0; c < want.size(); ++c) {
      EXPECT_NEAR(pixels.at(at * want.size() + c), want[c], 2) << at << ", " << c;
    }
  };
  const std::size_t left = 3 * 16 + 3;
  const std::size_t right = 3 * 16 + 12;
  const std::vector<int> rgb = PixelsOf(kInks, 3);
  ASSERT_EQ(rgb.size(), 16U * 8 * 3);
  expect(rgb, left, {0, 255, 255});
  expect(rgb, right, {191, 95, 0});
  const std::vector<int> rgba = PixelsOf(kInks, 4);
  expect(rgba, left, {0, 255, 255, 255});
  expect(rgba, right, {191, 95, 0, 255});
  const std::vector<int> gray = PixelsOf(kInks, 1);
  expect(gray, left, {179});
  expect(gray, right, {113});
  // Without Adobe's mark they are not turned around: all black, but where there was ink.
  std::string plain = FromHex(kInks);
  plain.at(plain.find("Adobe")) = 'B';
  const Tensor image = OrThrow(DecodeImage(plain, {.channels = 3}));
  expect(Pixels(image), left, {0, 0, 0});
  expect(Pixels(image), right, {0, 32, 64});
  for (const std::size_t size : {plain.size() - 40, plain.size() / 2}) {
    EXPECT_EQ(DecodeImage(plain.substr(0, size)).status().code(), StatusCode::kDataLoss) << size;
  }
}

TEST(ImageDecode, WhatIsEncodedIsDecoded) {
  for (const std::int64_t channels : {1, 3, 4}) {
    const Tensor image = Ramp(20, 30, channels);
    const std::string png = EncodePng(image);
    EXPECT_EQ(ImageFormatOf(png), ImageFormat::kPng);
    EXPECT_EQ(Pixels(OrThrow(DecodeImage(png, {.channels = static_cast<int>(channels)}))),
              Pixels(image));
  }
  for (const std::int64_t channels : {1, 3}) {
    const Tensor image = Ramp(20, 30, channels);
    const std::string jpeg = EncodeJpeg(image, 100);
    EXPECT_EQ(ImageFormatOf(jpeg), ImageFormat::kJpeg);
    const Tensor back = OrThrow(DecodeImage(jpeg, {.channels = static_cast<int>(channels)}));
    ASSERT_EQ(back.shape(), image.shape());
    for (std::size_t i = 0; i < image.bytes(); ++i) {
      EXPECT_NEAR(back.data<std::uint8_t>()[i], image.data<std::uint8_t>()[i], 6) << i;
    }
  }
  EXPECT_LT(EncodeJpeg(Ramp(64, 64, 3), 10).size(), EncodeJpeg(Ramp(64, 64, 3), 95).size());
  EXPECT_THROW(EncodeJpeg(Ramp(2, 2, 4)), ContractError);
  EXPECT_THROW(EncodeJpeg(Ramp(2, 2, 3), 0), ContractError);
  EXPECT_THROW(EncodePng(Tensor(DType::kFloat32, {2, 2, 3})), ContractError);
  EXPECT_THROW(EncodePng(Tensor(DType::kUInt8, {2, 2, 2})), ContractError);
}

TEST(ImageDecode, ImagesCutAnywhereAreDataLossWithThePlace) {
  Tensor noise(DType::kUInt8, {40, 40, 3});
  const Philox philox(3);
  for (std::size_t i = 0; i < noise.bytes(); ++i) {
    noise.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(philox.Below(256, i));
  }
  for (const std::string& good :
       {EncodePng(noise), EncodeJpeg(noise), FromHex(kProgressive), FromHex(kPalette)}) {
    ASSERT_TRUE(DecodeImage(good).ok());
    const std::size_t step = good.size() > 1000 ? 41 : 1;
    for (std::size_t size = 0; size < good.size(); size += step) {
      EXPECT_EQ(DecodeImage(good.substr(0, size)).status().code(), StatusCode::kDataLoss)
          << size << " of " << good.size();
    }
  }
  const std::string png = EncodePng(noise);
  EXPECT_EQ(DecodeImage(png.substr(0, 3000)).status().message(),
            "PNG before byte 3000: the file is cut off");
  const std::string jpeg = EncodeJpeg(noise);
  EXPECT_THAT(DecodeImage(jpeg.substr(0, 1500)).status().message(),
              AllOf(HasSubstr("JPEG at byte 1"), HasSubstr("Premature end")));
}

TEST(ImageDecode, DamagedImagesAreErrorsOrImagesAndNeverMore) {
  const std::string png = EncodePng(Ramp(16, 16, 3));
  std::vector<std::string> files = {png, EncodeJpeg(Ramp(16, 16, 3)), FromHex(kProgressive),
                                    FromHex(kInterlaced), FromHex(kPalette)};
  int refused = 0;
  for (const std::string& good : files) {
    for (std::size_t i = 0; i < good.size(); ++i) {
      for (const int flip : {0x01, 0x80, 0xFF}) {
        std::string bad = good;
        bad[i] = static_cast<char>(bad[i] ^ flip);
        const Result<Tensor> image = DecodeImage(bad, {.max_pixels = 10000});
        if (image.ok()) {
          EXPECT_LE(image->elements(), 30000);
          continue;
        }
        ++refused;
        EXPECT_NE(image.status().code(), StatusCode::kInternal);
        // Whatever is hit, PNG has checksums.
        EXPECT_TRUE(&good != &files[0] || !image.ok());
      }
    }
  }
  EXPECT_GT(refused, 2000);
  // The checksums of PNG's pixels.
  std::string bad = png;
  const std::size_t data = bad.find("IDAT") + 10;
  bad[data] = static_cast<char>(bad[data] ^ 1);
  EXPECT_EQ(DecodeImage(bad).status().code(), StatusCode::kDataLoss);
}

TEST(ImageDecode, HeadersThatClaimTooMuchAreRefusedBeforeMemoryIsAskedFor) {
  std::string jpeg = EncodeJpeg(Ramp(8, 8, 3));
  const std::size_t frame = jpeg.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  jpeg.replace(frame + 5, 4, FromHex("ffdcffdc"));
  const Status status = DecodeImage(jpeg).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("an image of 65500 x 65500 pixels, more than 33554432"));

  // 40,000 x 40,000, with the checksum that belongs to it.
  EXPECT_THAT(DecodeImage(FromHex("89504e470d0a1a0a0000000d4948445200009c4000009c400802000000de"
                                  "6e99520000000849444154789c030000000001480689d2"))
                  .status()
                  .message(),
              HasSubstr("an image of 40000 x 40000 pixels"));
  EXPECT_EQ(DecodeImage(EncodePng(Ramp(10, 11, 1)), {.max_pixels = 109}).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_TRUE(DecodeImage(EncodePng(Ramp(10, 11, 1)), {.max_pixels = 110}).ok());
}

TEST(ImageDecode, WhatIsNoImageIsSaidSo) {
  EXPECT_EQ(DecodeImage("").status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(DecodeImage("GIF89a").status().message(), HasSubstr("neither JPEG nor PNG"));
  EXPECT_EQ(DecodeImage(FromHex(kBits), {.channels = 2}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(DecodeImage(FromHex(kBits), {.max_pixels = 0}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(ImageFunctions, ResizeSamplesAtHalfPixelCentres) {
  // As tf.image.resize and torch's interpolate(align_corners=False) have it.
  const float values[] = {0, 1};
  const Tensor row = Tensor::Of<float>({1, 2, 1}, values);
  EXPECT_THAT(OrThrow(Resize(row, 1, 4)).data<float>(),
              ElementsAre(FloatEq(0), FloatEq(0.25F), FloatEq(0.75F), FloatEq(1)));
  const float more[] = {0, 1, 2, 3, 4, 5};
  EXPECT_THAT(OrThrow(Resize(Tensor::Of<float>({1, 6, 1}, more), 1, 3)).data<float>(),
              ElementsAre(FloatEq(0.5F), FloatEq(2.5F), FloatEq(4.5F)));
  EXPECT_THAT(OrThrow(Resize(Tensor::Of<float>({6, 1, 1}, more), 2, 1)).data<float>(),
              ElementsAre(FloatEq(1), FloatEq(4)));
  const float square[] = {0, 10, 20, 30};
  EXPECT_THAT(OrThrow(Resize(Tensor::Of<float>({2, 2, 1}, square), 1, 1)).data<float>(),
              ElementsAre(FloatEq(15)));
  const std::uint8_t bytes[] = {0, 255, 1, 254};
  EXPECT_THAT(Pixels(OrThrow(Resize(Tensor::Of<std::uint8_t>({1, 2, 2}, bytes), 1, 4))),
              ElementsAre(0, 255, 0, 255, 1, 254, 1, 254));
  const Tensor image = Ramp(9, 7, 3);
  EXPECT_EQ(Pixels(OrThrow(Resize(image, 9, 7))), Pixels(image));
}

TEST(ImageFunctions, CropFlipAndRange) {
  const Tensor image = Ramp(5, 6, 3);
  const auto pixel = [](const Tensor& of, std::int64_t y, std::int64_t x, std::int64_t c) {
    return of.data<std::uint8_t>()[static_cast<std::size_t>((y * of.shape()[1] + x) * 3 + c)];
  };
  const Tensor crop = OrThrow(Crop(image, 1, 2, 3, 4));
  ASSERT_EQ(crop.shape(), Shape({3, 4, 3}));
  const Tensor flip = OrThrow(FlipHorizontally(image));
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(pixel(crop, 0, 0, c), pixel(image, 1, 2, c));
    EXPECT_EQ(pixel(crop, 2, 3, c), pixel(image, 3, 5, c));
    EXPECT_EQ(pixel(flip, 4, 1, c), pixel(image, 4, 4, c));
  }
  EXPECT_EQ(Pixels(OrThrow(FlipHorizontally(flip))), Pixels(image));
  EXPECT_EQ(Pixels(OrThrow(CenterCrop(image, 2, 3))), Pixels(OrThrow(Crop(image, 1, 1, 2, 3))));
  EXPECT_THAT(Crop(image, 3, 0, 3, 6).status().message(),
              HasSubstr("a crop of 3 x 6 pixels at (3, 0) reaches beyond an image of 5 x 6"));
  EXPECT_FALSE(Crop(image, -1, 0, 2, 2).ok());
  EXPECT_FALSE(Crop(image, 0, INT64_MAX, 2, 2).ok());
  EXPECT_FALSE(Crop(image, 0, 0, 0, 2).ok());
  EXPECT_FALSE(CenterCrop(image, 6, 6).ok());

  const std::uint8_t bytes[] = {0, 51, 255};
  EXPECT_THAT(OrThrow(ToUnitRange(Tensor::Of<std::uint8_t>({1, 1, 3}, bytes))).data<float>(),
              ElementsAre(0.0F, 0.2F, 1.0F));
  for (const Tensor& bad : {Tensor(), Tensor(DType::kInt32, {1, 1, 3}),
                            Tensor(DType::kUInt8, {4, 4}), Tensor(DType::kUInt8, {0, 4, 3})}) {
    EXPECT_EQ(Resize(bad, 2, 2).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Crop(bad, 0, 0, 1, 1).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(FlipHorizontally(bad).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(ToUnitRange(bad).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(FitImage(bad, ImageFit::kStretch, 2, 2).status().code(),
              StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(Resize(image, 0, 5).ok());
  EXPECT_FALSE(Resize(image, 5, INT64_MAX).ok());
}

TEST(ImageFunctions, FitsAnImageIntoItsPlace) {
  const Tensor image = Ramp(10, 40, 3);
  EXPECT_EQ(Pixels(OrThrow(FitImage(image, ImageFit::kExact, 10, 40))), Pixels(image));
  EXPECT_THAT(FitImage(image, ImageFit::kExact, 10, 10).status().message(),
              HasSubstr("an image of 10 x 40 pixels, 10 x 10 are asked for"));
  EXPECT_EQ(Pixels(OrThrow(FitImage(image, ImageFit::kStretch, 5, 5))),
            Pixels(OrThrow(Resize(image, 5, 5))));
  EXPECT_EQ(Pixels(OrThrow(FitImage(image, ImageFit::kCover, 5, 5))),
            Pixels(OrThrow(Resize(OrThrow(Crop(image, 0, 15, 10, 10)), 5, 5))));
  EXPECT_EQ(Pixels(OrThrow(FitImage(image, ImageFit::kCover, 20, 10))),
            Pixels(OrThrow(Resize(OrThrow(Crop(image, 0, 17, 10, 5)), 20, 10))));
  // Long and thin: no more memory than the parts.
  EXPECT_EQ(OrThrow(FitImage(Ramp(1, 100000, 1), ImageFit::kCover, 224, 224)).shape(),
            Shape({224, 224, 1}));
}

}  // namespace
}  // namespace cohort::data
