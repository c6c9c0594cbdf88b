// What the communicator suites are made of: values whose results are exact in every type, and
// checks of one operation.
#pragma once

#include <cohort/comm/communicator.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace cohort::testing {

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64,  DType::kInt32, DType::kInt64,
                                    DType::kFloat16, DType::kBFloat16, DType::kUInt8};
inline constexpr ReduceOp kReduceOps[] = {ReduceOp::kSum, ReduceOp::kMean, ReduceOp::kMin,
                                          ReduceOp::kMax, ReduceOp::kProduct};

// A buffer of any element type, filled with small integers.
class Values {
 public:
  Values(DType dtype, std::int64_t count)
      : dtype_(dtype), count_(count), bytes_(static_cast<std::size_t>(count) * SizeOf(dtype)) {}

  Buffer buffer() { return {bytes_.data(), count_, dtype_}; }
  Buffer slice(std::int64_t begin, std::int64_t count) {
    return {bytes_.data() + static_cast<std::size_t>(begin) * SizeOf(dtype_), count, dtype_};
  }
  bool is_unsigned() const { return dtype_ == DType::kUInt8; }
  bool is_integer() const {
    return is_unsigned() || dtype_ == DType::kInt32 || dtype_ == DType::kInt64;
  }
  void Set(std::int64_t i, double value) {
    switch (dtype_) {
      case DType::kFloat32:
        return Put(i, static_cast<float>(value));
      case DType::kFloat64:
        return Put(i, value);
      case DType::kInt32:
        return Put(i, static_cast<std::int32_t>(value));
      case DType::kInt64:
        return Put(i, static_cast<std::int64_t>(value));
      case DType::kFloat16:
        return Put(i, Float16(static_cast<float>(value)));
      case DType::kBFloat16:
        return Put(i, BFloat16(static_cast<float>(value)));
      case DType::kUInt8:
        return Put(i, static_cast<std::uint8_t>(value));
    }
  }
  friend bool operator==(const Values& a, const Values& b) { return a.bytes_ == b.bytes_; }

 private:
  template <typename T>
  void Put(std::int64_t i, T value) {
    std::memcpy(bytes_.data() + static_cast<std::size_t>(i) * sizeof(T), &value, sizeof(T));
  }

  DType dtype_;
  std::int64_t count_;
  std::vector<std::byte> bytes_;
};

// What rank r gives at place i: small enough that every result is exact in every type.
double Given(const Values& values, ReduceOp op, int rank, std::int64_t i);

// And what comes of it.
double Reduced(const Values& values, ReduceOp op, int ranks, std::int64_t i);

// What is wrong on this rank, or OK.
Status Check(bool right, const std::string& what);

Status WaitFor(Communicator::Pending pending);

// What a rank hears that calls nothing; OK if it hears nothing for a minute.
Status Failure(const Communicator& comm);

// "auto" and every algorithm that the operation has here.
std::vector<std::string> Algorithms(const Communicator& comm, OperationKind kind);

// Around the places where something changes: nothing, fewer elements than ranks, the segments (of
// 64 bytes in most cases), a segment for each rank, and the size from which costs are measured.
std::vector<std::int64_t> Counts(int ranks);

enum class Place { kIn, kOut };

// The operation, for messages.
std::string Describe(DType dtype, ReduceOp op, std::int64_t count, const std::string& algorithm);

// One operation on what is Given; what is wrong with its result.
Status CheckAllReduce(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                      const std::string& algorithm, Place place = Place::kIn);

Status CheckReduce(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count, int root,
                   const std::string& algorithm);

Status CheckReduceScatter(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                          const std::string& algorithm, Place place = Place::kOut);

// Of this rank only, in order.
std::vector<std::int32_t> Numbers(int rank, std::int64_t count);

}  // namespace cohort::testing
