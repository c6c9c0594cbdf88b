#include "event_log.h"

#include <fmt/format.h>

namespace cohort {

Status EventLog::Write(const std::string& run, std::int64_t step, double loss,
                       const std::vector<double>& metrics, double examples_per_second) {
  if (folder_.empty()) {
    return {};
  }
  std::unique_ptr<io::EventWriter>& writer = writers_[run];
  if (writer == nullptr) {
    COHORT_ASSIGN_OR_RETURN(writer,
                            io::EventWriter::Create(FileSystem::Local(), folder_ + "/" + run));
    if (resume_step_ > 0) {
      COHORT_RETURN_IF_ERROR(writer->Resume(resume_step_));
    }
  }
  std::vector<std::string> names = {"loss", "examples_per_second"};
  std::vector<double> values = {loss, examples_per_second};
  for (std::size_t i = 0; i < metrics.size(); ++i) {
    names.push_back(i < metric_names_.size() ? metric_names_[i] : fmt::format("metric_{}", i));
    values.push_back(metrics[i]);
  }
  std::vector<io::Scalar> scalars;
  for (std::size_t i = 0; i < names.size(); ++i) {
    scalars.push_back({names[i], static_cast<float>(values[i])});
  }
  COHORT_RETURN_IF_ERROR(writer->Write(step, scalars));
  return writer->Flush();
}

}  // namespace cohort
