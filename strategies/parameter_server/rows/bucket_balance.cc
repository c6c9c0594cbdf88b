#include "parameter_server/rows/bucket_balance.h"

#include <algorithm>
#include <numeric>

namespace cohort::ps {

std::vector<BucketMoveTo> PlanMoves(std::vector<BucketLoad> loads, int servers, int most) {
  std::vector<std::uint64_t> of_server(static_cast<std::size_t>(servers), 0);
  for (const BucketLoad& load : loads) {
    of_server[static_cast<std::size_t>(load.server)] += load.updates;
  }
  const std::uint64_t all = std::accumulate(of_server.begin(), of_server.end(), std::uint64_t{0});
  std::vector<BucketMoveTo> moves;
  while (static_cast<int>(moves.size()) < most) {
    const auto [least, greatest] = std::ranges::minmax_element(of_server);
    const std::uint64_t gap = *greatest - *least;
    if (*greatest * static_cast<std::uint64_t>(servers) * 10 <= all * 11) {
      break;
    }
    const auto from = static_cast<int>(greatest - of_server.begin());
    // What moves w brings a gap of |gap - 2 w|: w is best where it is half of it.
    const auto rest = [gap](const BucketLoad& load) {
      const std::uint64_t twice = 2 * load.updates;
      return twice > gap ? twice - gap : gap - twice;
    };
    BucketLoad* best = nullptr;
    for (BucketLoad& load : loads) {
      if (load.server == from && load.updates > 0 && rest(load) < gap &&
          (best == nullptr || rest(load) < rest(*best))) {
        best = &load;
      }
    }
    if (best == nullptr) {
      break;
    }
    const auto to = static_cast<int>(least - of_server.begin());
    *greatest -= best->updates;
    *least += best->updates;
    best->server = to;
    moves.push_back({best->bucket, to});
  }
  return moves;
}

std::vector<BucketLoad> LoadMeter::Since(const std::vector<BucketLoad>& counts) {
  std::vector<BucketLoad> since;
  for (const BucketLoad& count : counts) {
    const auto [at, is_new] = last_.try_emplace(count.bucket, count);
    BucketLoad& last = at->second;
    const bool counts_on = !is_new && last.server == count.server && count.updates >= last.updates;
    since.push_back({count.bucket, count.server, counts_on ? count.updates - last.updates : 0});
    last = count;
  }
  return since;
}

}  // namespace cohort::ps
