// Status and Result: how everything that the outside world can make fail is reported.
//
// Codes are numerically those of gRPC, so that a Status crosses the wire unchanged. A caller's own
// breach of a contract (a null argument, a call in the wrong state) is a ContractError exception,
// on the calling thread only.
//
// Messages say what failed, the detail, and what to do next:
//   worker:2 not reachable at 10.0.0.3:5000 after 30 s: connection refused [check cluster.worker[2]
//   in TF_CONFIG]
//
// Thread rules: values; copy freely, do not share one object between threads without a lock.

#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace cohort {

enum class StatusCode : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,  // the step was given up; state is as before it
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,  // a peer or the network is gone; a retry may help
  kDataLoss = 15,     // bytes are bad
};

// "InvalidArgument", "Unavailable", ...
std::string_view StatusCodeName(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "OK", or "Unavailable: worker:2 ...".
  std::string ToString() const;

  // The same code with `prefix: ` before the message; OK stays OK. Use it to add where or for whom.
  Status Annotate(std::string_view prefix) const;

  friend bool operator==(const Status&, const Status&) = default;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return {}; }
Status Cancelled(std::string message);
Status InvalidArgument(std::string message);
Status DeadlineExceeded(std::string message);
Status NotFound(std::string message);
Status AlreadyExists(std::string message);
Status PermissionDenied(std::string message);
Status ResourceExhausted(std::string message);
Status FailedPrecondition(std::string message);
Status Aborted(std::string message);
Status OutOfRange(std::string message);
Status Unimplemented(std::string message);
Status Internal(std::string message);
Status Unavailable(std::string message);
Status DataLoss(std::string message);

// `what: strerror(error_number)` under the code that fits: ENOENT NotFound, EACCES and EROFS
// PermissionDenied, ENOSPC ResourceExhausted, ECONNREFUSED and its kin Unavailable, otherwise
// Unknown.
Status ErrnoStatus(int error_number, std::string_view what);

// The process exit code that a program returns for a status that ended it: 0 OK; 2 what the user
// must mend: usage, configuration, input, a full disk (InvalidArgument, NotFound, AlreadyExists,
// PermissionDenied, FailedPrecondition, OutOfRange, Unimplemented, DataLoss, ResourceExhausted);
// 138 peer lost or network (Unavailable, DeadlineExceeded, Aborted); 143 Cancelled; 1 the rest.
int ExitCode(const Status& status);

// Where a contract is checked. As std::source_location, which clang 14 can't compile with this
// standard library.
struct CallSite {
  const char* file;
  int line;
  static constexpr CallSite Current(const char* file = __builtin_FILE(),
                                    int line = __builtin_LINE()) {
    return {file, line};
  }
};

// A caller broke a contract. Thrown on the caller's thread; what() holds file, line and the rule.
class ContractError : public std::logic_error {
 public:
  explicit ContractError(std::string_view rule, CallSite where = CallSite::Current());
};

// Throws ContractError unless `holds`.
inline void Require(bool holds, std::string_view rule, CallSite where = CallSite::Current()) {
  if (!holds) [[unlikely]] {
    throw ContractError(rule, where);
  }
}

// A T, or the Status that says why there is none. Result<T> converts from both.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) {
    Require(!status_.ok(), "a Result without a value needs an error status");
  }
  // From anything that T can be made of implicitly: unique_ptr<Derived> to unique_ptr<Base>, and so
  // on.
  template <typename U>
  requires(std::is_convertible_v<U&&, T> && !std::is_same_v<std::remove_cvref_t<U>, T> &&
           !std::is_same_v<std::remove_cvref_t<U>, Status> &&
           !std::is_same_v<std::remove_cvref_t<U>, Result>) Result(U&& value)
      : value_(std::forward<U>(value)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // The value. ContractError if there is none.
  T& value() & { return Check(), *value_; }
  const T& value() const& { return Check(), *value_; }
  T&& value() && { return Check(), *std::move(value_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  void Check() const {
    if (!value_.has_value()) [[unlikely]] {
      throw ContractError("value() of a failed Result: " + status_.ToString());
    }
  }

  Status status_;
  std::optional<T> value_;
};

// A Status as an exception, for programs: catch it in main and return ExitCode(error.status()).
class StatusError : public std::runtime_error {
 public:
  explicit StatusError(Status status)
      : std::runtime_error(status.ToString()), status_(std::move(status)) {}
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// For programs and tests, the bridge to exceptions: the value, or StatusError.
template <typename T>
T OrThrow(Result<T> result) {
  if (!result.ok()) {
    throw StatusError(result.status());
  }
  return std::move(result).value();
}
inline void OrThrow(const Status& status) {
  if (!status.ok()) {
    throw StatusError(status);
  }
}

}  // namespace cohort

// Returns the status of `expr` from this function unless it is OK.
#define COHORT_RETURN_IF_ERROR(expr)                                    \
  do {                                                                  \
    if (::cohort::Status cohort_status = (expr); !cohort_status.ok()) { \
      return cohort_status;                                             \
    }                                                                   \
  } while (false)

// Declares or assigns `lhs` from the Result `expr`, or returns its status from this function.
#define COHORT_ASSIGN_OR_RETURN(lhs, expr) \
  COHORT_ASSIGN_OR_RETURN_(lhs, expr, COHORT_CONCAT_(cohort_result_, __LINE__))
#define COHORT_ASSIGN_OR_RETURN_(lhs, expr, result) \
  auto result = (expr);                             \
  if (!result.ok()) {                               \
    return result.status();                         \
  }                                                 \
  lhs = std::move(result).value()
#define COHORT_CONCAT_(a, b) COHORT_CONCAT_2_(a, b)
#define COHORT_CONCAT_2_(a, b) a##b
