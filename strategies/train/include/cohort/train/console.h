// What a training program shows a person: one redrawn line on a terminal, a line every few seconds
// elsewhere.

#pragma once

#include <chrono>
#include <functional>

#include <cohort/train/trainer.h>

namespace cohort {

// For TrainerOptions::progress. Writes to standard error. Where that is no terminal, or TERM is
// dumb, a line at most every `interval`, and one at the end of each epoch.
std::function<void(const Progress&)> ConsoleProgress(
    std::chrono::milliseconds interval = std::chrono::seconds(5));

}  // namespace cohort
