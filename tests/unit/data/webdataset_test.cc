// Samples in tar archives, good and bad.

#include <cohort/data/webdataset.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include <cohort/core/random.h>
#include <cohort/data/arrays.h>
#include <cohort/io/compression.h>

#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using Members = std::vector<std::pair<std::string, std::string>>;

class WebDatasetTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::string Content(const std::string& path) { return OrThrow(ReadFile(files_, path)); }
  std::string WriteTar(const std::string& name, const Members& members) {
    auto writer = OrThrow(TarWriter::Create(files_, folder_ / name));
    for (const auto& [member, content] : members) {
      OrThrow(writer->Add(member, content));
    }
    OrThrow(writer->Close());
    return folder_ / name;
  }
  int Shell(const std::string& command) {
    // The test has one thread.
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    return std::system(("cd '" + folder_.path() + "' && " + command).c_str());
  }
  Result<Dataset> Labels(const std::string& path) {
    return WebDataset({path}, {.features = {label_}});
  }
  // What `change` makes of one sample's archive cannot be read.
  Status Changed(const std::function<void(std::string&)>& change) {
    if (good_.empty()) {
      good_ = Content(WriteTar("good.tar", {{"a.cls", "5"}}));
    }
    std::string bytes = good_;
    change(bytes);
    return Labels(Write("bad.tar", bytes)).status();
  }
  // Sets the checksum of the header at `at`.
  static void Seal(std::string& bytes, std::size_t at = 0) {
    bytes.replace(at + 148, 8, "        ");
    unsigned sum = 0;
    for (std::size_t i = 0; i < 512; ++i) {
      sum += static_cast<unsigned char>(bytes[at + i]);
    }
    char text[8];
    std::snprintf(text, sizeof(text), "%06o", sum);
    bytes.replace(at + 148, 7, std::string(text, 7));
  }

  const WebFeature label_ = {.name = "label", .extensions = {"cls"}, .decoder = IntegerText()};
  FileSystem& files_ = FileSystem::Local();
  testing::TempDir folder_;

 private:
  std::string good_;  // what Changed changes
};

TEST_F(WebDatasetTest, MembersUpToTheFirstDotAreASample) {
  const std::string one = WriteTar("1.tar", {{"a/1.x.raw", "abcd"},
                                             {"a/1.CLS", " 7\n"},
                                             {"a/1.json", "{}"},
                                             {"README", "no dot"},
                                             {"a/.hidden", "no key"},
                                             {"b.c/2.cls", "-8"},
                                             {"b.c/2.x.raw", "efgh"}});
  const std::string two = WriteTar("2.tar.gz", {{"a/1.cls", "9"}, {"a/1.y.raw", "ijkl"}});
  const Dataset data =
      OrThrow(WebDataset({one, WriteTar("none.tar", {}), two},
                         {.features = {label_,
                                       {.name = "x",
                                        .extensions = {"x.raw", "y.raw"},
                                        .decoder = RawElements(DType::kUInt8, {2, 2})}}}));
  ASSERT_EQ(data.size(), 3);
  const auto batch = OrThrow(OrThrow(data.Batch(3).Iterate())->Next());
  EXPECT_THAT((*batch)["label"].data<std::int64_t>(), ElementsAre(7, -8, 9));
  EXPECT_THAT((*batch)["x"].data<std::uint8_t>(),
              ElementsAre('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l'));
  EXPECT_THAT(data.source().Where(1), HasSubstr("1.tar, sample 1 'b.c/2'"));
  EXPECT_EQ(data.source().files().size(), 3U);
}

