#include "synchronous/row_exchange.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "synchronous/agreement.h"

namespace cohort {
namespace {

std::span<float> RowOf(const RowTable& table, std::int64_t index) {
  return table.values.subspan(static_cast<std::size_t>(index * table.row),
                              static_cast<std::size_t>(table.row));
}

void AddTo(float* to, const float* from, std::int64_t elements) {
  for (std::int64_t k = 0; k < elements; ++k) {
    to[k] += from[k];
  }
}

// A row as it travels: where it belongs, and its values.
struct TravellingRow {
  std::int64_t index = 0;
  float* values = nullptr;
};

// Rows of two ranks in one list, equal ones added to the first's.
std::vector<TravellingRow> Merge(const std::vector<TravellingRow>& a,
                                 const std::vector<TravellingRow>& b, std::int64_t row) {
  std::vector<TravellingRow> merged;
  merged.reserve(a.size() + b.size());
  auto left = a.begin();
  auto right = b.begin();
  while (left != a.end() || right != b.end()) {
    if (right == b.end() || (left != a.end() && left->index < right->index)) {
      merged.push_back(*left++);
    } else if (left == a.end() || right->index < left->index) {
      merged.push_back(*right++);
    } else {
      AddTo(left->values, right->values, row);
      merged.push_back(*left++);
      ++right;
    }
  }
  return merged;
}

// In canonical order: ranks in pairs until a power of two of lists remains, then a balanced tree.
std::vector<TravellingRow> Combine(std::vector<std::vector<TravellingRow>> lists,
                                   std::int64_t row) {
  const std::size_t extra = lists.size() - std::bit_floor(lists.size());
  std::vector<std::vector<TravellingRow>> numbers;
  for (std::size_t r = 0; r < lists.size(); ++r) {
    if (r < 2 * extra) {
      numbers.push_back(Merge(lists[r], lists[r + 1], row));
      ++r;
    } else {
      numbers.push_back(std::move(lists[r]));
    }
  }
  for (std::size_t step = 1; step < numbers.size(); step *= 2) {
    for (std::size_t i = 0; i + step < numbers.size(); i += 2 * step) {
      numbers[i] = Merge(numbers[i], numbers[i + step], row);
    }
  }
  return std::move(numbers.front());
}

class RowExchange final : public Work {
 public:
  RowExchange(Communicator& communicator, RowTable table, const CollectiveOptions& options)
      : communicator_(communicator),
        table_(table),
        options_(options),
        counts_(static_cast<std::size_t>(communicator.size())) {}

  // On the stream the number of touched rows becomes known; behind it the processes tell theirs.
  Status Start() {
    options_.stream->Enqueue([mine = mine_, table = table_]() -> Status {
      *mine = table.touched->all ? table.rows
                                 : static_cast<std::int64_t>(table.touched->indices.size());
      return {};
    });
    CollectiveOptions gather = options_;
    gather.algorithm = "auto";
    auto counted = communicator_.AllGather(std::span<const std::int64_t>(mine_.get(), 1),
                                           std::span<std::int64_t>(counts_), gather);
    COHORT_RETURN_IF_ERROR(counted.status());
    counted_ = std::move(counted).value();
    options_.stream = nullptr;
    return {};
  }

  bool done() const override { return finished_; }
  Status Wait(Deadline deadline) override {
    if (!finished_) {
      COHORT_RETURN_IF_ERROR(counted_->Wait(deadline));
    }
    return Wait();
  }
  Status Wait() override {
    if (!finished_) {
      outcome_ = Finish();
      finished_ = true;
    }
    return outcome_;
  }
  void Order(Stream& stream) override {
    stream.Enqueue([this] { return Wait(); });
  }

 private:
  Status Finish() {
    COHORT_RETURN_IF_ERROR(counted_->Wait());
    const std::int64_t touched = std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0});
    const std::int64_t record = 8 + 4 * table_.row;
    if (touched * record < 8 * table_.rows * table_.row) {
      return SendRows(record);
    }
    COHORT_RETURN_IF_ERROR(Await(communicator_.AllReduce(table_.values, ReduceOp::kSum, options_)));
    *table_.touched = {.all = true, .indices = {}};
    return {};
  }

