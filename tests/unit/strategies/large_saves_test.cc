// What a server holds of more than 2^31 bytes is saved and comes back: a hundred million rows, and
// a variable. Takes minutes, 8 GB of memory and 8 GB of the temporary folder's disk; where these
// are not there, it says so and is skipped. F21.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <cohort/io/checkpoint.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_client.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using testing::TempDir;

constexpr std::uint64_t kNeeded = std::uint64_t{8} << 30;
constexpr std::uint64_t kTwoGiB = std::uint64_t{1} << 31;

// Why there is no room; empty: there is.
std::string Lack(const std::string& folder) {
  std::ifstream meminfo("/proc/meminfo");
  std::uint64_t available = 0;
  for (std::string name; meminfo >> name;) {
    if (std::uint64_t kilobytes = 0; name == "MemAvailable:" && meminfo >> kilobytes) {
      available = kilobytes << 10;
    }
  }
  const std::uint64_t disk = std::filesystem::space(folder).available;
  if (available >= kNeeded && disk >= kNeeded) {
    return {};
  }
  return fmt::format(
      "{:.1f} GB of memory and {:.1f} GB of disk are free, this takes {:.1f} of both",
      static_cast<double>(available) / 1e9, static_cast<double>(disk) / 1e9,
      static_cast<double>(kNeeded) / 1e9);
}

// Of id or element i; not 0.
float ValueOf(std::uint64_t i) { return static_cast<float>(1 + i % 4093); }

// One server, of a model that it has been told of.
class OneServer {
 public:
  explicit OneServer(ModelSpec spec)
      : spec_(std::move(spec)),
        server_(OrThrow(Server::Start("127.0.0.1:0", 0, Log()))),
        client_(Client::Make(spec_, addresses(), Options())) {
    OrThrow(client_->Declare());
  }
  Client& client() { return *client_; }
  std::unique_ptr<RowClient> NewRows() { return RowClient::Make(spec_, addresses(), Options()); }

 private:
  std::vector<std::string> addresses() const {
    return {"127.0.0.1:" + std::to_string(server_->port())};
  }
  static ClientOptions Options() {
    return {.task = "worker:0", .peer_timeout = std::chrono::minutes(2)};
  }

  const ModelSpec spec_;
  const std::unique_ptr<Server> server_;
  const std::unique_ptr<Client> client_;
};

// ---- Rows ---------------------------------------------------------------------------------------

constexpr std::uint64_t kRows = 100'000'000;
constexpr std::uint64_t kAtATime = 1'000'000;

std::vector<std::uint64_t> IdsFrom(std::uint64_t first) {
  std::vector<std::uint64_t> ids(kAtATime);
  for (std::uint64_t i = 0; i < kAtATime; ++i) {
    ids[i] = first + i;
  }
  return ids;
}

ModelSpec OneTable(const TableSpec& table) {
  ModelSpec spec;
  spec.parameters = {{"bias", {1}, true, 0}};
  spec.optimizer = table.optimizer;
  spec.tables = {table};
  return spec;
}

void ExpectRows(RowClient& rows) {
  std::uint64_t wrong = 0;
  std::vector<float> values(kAtATime);
  for (std::uint64_t first = 0; first < kRows; first += kAtATime) {
    OrThrow(rows.Pull(0, IdsFrom(first), 2, /*training=*/false, values));
    for (std::uint64_t i = 0; i < kAtATime; ++i) {
      wrong += values[i] != ValueOf(first + i) ? 1 : 0;
    }
  }
  EXPECT_EQ(wrong, 0U) << "of " << kRows;
  OrThrow(rows.Pull(0, IdsFrom(kRows), 2, /*training=*/false, values));
  EXPECT_TRUE(std::ranges::all_of(values, [](float v) { return v == 0; })) << "rows of nobody";
}

TEST(LargeSaves, AHundredMillionRows) {
  const TempDir dir;
  if (const std::string lack = Lack(dir.path()); !lack.empty()) {
    GTEST_SKIP() << lack;
  }
  TableSpec table;
  table.name = "many";
  table.dim = 1;
  table.optimizer = Sgd({.learning_rate = 1})->config();
  const std::string file = dir / "many.rows";
  {
    OneServer server(OneTable(table));
    OrThrow(server.client().Assign(std::vector<float>(1), {}, 0));
    const auto rows = server.NewRows();
    std::vector<float> gradients(kAtATime);
    for (std::uint64_t first = 0; first < kRows; first += kAtATime) {
      const std::vector<std::uint64_t> ids = IdsFrom(first);
      std::ranges::transform(ids, gradients.begin(), [](std::uint64_t id) { return -ValueOf(id); });
      const RowClient::Gradients push = {.table = 0, .ids = ids, .values = gradients};
      OrThrow(rows->Push({&push, 1}, /*step=*/1, /*weight=*/1));
    }
    ExpectRows(*rows);
    OrThrow(SaveTable(*rows, 0, table, FileSystem::Local(), file));
  }
  const std::uint64_t bytes = std::filesystem::file_size(file);
  std::printf("%.1f bytes of the file for each row\n", static_cast<double>(bytes) / kRows);
  EXPECT_GT(bytes, kTwoGiB);
  OneServer another(OneTable(table));
  OrThrow(another.client().Assign(std::vector<float>(1), {}, 0));
  const auto rows = another.NewRows();
  const std::vector<std::string> chain = {file};
  OrThrow(LoadTable(*rows, 0, table, FileSystem::Local(), chain));
  ExpectRows(*rows);
}

// ---- Values -------------------------------------------------------------------------------------

constexpr std::int64_t kElements = (std::int64_t{1} << 29) + 3;  // 2 GiB and 12 bytes

// As the chief saves: what the server keeps at a point between two updates.
TEST(LargeSaves, AVariable) {
  const TempDir dir;
  if (const std::string lack = Lack(dir.path()); !lack.empty()) {
    GTEST_SKIP() << lack;
  }
  ModelSpec spec;
  spec.parameters = {{"large", {kElements}, true, 0}};
  spec.optimizer = Sgd({.learning_rate = 1})->config();
  std::vector<float> values(static_cast<std::size_t>(kElements));
  io::CheckpointStore store(FileSystem::Local(), dir / "saves");
  {
    OneServer server(spec);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = ValueOf(i);
    }
    OrThrow(server.client().Assign(values, {}, 7));
    std::ranges::fill(values, -1.0F);
    EXPECT_EQ(OrThrow(server.client().Freeze(1)), 7U);
    OrThrow(server.client().PullState(values, {}));
    const std::vector<io::CheckpointSource> sources = {{"large", {kElements}, values}};
    OrThrow(store.Save({.step = 7, .optimizer = spec.optimizer}, sources, {}));
    OrThrow(server.client().Thaw());
  }
  std::ranges::fill(values, -1.0F);
  const auto checkpoint = OrThrow(store.OpenLatest());
  EXPECT_EQ(checkpoint->state().step, 7);
  const std::vector<io::CheckpointTarget> targets = {{"large", {kElements}, values}};
  OrThrow(checkpoint->Read(io::CheckpointPart::kModel, targets));
  OneServer another(spec);
  OrThrow(another.client().Assign(values, {}, 7));
  std::ranges::fill(values, -1.0F);
  OrThrow(another.client().Pull(values, /*everything=*/true));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    wrong += values[i] != ValueOf(i) ? 1 : 0;
  }
  EXPECT_EQ(wrong, 0U) << "of " << kElements;
}

}  // namespace
}  // namespace cohort::ps
