// TableSpec: what a sparse table is. A model declares it (ParameterSet::AddTable); strategies,
// servers and files must agree on it.
//
// A table maps 64-bit ids to rows of `dim` floats, each with its optimizer slots. Rows are made as
// ids come up, so a table needs no vocabulary.
//
// Values: copy and compare; any thread.

#pragma once

#include <cstdint>
#include <string>

#include <cohort/core/status.h>

namespace cohort {

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
  std::string optimizer;  // for RowOptimizer::Make; in a ParameterSet, empty: as Bind is given
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

  // Rows unused for more steps go, a few buckets at each step, so at most twice that time after
  // their last use. 0: none do.
  std::uint32_t time_to_live = 0;
  std::uint64_t capacity = 0;  // rows, on all servers; each bucket has its share. 0: no bound
  Eviction eviction = Eviction::kLeastRecent;
  // How rows and their gradients travel between processes; what a server holds is float32. Half the
  // bytes, or about a quarter, for the errors that row_codec.h tells.
  enum class Wire { kFloat32, kFloat16, kInt8, kBFloat16 };
  Wire wire = Wire::kFloat32;
  // Of so many rows a worker keeps what rounding took of their gradients, and adds it to their next
  // ones (error feedback), those it pushed least recently going first; 0: what rounding takes is
  // lost. About 4 dim + 32 bytes of the worker's memory for each. The worker's own affair: neither
  // compared nor in the fingerprint, messages or files; nothing where the wire is float32.
  std::uint64_t wire_feedback = 0;  // at most 2^31
  std::uint32_t buckets = 4096;     // a power of two, at most 2^20; one holds at most 2^24 - 2 rows

  // In all that processes and files must agree on.
  friend bool operator==(const TableSpec& a, const TableSpec& b);

  // InvalidArgument with the table's name and every field that is wrong.
  Status Check() const;
  // OK if equal; else FailedPrecondition with the first field that differs, in which this is
  // "declared" and `other` is `who`'s.
  Status Compare(const TableSpec& other, const std::string& who) const;
  // A digest of every field that is compared.
  std::uint64_t Fingerprint() const;
  bool admits_at_once() const { return admit_after <= 1 && admit_probability >= 1; }
};

}  // namespace cohort
