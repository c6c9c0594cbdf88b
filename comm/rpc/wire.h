// Between the messages of the coordination service and the types of cohort.

#pragma once

#include <cohort/coordination.pb.h>

#include <cohort/core/status.h>

#include "coordination_state.h"

namespace cohort {

inline void ToWire(const Status& status, wire::Outcome* outcome) {
  outcome->set_code(static_cast<int>(status.code()));
  outcome->set_message(status.message());
}

inline Status FromWire(const wire::Outcome& outcome) {
  if (outcome.code() == 0) {
    return OkStatus();
  }
  const bool known =
      outcome.code() > 0 && outcome.code() <= static_cast<int>(StatusCode::kDataLoss);
  return Status(known ? static_cast<StatusCode>(outcome.code()) : StatusCode::kUnknown,
                outcome.message());
}

inline void ToWire(const TaskProgress& progress, wire::Progress* to) {
  to->set_generation(progress.generation);
  to->set_sequence(progress.sequence);
  to->set_operation(progress.operation);
  to->set_age_ms(progress.age.count());
  to->set_under_way(progress.under_way);
}

inline TaskProgress FromWire(const wire::Progress& progress) {
  return {progress.generation(), progress.sequence(), progress.operation(),
          std::chrono::milliseconds(progress.age_ms()), progress.under_way()};
}

inline Result<Caller> FromWire(const wire::Caller& caller) {
  COHORT_ASSIGN_OR_RETURN(const TaskId task, TaskId::Parse(caller.task()));
  return Caller{task, caller.incarnation()};
}

}  // namespace cohort
