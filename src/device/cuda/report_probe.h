// A kernel that is compiled for the GPUs that all others are compiled for.

#pragma once

namespace cohort::cuda {

const void* ReportProbe();  // for cudaFuncGetAttributes

}  // namespace cohort::cuda
