// .npy and safetensors files, good and bad.

#include <cohort/data/arrays.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include <cohort/io/safetensors.h>

#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A .npy file of version 1, 2 or 3 with this dictionary.
std::string NpyBytes(const std::string& dictionary, const std::string& data, int version = 1) {
  const std::string text = dictionary + std::string(117 - dictionary.size() % 64, ' ') + "\n";
  std::string bytes = std::string("\x93NUMPY") + static_cast<char>(version) + '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) {
    bytes += static_cast<char>((text.size() >> (8 * i)) & 0xFF);
  }
  return bytes + text + data;
}

std::string Dictionary(const std::string& descr, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
}

class ArraysTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  // "a": float32 [2, 2] = 1, 2, 3, 4; "b": int64 [2] = 7, 8.
  std::string SafetensorsBytes() {
    const std::vector<io::SafetensorsEntry> entries = {
        {.name = "a", .dtype = DType::kFloat32, .shape = {2, 2}},
        {.name = "b", .dtype = DType::kInt64, .shape = {2}}};
    std::string bytes = io::EncodeSafetensorsHeader(entries);
    const float a[] = {1, 2, 3, 4};
    const std::int64_t b[] = {7, 8};
    bytes.append(reinterpret_cast<const char*>(a), sizeof(a));
    return bytes.append(reinterpret_cast<const char*>(b), sizeof(b));
  }
  Status ReadStatus(const std::string& bytes) {
    return ReadNpy(files_, Write("bad.npy", bytes)).status();
  }

  FileSystem& files_ = FileSystem::Local();
  testing::TempDir folder_;
};

TEST_F(ArraysTest, ReadsWhatNumpyWrote) {
  // numpy.save of numpy 1.24.2, and write_array of versions 2 and 3.
  using namespace std::string_literals;
  const std::string f4 =
      "\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"s +
      std::string(58, ' ') +
      "\n\x00\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40\x00\x00\x80\x40\x00\x00\xa0\x40"s;
  ASSERT_EQ(f4.size(), 152U);
  const Tensor floats = OrThrow(ReadNpy(files_, Write("f4.npy", f4)));
  EXPECT_EQ(floats.shape(), Shape({3, 2}));
  EXPECT_THAT(floats.data<float>(), ElementsAre(0, 1, 2, 3, 4, 5));

  const std::string i2 =
      "\x93NUMPY\x02\x00t\x00\x00\x00"
      "{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }"s +
      std::string(58, ' ') + "\n\xff\xff\x2c\x01"s;
  ASSERT_EQ(i2.size(), 132U);
  EXPECT_THAT(OrThrow(ReadNpy(files_, Write("i2.npy", i2))).data<std::int32_t>(),
              ElementsAre(-1, 300));

  const std::string b1 =
      "\x93NUMPY\x03\x00t\x00\x00\x00"
      "{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }"s +
      std::string(58, ' ') + "\n\x01\x00"s;
  ASSERT_EQ(b1.size(), 130U);
  EXPECT_THAT(OrThrow(ReadNpy(files_, Write("b1.npy", b1))).data<std::uint8_t>(),
              ElementsAre(1, 0));

  const std::string scalar =
      "\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (), }"s +
      std::string(62, ' ') + "\n\x00\x00\x00\x00\x00\x00\x00\x40"s;
  ASSERT_EQ(scalar.size(), 136U);
  EXPECT_THAT(OrThrow(ReadNpy(files_, Write("s.npy", scalar))).data<double>(), ElementsAre(2.0));
  EXPECT_THAT(Arrays({{.name = "x", .path = folder_ / "s.npy"}}).status().message(),
              HasSubstr("feature 'x' is a scalar"));
}

