#include "nccl/board.h"

#include <span>

namespace cohort {
namespace {

// The code's digits, a space, the message.
std::string EncodeStatus(const Status& status) {
  return std::to_string(static_cast<int>(status.code())) + " " + status.message();
}

Status DecodeStatus(const std::string& text) {
  const std::size_t space = text.find(' ');
  int code = 0;
  for (std::size_t i = 0; i < space && i < 3 && i < text.size(); ++i) {
    code = code * 10 + (text[i] - '0');
  }
  if (space == std::string::npos || code <= 0 || code > static_cast<int>(StatusCode::kDataLoss)) {
    return Internal("a verdict that cannot be read: " + text);
  }
  return {static_cast<StatusCode>(code), text.substr(space + 1)};
}

}  // namespace

std::string EncodeRecord(const OperationRecord& record) {
  const std::vector<std::byte> bytes = record.Encode();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::optional<OperationRecord> DecodeRecord(const std::string& text) {
  return OperationRecord::Decode(std::as_bytes(std::span(text)));
}

Status Board::Judge(const Status& status) {
  const Status told = TellAll("verdict", EncodeStatus(status));
  // Those who look for trouble find the verdict.
  (void)TellAll("trouble", std::to_string(rank_));
  if (told.ok()) {
    return status;
  }
  return Verdict().value_or(status);
}

std::optional<Status> Board::Verdict() {
  const Result<std::string> text = LookAll("verdict");
  return text.ok() ? std::optional(DecodeStatus(text.value())) : std::nullopt;
}

void Board::TellWhere(const Whereabouts& where) {
  (void)Tell("where", static_cast<char>(where.state) + EncodeRecord(where.record));
}

std::optional<Whereabouts> Board::Where(int rank) {
  const Result<std::string> text = Look("where", rank);
  if (!text.ok() || text.value().empty()) {
    return std::nullopt;
  }
  std::optional<OperationRecord> record = DecodeRecord(text.value().substr(1));
  if (!record) {
    return std::nullopt;
  }
  return Whereabouts{static_cast<Whereabouts::State>(text.value()[0]), std::move(*record)};
}

}  // namespace cohort
