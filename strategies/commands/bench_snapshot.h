// `cohort bench ps snapshot`.

#pragma once

namespace cohort {

int BenchSnapshotCommand(int argc, char** argv);

}  // namespace cohort
