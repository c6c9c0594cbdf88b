// CorruptBudget: how many corrupt TFRecord records a command may leave out, and what it has left
// out so far.

#pragma once

#include <cstdint>
#include <string>

#include <cohort/core/status.h>
#include <cohort/data/tf_record.h>

namespace cohort::data {

class CorruptBudget {
 public:
  static constexpr const char* kHelp =
      "leave out up to so many corrupt records of TFRecord files, and count them; what stands "
      "behind "
      "damage that cannot be passed is one (0: the first is an error)";

  // `most`: of all files together.
  explicit CorruptBudget(std::int64_t most) : most_(most) {}

  // One more, of which `error` tells: it, where that is one too many. `cut`: nothing behind it can
  // be found.
  Status Add(const Status& error, bool cut) {
    if (most_ == 0) {
      return error;
    }
    if (left_out() == 0) {
      found_.messages.push_back(error.message());
    }
    (cut ? found_.cut_files : found_.records) += 1;
    return left_out() <= most_
               ? Status()
               : DataLoss("more than " + std::to_string(most_) +
                          " corrupt records [--max-corrupt]; the first: " + found_.messages[0]);
  }

  const CorruptRecords& found() const { return found_; }
  std::int64_t left_out() const { return found_.records + found_.cut_files; }
  // Of a run's end, in one line; where something was left out.
  std::string Summary() const {
    return "left out: " + std::to_string(found_.records) +
           " corrupt records, and what stands behind damage in " +
           std::to_string(found_.cut_files) + " of the files; the first: " + found_.messages[0];
  }

 private:
  std::int64_t most_;
  CorruptRecords found_;  // with the first message only
};

}  // namespace cohort::data
