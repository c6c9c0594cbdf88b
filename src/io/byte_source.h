// ByteSource: bytes in sequence, from a file as it is or unpacked on the way.

#pragma once

#include <cohort/core/file_system.h>
#include <cohort/io/compression.h>

#include <functional>
#include <memory>
#include <span>
#include <string>

namespace cohort::io {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Up to out.size() bytes; 0 only at the end. After an error of the file system the same bytes can
  // be asked for again; DataLoss is final.
  virtual Result<std::size_t> Read(std::span<std::byte> out) = 0;
};

std::unique_ptr<ByteSource> RawSource(std::unique_ptr<RandomAccessFile> file);

// Unpacks `compressed`, one member after another; zero bytes after the last are padding. `name` is
// for messages. kAhead: by ReadAheadSource, while the checksums are computed by whoever reads.
enum class Unpack { kAsked, kAhead };
std::unique_ptr<ByteSource> InflateSource(std::unique_ptr<ByteSource> compressed,
                                          Compression compression, std::string name,
                                          Unpack unpack = Unpack::kAsked);

// The same bytes. Behind the first MiB a thread of its own fetches them, up to 1 MiB ahead; the
// end waits for the piece that it is at.
std::unique_ptr<ByteSource> ReadAheadSource(std::unique_ptr<ByteSource> source);

// Packs; what comes out goes to `write`.
class Deflater {
 public:
  virtual ~Deflater() = default;
  enum class Mode { kMore, kFlush, kEnd };
  virtual Status Write(std::span<const std::byte> bytes, Mode mode) = 0;
};
std::unique_ptr<Deflater> MakeDeflater(Compression compression,
                                       std::function<Status(std::span<const std::byte>)> write);

}  // namespace cohort::io
