// TableSpec (cohort/optim/table_spec.h) on servers and on the wire: which bucket an id is in, which
// server has a bucket, what a new row holds.
//
// Ids are hashed into buckets, and buckets are dealt to the servers in equal ranges: both are pure
// functions, the same in every process.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/status.h>
#include <cohort/optim/id_index.h>
#include <cohort/optim/table_spec.h>

namespace cohort::ps {

using ::cohort::HashId;
using ::cohort::RowInitializer;
using ::cohort::TableSpec;

// The bytes of a TableMessage (proto/cohort/parameter_server.proto), which are also in files.
std::string ToMessage(const TableSpec& spec);
// Checked: InvalidArgument as TableSpec::Check. Unimplemented: a setting of a newer version.
// DataLoss: no message.
Result<TableSpec> SpecOf(std::string_view message);

// The id of a hash.
inline std::uint64_t IdOfHash(std::uint64_t h) {
  h = (h ^ (h >> 31) ^ (h >> 62)) * 0x319642B2D24D8EC3ULL;
  h = (h ^ (h >> 27) ^ (h >> 54)) * 0x96DE1B173F119089ULL;
  return (h ^ (h >> 30) ^ (h >> 60)) - 0x9E3779B97F4A7C15ULL;
}
// The bucket is in the highest bits; slots inside of it are found by the lowest 40.
std::uint32_t BucketOf(std::uint64_t id, std::uint32_t buckets);

struct BucketRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  friend bool operator==(const BucketRange&, const BucketRange&) = default;
};
// The buckets of a server: ranges that differ by at most one in length. ContractError unless
// 0 <= server < servers.
BucketRange BucketsOf(int server, int servers, std::uint32_t buckets);
int ServerOf(std::uint32_t bucket, int servers, std::uint32_t buckets);

// The first values of the row of `id`.
void InitialRow(const TableSpec& spec, std::uint64_t id, std::span<float> row);

}  // namespace cohort::ps
