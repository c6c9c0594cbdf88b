// One rank of a group in shared memory as a process of its own, for next_generation_test: it
// outlives a failure, and goes on with those that are left.
//
//   next_generation_task RANK SIZE FOLDER TIMEOUT_MS MEMORY SIGNAL
//
// All-reduces a large buffer until that fails. MEMORY says where the buffer is: `private` or
// `allocated` by the communicator. From its third operation on, in the middle of what this rank
// reduces, it sends itself SIGNAL; 0: none. Then it writes how long it waited, and the error, to
// FOLDER/failed.RANK. The ranks in FOLDER/next, once that is there, are those of the next
// generation, among which it all-reduces again; says "right" if all sums are, and if the buffer of
// what failed has stayed as it was left.
#include <cohort/cluster/folder_store.h>
#include <cohort/comm/shm.h>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <latch>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace cohort::testing {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kCount = 16 << 20;  // 64 MiB: far longer than it takes to strike
constexpr int kStruck = 3;  // and later ones, should the striker not get to run in time

struct Settings {
  int rank = 0;
  int size = 1;
  std::string folder;
  milliseconds timeout{0};
  bool allocated = false;
  int signal = 0;
};

// A rank in a generation, whose members are named as in the first.
Result<std::unique_ptr<Communicator>> Connect(const Settings& s, KeyValueStore& store,
                                              const std::vector<int>& members,
                                              std::uint64_t generation) {
  CommunicatorOptions options;
  options.timeout = s.timeout;
  options.generation = generation;
  options.peer_name = [members](int r) {
    return "worker:" + std::to_string(members[static_cast<std::size_t>(r)]);
  };
  const auto place = std::ranges::find(members, s.rank) - members.begin();
  return MakeShmCommunicator(static_cast<int>(place), static_cast<int>(members.size()), store,
                             "job", {.connect_timeout = seconds(20)}, options);
}

// Sends this process a signal once `value` changes. Returns when that is watched for.
std::jthread Strike(float& value, int signal) {
  const auto watching = std::make_shared<std::latch>(1);
  const float before = value;
  std::jthread striker([&value, signal, before, watching](const std::stop_token& stop) {
    const std::atomic_ref<float> watched(value);
    watching->count_down();
    while (!stop.stop_requested()) {
      if (watched.load() != before) {
        ::kill(::getpid(), signal);
        return;
      }
      std::this_thread::sleep_for(microseconds(20));
    }
  });
  watching->wait();
  return striker;
}

// The sum of each rank's number + 1; Internal where it is another.
Status Reduce(Communicator& comm, std::span<float> values, int strike) {
  std::ranges::fill(values, static_cast<float>(comm.rank() + 1));
  std::jthread striker;
  if (strike != 0) {
    const auto places = 2 * static_cast<std::size_t>(comm.size());
    const auto middle = 2 * static_cast<std::size_t>(comm.rank()) + 1;
    striker = Strike(values[values.size() / places * middle], strike);
  }
  Communicator::Pending work = comm.AllReduce(values, ReduceOp::kSum, {.name = "gradients"});
  COHORT_RETURN_IF_ERROR(work.status());
  COHORT_RETURN_IF_ERROR(work.value()->Wait());
  const auto size = static_cast<float>(comm.size());
  const float sum = size * (size + 1) / 2;
  if (!std::ranges::all_of(values, [&](float value) { return value == sum; })) {
    return Internal("a wrong sum");
  }
  return {};
}

Result<std::vector<int>> AwaitNext(const std::string& folder) {
  const Deadline until = DeadlineAfter(seconds(30));
  while (std::chrono::steady_clock::now() < until) {
    if (std::ifstream file(folder + "/next"); file.is_open()) {
      return std::vector<int>(std::istream_iterator<int>(file), {});
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  return DeadlineExceeded("nobody says who goes on");
}

Result<std::unique_ptr<Memory>> MemoryOf(const Settings& s, Communicator& comm) {
  const std::size_t bytes = kCount * sizeof(float);
  return s.allocated ? comm.Allocate(bytes) : AllocateMemory(bytes);
}

std::span<float> Floats(const Memory& memory) {
  return {reinterpret_cast<float*>(memory.bytes().data()), kCount};
}

Status Run(const Settings& s) {
  FolderStore store(s.folder);
  std::vector<int> members(static_cast<std::size_t>(s.size));
  std::iota(members.begin(), members.end(), 0);
  COHORT_ASSIGN_OR_RETURN(const auto first, Connect(s, store, members, 1));
  COHORT_ASSIGN_OR_RETURN(const auto memory, MemoryOf(s, *first));
  const std::span<float> values = Floats(*memory);
  Status status;
  Deadline begun;
  for (int operation = 1; status.ok(); ++operation) {
    begun = std::chrono::steady_clock::now();
    status = Reduce(*first, values, operation >= kStruck ? s.signal : 0);
  }
  const auto waited =
      std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begun);
  const std::vector<float> left(values.begin(), values.end());
  const std::string path = s.folder + "/failed." + std::to_string(s.rank);
  std::ofstream(path + ".draft") << waited.count() << "\n" << status.ToString() << "\n";
  std::rename((path + ".draft").c_str(), path.c_str());

  COHORT_ASSIGN_OR_RETURN(members, AwaitNext(s.folder));
  COHORT_ASSIGN_OR_RETURN(const auto second, Connect(s, store, members, 2));
  COHORT_ASSIGN_OR_RETURN(const auto fresh, MemoryOf(s, *second));
  for (int operation = 0; operation < 3; ++operation) {
    COHORT_RETURN_IF_ERROR(Reduce(*second, Floats(*fresh), 0));
  }
  if (!std::ranges::equal(values, left)) {
    return Internal("somebody has written to the buffer of the operation that failed");
  }
  // And it serves again, though nobody here has allocated it.
  COHORT_RETURN_IF_ERROR(Reduce(*second, values, 0));
  std::puts("right");
  return {};
}

}  // namespace
}  // namespace cohort::testing

int main(int /*argc*/, char** argv) {
  const cohort::Status status =
      cohort::testing::Run({std::atoi(argv[1]), std::atoi(argv[2]), argv[3],
                            std::chrono::milliseconds(std::atoi(argv[4])),
                            std::string(argv[5]) == "allocated", std::atoi(argv[6])});
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return cohort::ExitCode(status);
}
