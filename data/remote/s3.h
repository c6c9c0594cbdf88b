// Objects of an S3 bucket: written, listed, copied, deleted.
//
// An object is there when its WritableFile is closed, and not before: up to 8 MiB in one request,
// more in parts (multipart upload), which are given up if the file is not closed.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>

#include "remote/requests.h"

namespace cohort::data {

// `only_new`: Close is AlreadyExists where there is such an object.
Result<std::unique_ptr<WritableFile>> CreateS3Object(std::shared_ptr<Shared> shared,
                                                     const std::string& path, bool only_new);
// Objects and folders in folder `path` whose names begin with `prefix`, in bytewise order; NotFound
// if there are none.
Result<std::vector<std::string>> ListS3(Shared& shared, const std::string& path,
                                        const std::string& prefix);
// Within S3; at most 5 GB.
Status CopyS3Object(Shared& shared, const std::string& from, const std::string& to);
// The object, and those in the folder of this name; none is fine.
Status RemoveS3(Shared& shared, const std::string& path);
Status RemoveS3Object(Shared& shared, const std::string& path);  // this one alone

}  // namespace cohort::data