TEST_F(ArraysTest, NumpyReadsWhatIsWrittenAndTheReverse) {
  std::string python;
  for (const std::string candidate : {"python3", "/usr/bin/python3"}) {
    // The test has one thread.
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    if (std::system((candidate + " -c 'import numpy' 2>/dev/null").c_str()) == 0) {
      python = candidate;
      break;
    }
  }
  if (python.empty()) {
    GTEST_SKIP() << "no numpy [python3-numpy]";
  }
  Tensor mine(DType::kFloat16, {5, 3});
  for (std::size_t i = 0; i < 15; ++i) {
    mine.data<Float16>()[i] = Float16(static_cast<float>(i) / 4);
  }
  OrThrow(WriteNpy(files_, folder_ / "mine.npy", mine));
  std::ofstream(folder_ / "check.py") << R"(import numpy as np
a = np.load("mine.npy")
assert a.dtype == np.float16 and a.shape == (5, 3) and (a.ravel() == np.arange(15) / 4).all()
np.save("u4.npy", np.array([[1, 2], [2**32 - 1, 4]], dtype=np.uint32))
np.save("i1.npy", np.array([-128, 127], dtype=np.int8))
np.save("u2.npy", np.array([65535], dtype=np.uint16))
np.save("empty.npy", np.zeros((0, 4), dtype=np.float64))
np.save("c64.npy", np.zeros(2, dtype=np.complex64))
np.save("fortran.npy", np.asfortranarray(np.zeros((3, 2))))
np.save("big.npy", np.zeros(2, dtype=">f4"))
np.save("objects.npy", np.array([None, 1], dtype=object), allow_pickle=True)
np.save("fields.npy", np.zeros(2, dtype=[("a", "<f4"), ("b", "<i4")]))
np.save("text.npy", np.array(["ab", "c"]))
np.savez("many.npz", a=np.zeros(2))
)";
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  ASSERT_EQ(std::system(("cd '" + folder_.path() + "' && " + python + " check.py").c_str()), 0);
  const auto read = [this](const std::string& name) { return ReadNpy(files_, folder_ / name); };
  EXPECT_THAT(OrThrow(read("u4.npy")).data<std::int64_t>(), ElementsAre(1, 2, 4294967295, 4));
  EXPECT_THAT(OrThrow(read("i1.npy")).data<std::int32_t>(), ElementsAre(-128, 127));
  EXPECT_THAT(OrThrow(read("u2.npy")).data<std::int32_t>(), ElementsAre(65535));
  EXPECT_EQ(OrThrow(read("empty.npy")).shape(), Shape({0, 4}));
  EXPECT_THAT(read("c64.npy").status().message(), HasSubstr("element type '<c8' is not read"));
  EXPECT_THAT(read("fortran.npy").status().message(),
              AllOf(StartsWith(folder_ / "fortran.npy"), HasSubstr("is in Fortran order")));
  EXPECT_THAT(read("big.npy").status().message(),
              HasSubstr("big-endian ('>f4') [array.astype('<f4') before saving]"));
  EXPECT_THAT(read("objects.npy").status().message(), HasSubstr("Python objects ('|O')"));
  EXPECT_THAT(read("fields.npy").status().message(), HasSubstr("structured element type"));
  EXPECT_THAT(read("text.npy").status().message(), HasSubstr("element type '<U2' is not read"));
  EXPECT_THAT(Arrays({{.name = "a", .path = folder_ / "many.npz"}}).status().message(),
              HasSubstr("unzip it"));
  EXPECT_EQ(OrThrow(Arrays({{.name = "a", .path = folder_ / "empty.npy"}})).size(), 0);
}

TEST_F(ArraysTest, RowsOfSeveralFilesAreExamples) {
  const std::string path = Write("two.safetensors", SafetensorsBytes());
  const std::string c = Write("c.npy", NpyBytes(Dictionary("<i2", "(2, 1)"), "\x05\x01\xfe\xff"));
  const Dataset data = OrThrow(Arrays({{.name = "x", .path = path, .tensor = "a"},
                                       {.name = "b", .path = path},
                                       {.name = "c", .path = c}}));
  ASSERT_EQ(data.size(), 2);
  const Example example = OrThrow(data.source().Read(1));
  EXPECT_THAT(example.at("x").data<float>(), ElementsAre(3, 4));
  EXPECT_THAT(example.at("b").data<std::int64_t>(), ElementsAre(8));
  EXPECT_EQ(example.at("b").shape(), Shape());
  EXPECT_THAT(example.at("c").data<std::int32_t>(), ElementsAre(-2));
  EXPECT_THAT(data.source().Where(1), HasSubstr("two.safetensors, row 1"));

  const Dataset all = OrThrow(Safetensors(path));
  ASSERT_EQ(all.source().features().size(), 2U);
  EXPECT_EQ(all.source().features()[0].name, "a");
  EXPECT_NE(all.Fingerprint(), data.Fingerprint());
  std::string other = SafetensorsBytes();
  other.back() = 1;
  EXPECT_NE(OrThrow(Safetensors(Write("other", other))).Fingerprint(), all.Fingerprint());
}

