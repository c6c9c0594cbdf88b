#include "command.h"

namespace cohort {
int ConfigCheckCommand(int /*argc*/, char** /*argv*/) { return 1; }
}  // namespace cohort
