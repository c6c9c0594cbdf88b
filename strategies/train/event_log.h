// The chief's TensorBoard curves: one event file for training, one for evaluation.

#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/io/event_writer.h>

namespace cohort {

class EventLog {
 public:
  // `folder` empty: writes nothing.
  EventLog(std::string folder, std::vector<std::string> metric_names)
      : folder_(std::move(folder)), metric_names_(std::move(metric_names)) {}

  // Curves continue at this step, whatever was written of it and of later ones.
  void ResumeAt(std::int64_t step) {
    resume_step_ = step;
    writers_.clear();  // others say so as they are opened
  }
  // One point of every curve of `run` ("train", "eval").
  Status Write(const std::string& run, std::int64_t step, double loss,
               const std::vector<double>& metrics, double examples_per_second);

 private:
  std::string folder_;
  std::vector<std::string> metric_names_;
  std::int64_t resume_step_ = 0;
  std::map<std::string, std::unique_ptr<io::EventWriter>> writers_;
};

}  // namespace cohort