TEST_F(WebDatasetTest, ReadsWhatTarWrote) {
  if (Shell("tar --version > version 2>&1 && grep -q GNU version") != 0) {
    GTEST_SKIP() << "no GNU tar";
  }
  const std::string deep = std::string(90, 'd') + "/" + std::string(90, 'e');
  std::filesystem::create_directories(folder_ / ("in/" + deep));
  std::ofstream(folder_ / "in/1.cls") << 1;
  std::ofstream(folder_ / ("in/" + deep + "/2.cls")) << 2;
  for (const std::string format : {"ustar", "pax", "gnu", "oldgnu"}) {
    ASSERT_EQ(Shell("tar --sort=name --format=" + format + " -C in -cf " + format + ".tar ."), 0);
    const Dataset data = OrThrow(Labels(folder_ / (format + ".tar")));
    ASSERT_EQ(data.size(), 2) << format;
    EXPECT_THAT(data.source().Where(0), HasSubstr("'./1'")) << format;
    EXPECT_THAT(data.source().Where(1), HasSubstr("'./" + deep + "/2'")) << format;
    EXPECT_THAT(OrThrow(data.source().Read(1)).at("label").data<std::int64_t>(), ElementsAre(2));
  }
  // Names beyond what ustar's two fields hold.
  const std::string very_deep = deep + "/" + std::string(200, 'f');
  std::filesystem::create_directories(folder_ / ("in/" + very_deep));
  std::ofstream(folder_ / ("in/" + very_deep + "/3.cls")) << 3;
  for (const std::string format : {"pax", "gnu"}) {
    ASSERT_EQ(Shell("tar --sort=name --format=" + format + " -C in -czf long.tgz ."), 0);
    EXPECT_EQ(OrThrow(Labels(folder_ / "long.tgz")).size(), 3) << format;
  }
  ASSERT_EQ(Shell("ln -s 1.cls in/4.cls && tar --sort=name -C in -cf link.tar ."), 0);
  const Status link = Labels(folder_ / "link.tar").status();
  EXPECT_EQ(link.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(link.message(), HasSubstr("member './4.cls' is of type '2', not a file"));
}

TEST_F(WebDatasetTest, TarReadsWhatIsWritten) {
  if (Shell("tar --version > version 2>&1 && grep -q GNU version") != 0) {
    GTEST_SKIP() << "no GNU tar";
  }
  const std::string longest = std::string(250, 'k') + "/s";
  for (const std::string name : {"out.tar", "out.tar.gz"}) {
    auto writer = OrThrow(TarWriter::Create(files_, folder_ / name));
    OrThrow(writer->AddSample("s1", {{"cls", "3"}, {"txt", std::string(3 << 20, 't')}}));
    OrThrow(writer->AddSample(longest, {{"cls", "4"}}));
    EXPECT_FALSE(std::filesystem::exists(folder_ / name));
    OrThrow(writer->Close());
    ASSERT_EQ(Shell("tar -tf " + name + " > list"), 0);
    EXPECT_EQ(Content(folder_ / "list"), "s1.cls\ns1.txt\n" + longest + ".cls\n");
    ASSERT_EQ(Shell("tar -xf " + name + " s1.txt " + longest + ".cls"), 0);
    EXPECT_EQ(Content(folder_ / "s1.txt"), std::string(3 << 20, 't'));
    EXPECT_EQ(Content(folder_ / (longest + ".cls")), "4");
    EXPECT_EQ(std::filesystem::file_size(folder_ / "out.tar") % 10240, 0U);
    EXPECT_EQ(OrThrow(Labels(folder_ / name)).size(), 2);
  }
}

TEST_F(WebDatasetTest, FingerprintsAreOfContentsNotOfTimes) {
  const std::string path = WriteTar("a.tar", {{"a.cls", "1"}, {"a.txt", "x"}});
  const std::uint64_t digest = OrThrow(Labels(path)).Fingerprint();
  std::string bytes = Content(path);
  bytes.replace(136, 11, "12345670123");  // time
  Seal(bytes);
  EXPECT_EQ(OrThrow(Labels(Write("time.tar", bytes))).Fingerprint(), digest);
  EXPECT_EQ(OrThrow(Labels(Write("a.tar.gz", io::Gzip(bytes)))).Fingerprint(), digest);
  bytes[512] = '2';
  EXPECT_NE(OrThrow(Labels(Write("other.tar", bytes))).Fingerprint(), digest);
}

TEST_F(WebDatasetTest, ArchivesCutAnywhereAreErrors) {
  const std::string good =
      Content(WriteTar("good.tar", {{"a.cls", "5"}, {"b.cls", std::string(700, ' ') + "6"}}));
  const std::size_t end = 512 * 5 + 512;  // two headers, three blocks of content, a block of zeros
  for (std::size_t size = 0; size < end; size += size % 512 == 511 ? 1 : 73) {
    const Status status = Labels(Write("cut.tar", good.substr(0, size))).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << size;
    EXPECT_THAT(status.message(), AllOf(StartsWith(folder_ / "cut.tar"), HasSubstr("cut short")))
        << size;
  }
  EXPECT_THAT(Labels(Write("cut.tar", good.substr(0, 512 * 2))).status().message(),
              HasSubstr("ends at byte 1024 without the zeros that end an archive"));
  EXPECT_THAT(Labels(Write("cut.tar", good.substr(0, 512 * 4))).status().message(),
              HasSubstr("header at byte 1024: member 'b.cls' has 701 bytes, 512 there"));
  EXPECT_TRUE(Labels(Write("cut.tar", good.substr(0, end))).ok());
  EXPECT_EQ(Labels(Write("cut.tgz", io::Gzip(good.substr(0, 512 * 4)))).status().code(),
            StatusCode::kDataLoss);
}

TEST_F(WebDatasetTest, DamagedHeadersAreErrors) {
  for (std::size_t i = 0; i < 512; ++i) {
    const Status status = Changed([i](std::string& bytes) { bytes[i] ^= 0x11; });
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << i;
    EXPECT_THAT(status.message(), HasSubstr("header at byte 0: the header's checksum is wrong"));
  }
  const auto sealed = [this](std::size_t at, const std::string& text) {
    return Changed([&](std::string& bytes) {
      bytes.replace(at, text.size(), text);
      Seal(bytes);
    });
  };
  EXPECT_THAT(sealed(124, "0000000000x").message(), HasSubstr("size is no number"));
  EXPECT_THAT(sealed(124, "77777777777").message(), HasSubstr("has 8589934591 bytes"));
  EXPECT_THAT(sealed(124, std::string(12, '\xff')).message(), HasSubstr("size is no number"));
  EXPECT_THAT(sealed(124, "\x80" + std::string(2, '\0') + std::string(9, '\xff')).message(),
              HasSubstr("size is no number"));
  EXPECT_THAT(sealed(156, "V").message(), HasSubstr("of type 'V'"));
  EXPECT_TRUE(sealed(124, "\x80" + std::string(10, '\0') + "\x01").ok()) << "GNU's base 256";
  // Extended headers.
  const auto extended = [this](char type, const std::string& text) {
    return Changed([&](std::string& bytes) {
      std::string header = bytes.substr(0, 512);
      header[156] = type;
      char size[13];
      std::snprintf(size, sizeof(size), "%011zo", text.size());
      header.replace(124, 11, size);
      Seal(header);
      bytes.insert(0, header + text + std::string((512 - text.size() % 512) % 512, '\0'));
    });
  };
  EXPECT_TRUE(extended('x', "15 path=b.cls\n").ok() == false) << "14 bytes, not 15";
  EXPECT_TRUE(extended('x', "14 path=b.cls\n").ok());
  EXPECT_TRUE(extended('g', "anything").ok());
  EXPECT_TRUE(extended('K', "a link").ok());
  EXPECT_TRUE(extended('L', std::string("c.cls\0", 6)).ok());
  EXPECT_THAT(extended('x', "999 path=b.cls\n").message(), HasSubstr("pax header is damaged"));
  EXPECT_THAT(extended('x', "2 x").message(), HasSubstr("pax header is damaged"));
  EXPECT_THAT(extended('x', "10 pathxx\n").message(), HasSubstr("has no '='"));
  EXPECT_THAT(extended('x', "10 size=x\n").message(), HasSubstr("size is no number"));
  EXPECT_THAT(extended('x', "15 size=999999\n").message(), HasSubstr("has 999999 bytes"))
      << "the size that counts";
  EXPECT_THAT(extended('x', "24 GNU.sparse.major=1.0\n").message(), HasSubstr("sparse"));
  EXPECT_THAT(extended('x', std::string(2 << 20, ' ')).message(),
              HasSubstr("is larger than any in use"));
}

TEST_F(WebDatasetTest, SamplesThatAreNotWhole) {
  EXPECT_THAT(
      Labels(WriteTar("t.tar", {{"a.cls", "1"}, {"b.txt", ""}, {"b.json", ""}})).status().message(),
      HasSubstr("t.tar: sample 'b' at byte 1024 has no member for feature 'label' (cls); "
                "it has: json, txt"));
  EXPECT_THAT(Labels(WriteTar("t.tar", {{"a.cls", "1"}, {"a.CLS", "2"}})).status().message(),
              HasSubstr("sample 'a' has member 'cls' twice, at bytes 0 and 1024"));
  EXPECT_THAT(
      Labels(WriteTar("t.tar", {{"a.cls", "1"}, {"b.cls", "2"}, {"a.txt", ""}})).status().message(),
      HasSubstr("sample 'a' goes on at byte 2048, behind other samples"));
  const std::string once = Content(WriteTar("t.tar", {{"a.cls", "1"}}));
  EXPECT_THAT(Labels(Write("cat.tar", once + once)).status().message(),
              HasSubstr("bytes follow the end of the archive, at byte 10240"));

  WebFeature filled = label_;
  filled.missing = -1;
  WebFeature half = {.name = "half",
                     .extensions = {"h"},
                     .decoder = RawElements(DType::kFloat16, {2}),
                     .missing = 0.5};
  const Dataset data = OrThrow(WebDataset({WriteTar("t.tar", {{"a.cls", "1"}, {"b.txt", ""}})},
                                          {.features = {filled, half}}));
  const Example b = OrThrow(data.source().Read(1));
  EXPECT_THAT(b.at("label").data<std::int64_t>(), ElementsAre(-1));
  EXPECT_EQ(b.at("half").data<Float16>()[1], Float16(0.5F));
}

TEST_F(WebDatasetTest, ContentsThatDoNotFitNameShardSampleAndMember) {
  Tensor array(DType::kFloat32, {2});
  array.data<float>()[1] = 3;
  OrThrow(WriteNpy(files_, folder_ / "x.npy", array));
  const std::string npy = Content(folder_ / "x.npy");
  const auto read = [this](const std::string& content, const MemberDecoder& decoder) {
    const std::string path = WriteTar("t.tar", {{"k.x", content}});
    return OrThrow(
               WebDataset({path},
                          {.features = {{.name = "f", .extensions = {"x"}, .decoder = decoder}}}))
        .source()
        .Read(0);
  };
  const Status status = read("5x", IntegerText()).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(status.message(),
            folder_ / "t.tar" + std::string(", sample 0 'k', member 'x' at byte 512, feature "
                                            "'f': '5x' is not a 64-bit integer"));
  EXPECT_FALSE(read("", IntegerText()).ok());
  EXPECT_FALSE(read("99999999999999999999", IntegerText()).ok());
  EXPECT_THAT(read("abc", RawElements(DType::kInt32, {1})).status().message(),
              HasSubstr("holds 3 bytes, 4 are asked for"));
  EXPECT_THAT(OrThrow(read("text", HashedText(50))).at("f").data<std::int64_t>(),
              ElementsAre(Hash64("text") % 50));
  EXPECT_THAT(OrThrow(read(npy, NpyElements(DType::kFloat32, {2}))).at("f").data<float>(),
              ElementsAre(0, 3));
  EXPECT_THAT(read(npy, NpyElements(DType::kFloat32, {3})).status().message(),
              HasSubstr("holds float32[2], float32[3] is asked for"));
  EXPECT_THAT(read(npy.substr(0, 130), NpyElements(DType::kFloat32, {2})).status().message(),
              HasSubstr("cut short"));
  const MemberDecoder throws = {.dtype = DType::kUInt8,
                                .decode = [](std::string_view, std::byte*) -> Status {
                                  throw std::runtime_error("no idea");
                                }};
  EXPECT_THAT(read("x", throws).status().message(), HasSubstr("exception: no idea"));
}

TEST_F(WebDatasetTest, ImagesAreDecodedIntoTheirPlace) {
  Tensor image(DType::kUInt8, {4, 6, 3});
  for (std::size_t i = 0; i < image.bytes(); ++i) {
    image.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(i * 3);
  }
  const std::string png = EncodePng(image);
  const std::string path = WriteTar("t.tar", {{"a.cls", "1"},
                                              {"a.png", png},
                                              {"b.cls", "2"},
                                              {"b.JPEG", EncodeJpeg(image)},
                                              {"c.cls", "3"},
                                              {"c.png", png.substr(0, png.size() / 2)}});
  const auto open = [&](const ImageSpec& spec) {
    return OrThrow(WebDataset({path}, {.features = {{.name = "image",
                                                     .extensions = {"png", "jpg", "jpeg"},
                                                     .decoder = ImageElements(spec)},
                                                    label_}}));
  };
  const Dataset bytes = open({.height = 4, .width = 6, .unit_range = false});
  const Tensor a = OrThrow(bytes.source().Read(0)).at("image");
  ASSERT_EQ(a.shape(), image.shape());
  EXPECT_EQ(std::memcmp(a.raw(), image.raw(), image.bytes()), 0);
  EXPECT_TRUE(bytes.source().Read(1).ok());
  const Status cut = bytes.source().Read(2).status();
  EXPECT_EQ(cut.code(), StatusCode::kDataLoss);
  EXPECT_THAT(cut.message(),
              AllOf(StartsWith(folder_ / "t.tar, sample 2 'c', member 'png' at byte"),
                    HasSubstr("feature 'image': PNG before byte")));

  // Larger and smaller ones in turn, each into memory that the one before has left.
  for (const std::int64_t side : {3, 64, 2, 7}) {
    for (const ImageFit fit : {ImageFit::kStretch, ImageFit::kCover}) {
      const Dataset one = open({.height = side, .width = side, .fit = fit, .unit_range = false});
      const Tensor fitted = OrThrow(one.source().Read(0)).at("image");
      const Tensor wanted = OrThrow(FitImage(image, fit, side, side));
      ASSERT_EQ(fitted.shape(), wanted.shape());
      EXPECT_EQ(std::memcmp(fitted.raw(), wanted.raw(), wanted.bytes()), 0) << side;
    }
  }

  const Dataset cover = open({.height = 2, .width = 2});
  const Tensor half = OrThrow(cover.source().Read(0)).at("image");
  ASSERT_EQ(half.dtype(), DType::kFloat32);
  const Tensor expected =
      OrThrow(ToUnitRange(OrThrow(Resize(OrThrow(Crop(image, 0, 1, 4, 4)), 2, 2))));
  EXPECT_EQ(std::memcmp(half.raw(), expected.raw(), expected.bytes()), 0);
  EXPECT_THAT(
      open({.height = 5, .width = 5, .fit = ImageFit::kExact}).source().Read(0).status().message(),
      HasSubstr("an image of 4 x 6 pixels, 5 x 5 are asked for"));
  const auto flip = [](Example& example) -> Status {
    COHORT_ASSIGN_OR_RETURN(example["image"], FlipHorizontally(example["image"]));
    return {};
  };
  const auto mapped = OrThrow(cover.Take(2).Map(flip).Batch(2).Iterate());
  const Tensor flipped = OrThrow(mapped->Next())->features["image"];
  EXPECT_EQ(flipped.shape(), Shape({2, 2, 2, 3}));
  EXPECT_EQ(flipped.data<float>()[0], half.data<float>()[3]);
  EXPECT_NE(cover.Fingerprint(),
            open({.height = 2, .width = 2, .fit = ImageFit::kStretch}).Fingerprint());
}

TEST_F(WebDatasetTest, AShardThatBecameShorterIsNamedWithTheSample) {
  const std::string path = WriteTar("t.tar", {{"a.cls", "1"}, {"b.cls", "2"}});
  const Dataset data = OrThrow(Labels(path));
  std::filesystem::resize_file(path, 1200);
  EXPECT_TRUE(data.source().Read(0).ok());
  const Status status = data.source().Read(1).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(),
              AllOf(StartsWith(path + ", sample 1 'b', member 'cls' at byte 1536"),
                    HasSubstr("became shorter")));
}

