// `cohort data digits`: the generated digits as IDX files, under the names of MNIST.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>

#include <cohort/data/digits.h>
#include <cohort/data/idx.h>

#include "command.h"

namespace cohort {
namespace {

Status WriteDigits(const std::string& folder, const std::string& part, std::uint64_t seed,
                   std::int64_t first, std::int64_t count) {
  Tensor images(DType::kUInt8, {count, 28, 28});
  Tensor labels(DType::kUInt8, {count});
  for (std::int64_t i = 0; i < count; ++i) {
    const data::Digit digit = data::DrawDigit(seed, first + i);
    std::memcpy(images.raw() + static_cast<std::size_t>(i) * digit.pixels.size(),
                digit.pixels.data(), digit.pixels.size());
    labels.data<std::uint8_t>()[static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>(digit.label);
  }
  FileSystem& files = FileSystem::Local();
  COHORT_RETURN_IF_ERROR(
      data::WriteIdx(files, folder + "/" + part + "-images-idx3-ubyte.gz", images));
  return data::WriteIdx(files, folder + "/" + part + "-labels-idx1-ubyte.gz", labels);
}

}  // namespace

int DataDigitsCommand(int argc, char** argv) {
  std::string folder;
  std::int64_t train = 8000;
  std::int64_t test = 2000;
  std::uint64_t seed = 1;
  CLI::App app("Writes generated digits as MNIST's files: 28 x 28 images and labels, IDX, gzip.",
               argv[0]);
  const auto count = CLI::Range(std::int64_t{1}, std::int64_t{10'000'000});
  app.add_option("--out", folder, "folder to write to; made if it is not there")->required();
  app.add_option("--train", train, "training examples")->check(count)->capture_default_str();
  app.add_option("--test", test, "test examples")->check(count)->capture_default_str();
  app.add_option("--seed", seed, "digits of another seed have nothing in common")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  Status status = FileSystem::Local().CreateDirectories(folder);
  if (status.ok()) {
    status = WriteDigits(folder, "train", seed, 0, train);
  }
  if (status.ok()) {
    status = WriteDigits(folder, "t10k", seed, train, test);
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
    return ExitCode(status);
  }
  std::printf("%s: %lld training and %lld test digits of seed %llu\n", folder.c_str(),
              static_cast<long long>(train), static_cast<long long>(test),
              static_cast<unsigned long long>(seed));
  return 0;
}

}  // namespace cohort
