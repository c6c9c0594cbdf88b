// The safetensors container: a JSON header that says where each tensor lies, then the bytes.
//
//   uint64 N | N bytes of JSON, padded with spaces to a multiple of 8 | data little-endian
//   {"name":{"dtype":"F32","shape":[2,3],"data_offsets":[begin,end]}, ...,"__metadata__":{...}}
//
// Pure functions but for the reading: any thread.

#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/file_system.h>
#include <cohort/core/tensor.h>

namespace cohort::io {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kFloat32;
  Shape shape;
  std::uint64_t begin = 0;  // in the file
  std::uint64_t end = 0;
  friend bool operator==(const SafetensorsEntry&, const SafetensorsEntry&) = default;
};

// The bytes before the data, of tensors that lie one after another in this order (begin and end are
// not looked at). ContractError if a name stands twice or is no
// UTF-8.
std::string EncodeSafetensorsHeader(std::span<const SafetensorsEntry> entries,
                                    const std::map<std::string, std::string>& metadata = {});

// The entries in the order of their bytes. DataLoss says which rule the header breaks: the bytes
// must be covered exactly, without gap, overlap or rest, and every size must be what dtype and
// shape make it.
Result<std::vector<SafetensorsEntry>> ReadSafetensorsHeader(const RandomAccessFile& file,
                                                            const std::string& path);

}  // namespace cohort::io