TEST_F(WebDatasetTest, FeaturesThatMakeNoSense) {
  const std::string path = WriteTar("t.tar", {{"a.cls", "1"}});
  const auto status = [&path](const std::vector<WebFeature>& features) {
    return WebDataset({path}, {.features = features}).status();
  };
  EXPECT_EQ(WebDataset({}, {.features = {label_}}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status({}).message(), HasSubstr("no features to read"));
  EXPECT_THAT(status({label_, label_}).message(), HasSubstr("asked for twice"));
  EXPECT_THAT(status({{.name = "f", .extensions = {"x"}}}).message(), HasSubstr("no decoder"));
  for (const std::string bad : {"", "CLS", "a/b"}) {
    EXPECT_THAT(status({{.name = "f", .extensions = {bad}, .decoder = IntegerText()}}).message(),
                HasSubstr("'" + bad + "' is no extension"));
  }
  EXPECT_EQ(Labels(folder_ / "nothing").status().code(), StatusCode::kNotFound);
}

TEST_F(WebDatasetTest, WhatCannotBeWrittenIsRefusedAndLeavesNothing) {
  {
    auto writer = OrThrow(TarWriter::Create(files_, folder_ / "t.tar"));
    EXPECT_EQ(writer->Add("", "x").code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(writer->Add("a/", "x").code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(writer->AddSample("a.b", {{"cls", "1"}}).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(writer->AddSample("a/", {{"cls", "1"}}).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(writer->AddSample("a", {{"CLS", "1"}}).code(), StatusCode::kInvalidArgument);
    OrThrow(writer->AddSample("a.b/c", {{"cls", "1"}}));
    EXPECT_THAT(writer->AddSample("a.b/c", {{"cls", "1"}}).message(),
                HasSubstr("'a.b/c' was written before"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path())) << "given up before Close";

  for (const std::string failing : {"append", "sync", "close", "rename"}) {
    testing::FaultyFileSystem faulty([&failing](std::string_view operation, const std::string&) {
      return operation == failing ? ResourceExhausted("disk full") : Status();
    });
    auto writer = OrThrow(TarWriter::Create(faulty, folder_ / "t.tar"));
    const Status added = writer->Add("big.txt", std::string(2 << 20, 'x'));
    EXPECT_EQ(added.ok(), failing != "append");
    EXPECT_EQ(writer->Close().code(), StatusCode::kResourceExhausted) << failing;
    writer.reset();
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path())) << failing;
  }
}

}  // namespace
}  // namespace cohort::data