  Status SendRows(std::int64_t record) {
    std::vector<std::byte> mine(static_cast<std::size_t>(*mine_ * record));
    std::vector<std::int64_t> indices = table_.touched->indices;
    if (table_.touched->all) {
      indices.resize(static_cast<std::size_t>(table_.rows));
      std::iota(indices.begin(), indices.end(), 0);
    }
    std::byte* to = mine.data();
    for (const std::int64_t index : indices) {
      std::memcpy(to, &index, sizeof(index));
      const std::span<const float> values = RowOf(table_, index);
      std::memcpy(to + sizeof(index), values.data(), values.size_bytes());
      to += record;
    }
    CollectiveOptions gather = options_;
    gather.algorithm = "auto";
    std::vector<std::int64_t> bytes = counts_;
    for (std::int64_t& count : bytes) {
      count *= record;
    }
    std::vector<std::byte> all(
        static_cast<std::size_t>(std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0})));
    COHORT_RETURN_IF_ERROR(Await(communicator_.AllGatherV(
        Buffer(mine.data(), static_cast<std::int64_t>(mine.size()), DType::kUInt8),
        Buffer(all.data(), static_cast<std::int64_t>(all.size()), DType::kUInt8), bytes, gather)));
    return Take(all, record);
  }

  Status Take(std::vector<std::byte>& all, std::int64_t record) {
    std::vector<std::vector<TravellingRow>> lists(counts_.size());
    std::byte* from = all.data();
    for (std::size_t r = 0; r < lists.size(); ++r) {
      for (std::int64_t i = 0; i < counts_[r]; ++i) {
        TravellingRow row;
        std::memcpy(&row.index, from, sizeof(row.index));
        if (row.index < 0 || row.index >= table_.rows) {
          return DataLoss("row " + std::to_string(row.index) + " of " +
                          std::to_string(table_.rows) + " from " +
                          communicator_.peer_name(static_cast<int>(r)) + " in " + options_.name);
        }
        row.values = reinterpret_cast<float*>(from + sizeof(row.index));
        lists[r].push_back(row);
        from += record;
      }
    }
    ZeroTouched(table_);
    for (const TravellingRow& row : Combine(std::move(lists), table_.row)) {
      std::copy_n(row.values, table_.row, RowOf(table_, row.index).data());
      table_.touched->indices.push_back(row.index);
    }
    return {};
  }

  Communicator& communicator_;
  const RowTable table_;
  CollectiveOptions options_;
  // Rows that this rank touched. Owners: this and the work on the stream that counts them.
  const std::shared_ptr<std::int64_t> mine_ = std::make_shared<std::int64_t>(0);
  std::vector<std::int64_t> counts_;  // that each did
  std::unique_ptr<Work> counted_;
  bool finished_ = false;
  Status outcome_;
};

}  // namespace

RowTable TableOf(const ParameterSet& parameters, const BucketPlan& plan, int parameter,
                 Arena& arena) {
  const BucketPlan::Place& place = plan.places[static_cast<std::size_t>(parameter)];
  const Shape& shape = parameters[parameter].shape;
  return {.values = arena.values(place.offset, place.elements),
          .rows = shape[0],
          .row = shape[0] == 0 ? 0 : place.elements / shape[0],
          .touched = &arena.touched()[static_cast<std::size_t>(parameter)]};
}

void ZeroTouched(const RowTable& table) {
  if (table.touched->all) {
    std::ranges::fill(table.values, 0.0F);
  }
  for (const std::int64_t index : table.touched->indices) {
    std::ranges::fill(RowOf(table, index), 0.0F);
  }
  *table.touched = {};
}

void AddTouched(const RowTable& to, const RowTable& from) {
  if (from.touched->all) {
    AddTo(to.values.data(), from.values.data(), static_cast<std::int64_t>(to.values.size()));
  } else {
    for (const std::int64_t index : from.touched->indices) {
      AddTo(RowOf(to, index).data(), RowOf(from, index).data(), to.row);
    }
  }
  *to.touched = UnionOf(*to.touched, *from.touched);
}

Communicator::Pending ExchangeRows(Communicator& communicator, RowTable table,
                                   const CollectiveOptions& options) {
  auto exchange = std::make_unique<RowExchange>(communicator, table, options);
  COHORT_RETURN_IF_ERROR(exchange->Start());
  return std::unique_ptr<Work>(std::move(exchange));
}

}  // namespace cohort
