// A file behind HTTP: blocks read ahead, parts fetched at once, one deadline for a whole read.

#pragma once

#include <memory>

#include <cohort/core/file_system.h>

#include "remote/requests.h"

namespace cohort::data {

// Asks for its size and ETag.
Result<std::unique_ptr<RandomAccessFile>> OpenRemote(std::shared_ptr<Shared> shared, Target target);

}  // namespace cohort::data
