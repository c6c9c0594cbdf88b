// TableSpec: what a sparse table is. Servers, clients and files must agree on it.
//
// A table maps 64-bit ids to rows of `dim` floats, each with its optimizer slots. Ids are hashed
// into buckets, and buckets are dealt to the servers in equal ranges: both are pure functions, the
// same in every process.
//
// Values: copy and compare; any thread.

#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <cohort/core/status.h>

namespace cohort::ps {

class TableMessage;  // <cohort/parameter_server.pb.h>

// What a new row starts with: a function of (seed, table name, id, element), whoever asks first.
struct RowInitializer {
  enum class Kind { kZeros, kUniform, kNormal };
  Kind kind = Kind::kZeros;
  double scale = 0;  // kUniform: in [-scale, scale); kNormal: the standard deviation
  friend bool operator==(const RowInitializer&, const RowInitializer&) = default;
};

struct TableSpec {
  // Of an id that has no row:
  enum class Missing {
    kCreate,  // a pull for training makes the row from the initializer, and so does a gradient
    kZeros,   // reads as zeros; its first gradient makes the row, from zeros
    kError,   // NotFound; rows come from Assign and files only
  };
  // Which update of Adam is the first, for its bias correction:
  enum class BiasScope {
    kRow,    // each row counts its own
    kTable,  // the step of the call, as for a dense variable
  };
  enum class NotFinite { kReject, kSkipRow };            // a gradient with NaN or infinity
  enum class Eviction { kLeastRecent, kLeastFrequent };  // where `capacity` is reached

  std::string name;
  std::int64_t dim = 0;
  std::uint64_t seed = 0;
  std::string optimizer;  // for RowOptimizer::Make
  RowInitializer initializer;
  Missing missing = Missing::kCreate;
  BiasScope bias_scope = BiasScope::kRow;
  NotFinite not_finite = NotFinite::kReject;
  bool mean_of_occurrences = false;  // gradients are divided by the id's count

  // Admission, one of the two: an id gets its row with the occurrence of this number, or at each
  // occurrence with this probability (drawn from seed, id and step). Until then it reads as zeros,
  // its gradients are dropped and counted.
  std::uint32_t admit_after = 1;
  double admit_probability = 1;

  std::uint32_t time_to_live = 0;  // rows unused for more steps go at EvictExpired; 0: none do
  std::uint64_t capacity = 0;      // rows, on all servers; each bucket has its share. 0: no bound
  Eviction eviction = Eviction::kLeastRecent;
  std::uint32_t buckets = 4096;  // a power of two, at most 2^20; one holds at most 2^24 - 2 rows

  friend bool operator==(const TableSpec&, const TableSpec&) = default;

  // InvalidArgument with the table's name and every field that is wrong.
  Status Check() const;
  bool admits_at_once() const { return admit_after <= 1 && admit_probability >= 1; }

  TableMessage ToMessage() const;
  static Result<TableSpec> FromMessage(const TableMessage& message);  // checked
};

// The hash of an id. A bijection: equal hashes are equal ids.
inline std::uint64_t HashId(std::uint64_t id) {
  std::uint64_t h = id + 0x9E3779B97F4A7C15ULL;
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ULL;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBULL;
  return h ^ (h >> 31);
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
