// What ranks of one host write into each other's memory, and how it is taken back from one that
// stops in the middle. Two ranks in one process, each with its own mapping of the other's memory.

#include "shm/board.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>

namespace cohort {
namespace {

using ::testing::Each;
using ::testing::Pair;

constexpr std::size_t kPage = Board::kPage;
constexpr std::size_t kBytes = 5 * kPage;

std::shared_ptr<SharedSegments> SegmentsOver(int rank, int fd) {
  std::vector<Socket> sockets(2);
  sockets[static_cast<std::size_t>(1 - rank)] = Socket(fd);
  return std::make_shared<SharedSegments>(std::move(sockets));
}

class BoardTest : public ::testing::Test {
 protected:
  BoardTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()),
              0);
    for (int rank = 0; rank < 2; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      segments_[r] = SegmentsOver(rank, ends[r]);
      for (std::size_t p = 0; p < 2; ++p) {
        bells_[r].Add(regions_[p].sleeps, -1);  // nobody sleeps
      }
      boards_[r].emplace(rank, std::vector<Region*>{&regions_[0], &regions_[1]}, bells_[r],
                         segments_[r].get(), false);
    }
    memory_ = OrThrow(segments_[0]->Allocate(kBytes));
    std::ranges::fill(memory_->bytes(), std::byte{1});
  }

  Board& owner() { return *boards_[0]; }
  Board& writer() { return *boards_[1]; }
  // Operation 1: the owner opens `data`, the writer finds it.
  std::byte* ShowAndReach(MutableBytes data) {
    const std::optional<Loan> loan = owner().Lend(data);
    EXPECT_TRUE(loan.has_value());
    owner().Show(1, 7, {});
    owner().Open(data);
    writer().Show(1, 7, {});
    return writer().Resolve(0, *loan, data.size());
  }

  std::array<Region, 2> regions_;
  std::array<Bells, 2> bells_;
  std::array<std::shared_ptr<SharedSegments>, 2> segments_;
  std::array<std::optional<Board>, 2> boards_;
  std::unique_ptr<Memory> memory_;
};

// Of few bytes and of many. Rank 0 is ahead: it has read what rank 1 shows, and shows the next in
// its place, while rank 1 has yet to read.
TEST_F(BoardTest, WhatTwoRanksShowInTurnsIsThereUntilItIsRead) {
  const auto bytes = [](std::uint64_t number) {
    return number % 3 == 0 ? std::size_t{8} : number % 3 == 1 ? std::size_t{49} : BoardSlot::kBytes;
  };
  const auto mark = [](int rank, std::uint64_t number) {
    return 10 * number + static_cast<std::uint64_t>(rank);
  };
  const auto show = [&](int rank, std::uint64_t number) {
    const std::vector<std::byte> data(bytes(number), std::byte(mark(rank, number)));
    boards_[static_cast<std::size_t>(rank)]->Show(number, mark(rank, number), data);
  };
  const auto expect_other = [&](int rank, std::uint64_t number) {
    Board& board = *boards_[static_cast<std::size_t>(rank)];
    EXPECT_EQ(board.shown().fingerprint, mark(rank, number));
    const BoardSlot* const slot = board.Look(1 - rank, number);
    ASSERT_NE(slot, nullptr) << number;
    EXPECT_EQ(slot->fingerprint, mark(1 - rank, number));
    EXPECT_THAT(Bytes(slot->Place(bytes(number)), bytes(number)),
                Each(std::byte(mark(1 - rank, number))));
    EXPECT_TRUE(board.StillShown(number));
  };
  show(0, 1);
  for (std::uint64_t number = 1; number <= 6; ++number) {
    EXPECT_EQ(owner().Look(1, number), nullptr);
    show(1, number);
    expect_other(0, number);
    show(0, number + 1);
    expect_other(1, number);
  }
}

TEST_F(BoardTest, WholePagesAreOpen) {
  const auto at = [](std::size_t offset) { return Loan{1, offset}; };
  EXPECT_THAT(owner().OpenPart(at(0), 3 * kPage), Pair(0, 3 * kPage));
  EXPECT_THAT(owner().OpenPart(at(64), 3 * kPage), Pair(kPage - 64, 3 * kPage - 64));
  EXPECT_THAT(owner().OpenPart(at(kPage - 64), kPage + 65), Pair(64, 64 + kPage));
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{63}, kPage - 1, kPage + 30}) {
    const auto [first, last] = owner().OpenPart(at(64), bytes);
    EXPECT_GE(first, last) << bytes;
    EXPECT_LE(first, bytes);
  }
  Board threads(0, {regions_.data(), &regions_[1]}, bells_[0], nullptr, false);
  EXPECT_THAT(threads.OpenPart(at(64), 63), Pair(0, 63));
}

TEST_F(BoardTest, WhatIsWrittenArrives) {
  std::byte* const there = ShowAndReach(memory_->bytes());
  EXPECT_TRUE(writer().Write(1, [&] { there[kPage] = std::byte{2}; }));
  owner().Withdraw();
  EXPECT_EQ(memory_->bytes()[kPage], std::byte{2}) << "nobody was writing: it is not taken back";
  EXPECT_TRUE(owner().Lend(memory_->bytes()).has_value());
  EXPECT_FALSE(writer().Write(1, [&] { ADD_FAILURE(); }));
}

TEST_F(BoardTest, FromOneThatStopsWhileItWritesItIsTakenBack) {
  const MutableBytes data = memory_->bytes().subspan(100, 3 * kPage);
  std::byte* const there = ShowAndReach(data);
  const auto [first, last] = writer().OpenPart(*owner().Lend(data), data.size());
  EXPECT_FALSE(writer().Write(1, [&] {
    owner().Withdraw();  // has waited; the writer goes on
    std::fill(there + first, there + last, std::byte{9});
  }));
  EXPECT_THAT(data.subspan(first, last - first), Each(std::byte{0}));
  EXPECT_THAT(data.first(first), Each(std::byte{1})) << "a page that is others' as well";
  EXPECT_THAT(memory_->bytes().first(100), Each(std::byte{1}));
  EXPECT_THAT(memory_->bytes().subspan(4 * kPage), Each(std::byte{1}));
  EXPECT_FALSE(owner().Lend(data).has_value()) << "it is private from now on";
  std::ranges::fill(data, std::byte{3});
  EXPECT_THAT(data, Each(std::byte{3}));
}

}  // namespace
}  // namespace cohort
