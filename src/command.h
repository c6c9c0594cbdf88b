// Subcommands of the program `cohort`. Each stands in the commands/ folder of the module that it
// exposes, is linked into the program only, and may print and exit. argv[0] is the command's full
// name ("cohort bench allreduce"); the return value is the process's exit code.

#pragma once

namespace cohort {

int DoctorCommand(int argc, char** argv);           // comm/commands/doctor/command.cc
int ConfigCheckCommand(int argc, char** argv);      // src/cluster/commands/config.cc
int DataDigitsCommand(int argc, char** argv);       // data/commands/digits.cc
int DataCatCommand(int argc, char** argv);          // data/commands/cat.cc
int DataConvertCommand(int argc, char** argv);      // data/commands/convert.cc
int DataIndexCommand(int argc, char** argv);        // data/commands/index.cc
int DataShardCommand(int argc, char** argv);        // data/commands/shard.cc
int DataStatsCommand(int argc, char** argv);        // data/commands/stats.cc
int DataVerifyCommand(int argc, char** argv);       // data/commands/verify.cc
int DataStatCommand(int argc, char** argv);         // data/commands/stat.cc
int BenchInputCommand(int argc, char** argv);       // data/commands/bench_input.cc
int DataServeCommand(int argc, char** argv);        // data/service/commands/serve.cc
int BenchServiceCommand(int argc, char** argv);     // data/service/commands/bench_service.cc
int LaunchCommand(int argc, char** argv);           // strategies/commands/launch.cc
int BenchCollectiveCommand(int argc, char** argv);  // comm/commands/bench/command.cc
int TraceCommand(int argc, char** argv);            // comm/commands/trace/command.cc
int BenchScalingCommand(int argc, char** argv);     // strategies/commands/bench_scaling.cc
int BenchOverlapCommand(int argc, char** argv);     // strategies/commands/bench_overlap.cc
int BenchFeedCommand(int argc, char** argv);        // strategies/commands/bench_feed.cc
int BenchDlrmCommand(int argc, char** argv);        // strategies/commands/bench_dlrm.cc
int BenchEmbeddingCommand(int argc, char** argv);   // strategies/commands/bench_embedding/
int BenchPsCommand(int argc, char** argv);          // strategies/commands/bench_ps.cc
int BenchExplainCommand(int argc, char** argv);     // comm/commands/bench_explain.cc
int BenchReductionCommand(int argc, char** argv);   // comm/commands/bench_reduction.cc
int BenchTrainCommand(int argc, char** argv);       // src/nn/commands/bench_train.cc
int BenchDeviceCommand(int argc, char** argv);      // src/device/commands/bench_device.cc

}  // namespace cohort
