// What is wrong with a frame of rows, as servers say it.

#pragma once

#include <string>

#include <cohort/core/status.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/frames/frame.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

inline std::string NameOf(const RowTable& table) { return "table \"" + table.spec().name + "\""; }

inline Error ToError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return {};
    case StatusCode::kNotFound:
      return MakeError(Error::NO_ROW, status.message());
    case StatusCode::kResourceExhausted:
      return MakeError(Error::TABLE_FULL, status.message());
    case StatusCode::kDataLoss:
      return MakeError(Error::DAMAGED, status.message());
    case StatusCode::kAborted:
      return MakeError(Error::OUT_OF_ORDER, status.message());
    default:
      return MakeError(Error::BAD_ROWS, status.message());
  }
}

}  // namespace cohort::ps