TEST_F(ArraysTest, FeaturesThatMakeNoSense) {
  const std::string path = Write("two.safetensors", SafetensorsBytes());
  const std::string npy = Write("c.npy", NpyBytes(Dictionary("|u1", "(3,)"), "abc"));
  EXPECT_EQ(Arrays({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Arrays({{.name = "a", .path = path}, {.name = "a", .path = npy}}).status().message(),
              HasSubstr("'a' is asked for twice"));
  const Status missing = Arrays({{.name = "z", .path = path}}).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr("no tensor 'z'; there are: a, b"));
  EXPECT_THAT(Arrays({{.name = "a", .path = path}, {.name = "c", .path = npy}}).status().message(),
              AllOf(HasSubstr("c.npy: feature 'c' has 3 examples"), HasSubstr("has 2")));
  EXPECT_THAT(Arrays({{.name = "c", .path = npy, .tensor = "c"}}).status().message(),
              HasSubstr("leave ArrayFeature.tensor empty"));
  EXPECT_THAT(Safetensors(npy).status().message(), HasSubstr("not safetensors"));
  EXPECT_EQ(Arrays({{.name = "a", .path = folder_ / "nothing"}}).status().code(),
            StatusCode::kNotFound);
  EXPECT_THAT(Arrays({{.name = "a", .path = Write("empty", "")}}).status().message(),
              HasSubstr("neither .npy nor safetensors"));
  const std::string no_tensors = Write("none", io::EncodeSafetensorsHeader({}));
  EXPECT_THAT(Safetensors(no_tensors).status().message(), HasSubstr("holds no tensors"));
}

TEST_F(ArraysTest, BadHeadersSayWhatIsWrong) {
  const std::string good = NpyBytes(Dictionary("<f4", "(2, 3)"), std::string(24, 'x'));
  ASSERT_TRUE(ReadStatus(good).ok());
  for (std::size_t size = 0; size < good.size(); ++size) {
    const Status status = ReadStatus(good.substr(0, size));
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << size;
    EXPECT_THAT(status.message(), StartsWith(folder_ / "bad.npy")) << size;
  }
  EXPECT_THAT(ReadStatus(good.substr(0, good.size() - 1)).message(),
              HasSubstr("shape [2,3] makes 24 bytes, 23 there"));
  EXPECT_THAT(ReadStatus(good + "yy").message(), HasSubstr("2 bytes follow the data"));
  std::string version = good;
  version[6] = 4;
  EXPECT_THAT(ReadStatus(version).message(), HasSubstr(".npy version 4.0"));
  std::string longer = NpyBytes(Dictionary("<f4", "(2, 3)"), "", 2);
  longer[11] = '\x7f';
  EXPECT_THAT(ReadStatus(longer).message(), HasSubstr("larger than the format needs"));

  const auto with = [this](const std::string& dictionary) {
    return ReadStatus(NpyBytes(dictionary, "xxxx")).message();
  };
  EXPECT_THAT(with("[1]"), HasSubstr("header at character 0: no dictionary"));
  EXPECT_THAT(with("{'descr': '<f4', 'shape': (1,)}"), HasSubstr("must be there"));
  EXPECT_THAT(with("{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}"),
              HasSubstr("neither True nor False"));
  EXPECT_THAT(with("{'descr': 4}"), HasSubstr("'descr' is no element type"));
  EXPECT_THAT(with("{'descr': '<f4', 'colour': 1}"), HasSubstr("'colour' is no key"));
  EXPECT_THAT(with("{'descr': '<f4'"), HasSubstr("does not end"));
  EXPECT_THAT(with("{'descr': '<f4"), HasSubstr("'descr' is no element type"));
  EXPECT_THAT(with(Dictionary("<f4", "(-1,)")), HasSubstr("no tuple of sizes"));
  EXPECT_THAT(with(Dictionary("<f4", "(1 2)")), HasSubstr("no tuple of sizes"));
  EXPECT_THAT(with(Dictionary("<f4", "(99999999999999999999,)")), HasSubstr("no tuple of sizes"));
  EXPECT_THAT(with(Dictionary("<f4", "(1,)") + "x"), HasSubstr("text follows"));
  // Refused before memory is asked for; also where an axis of 0 hides the size of the others.
  EXPECT_THAT(with(Dictionary("<f4", "(1099511627776, 2)")), HasSubstr("4 there"));
  EXPECT_THAT(with(Dictionary("<f4", "(4611686018427387904, 4)")), HasSubstr("than any file"));
  EXPECT_THAT(with(Dictionary("<f4", "(0, 4611686018427387904, 4)")), HasSubstr("than any file"));
  EXPECT_EQ(with("{\"shape\":(1L,),\"fortran_order\":False,\"descr\":\"<f4\"}"), "");
}

TEST_F(ArraysTest, FilesThatBecomeShorterOrUnreadableAreNamedWithTheRow) {
  const std::string path = Write("x.npy", NpyBytes(Dictionary("<f4", "(2,)"), std::string(8, 'x')));
  bool broken = false;
  testing::FaultyFileSystem faulty([&broken](std::string_view operation, const std::string&) {
    return broken && operation == "read" ? Unavailable("disk gone") : Status();
  });
  const Dataset data = OrThrow(Arrays({{.name = "x", .path = path}}, {.files = &faulty}));
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  EXPECT_TRUE(data.source().Read(0).ok());
  const Status status = data.source().Read(1).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("feature 'x', row 1: "), HasSubstr("x.npy")));
  const std::uint64_t digest = data.source().Fingerprint();
  broken = true;
  EXPECT_EQ(data.source().Read(0).status().code(), StatusCode::kUnavailable);
  EXPECT_NE(data.source().Fingerprint(), digest);
}

TEST_F(ArraysTest, DigestsOfLargeFilesSeeFirstAndLastBytes) {
  const std::size_t bytes = (std::size_t{65} << 20) + 3;
  std::string content =
      NpyBytes(Dictionary("|u1", "(" + std::to_string(bytes) + ",)"), std::string(bytes, 'a'));
  const auto digest = [&] {
    return OrThrow(Arrays({{.name = "x", .path = Write("x.npy", content)}})).Fingerprint();
  };
  const std::uint64_t before = digest();
  EXPECT_EQ(digest(), before);
  content.back() = 'b';
  EXPECT_NE(digest(), before);
  content.back() = 'a';
  content[content.size() - bytes] = 'b';
  EXPECT_NE(digest(), before);
}

}  // namespace
}  // namespace cohort::data
