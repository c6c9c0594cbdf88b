#include <cmath>

#include <cohort/core/random.h>
#include <cohort/data/tokens.h>

namespace cohort::data {
namespace {

constexpr std::array kAdjectives = {"old",   "young", "quiet", "clever",
                                    "tired", "brave", "small", "hungry"};
constexpr std::array kPeople = {"sailor",  "farmer",  "painter", "doctor", "singer", "baker",
                                "soldier", "teacher", "hunter",  "judge",  "king",   "beggar"};
constexpr std::array kVerbs = {"see",  "follow", "paint",  "remember",
                               "sell", "find",   "praise", "want"};
constexpr std::array kThings = {"boat", "horse", "garden", "letter", "house",  "lamp",
                                "ring", "song",  "map",    "coat",   "bridge", "clock"};
constexpr std::array kPlaces = {"by the river", "in the town",  "at the market",
                                "on the hill",  "near the sea", "under the tower"};
constexpr std::array kTimes = {"Today", "Every morning", "In winter", "At night"};

// The choices of one sentence.
class Choices {
 public:
  Choices(const Philox& philox, std::uint64_t sentence) : philox_(philox), sentence_(sentence) {}
  std::uint64_t Below(std::uint64_t bound) {
    nats_ += std::log(static_cast<double>(bound));
    return philox_.Below(bound, next_++, sentence_);
  }
  template <std::size_t kSize>
  std::string Of(const std::array<const char*, kSize>& words) {
    return words[Below(kSize)];
  }
  double nats() const { return nats_; }

 private:
  const Philox& philox_;
  std::uint64_t sentence_;
  std::uint64_t next_ = 0;
  double nats_ = 0;
};

// "Every morning the quiet sailors paint a horse near the sea."
std::string Sentence(Choices& choices) {
  const bool plural = choices.Below(2) == 1;
  std::string text = choices.Of(kTimes) + " the " + choices.Of(kAdjectives) + " " +
                     choices.Of(kPeople) + (plural ? "s " : " ");
  text += choices.Of(kVerbs) + (plural ? " a " : "s a ");
  return text + choices.Of(kThings) + " " + choices.Of(kPlaces) + ".\n";
}

}  // namespace

GeneratedText GenerateText(std::int64_t bytes, std::uint64_t seed) {
  const Philox philox(seed, "data/text");
  GeneratedText generated;
  double nats = 0;
  for (std::uint64_t i = 0; static_cast<std::int64_t>(generated.text.size()) < bytes; ++i) {
    Choices choices(philox, i);
    generated.text += Sentence(choices);
    nats += choices.nats();
  }
  if (!generated.text.empty()) {
    generated.nats_per_byte = nats / static_cast<double>(generated.text.size());
  }
  return generated;
}

}  // namespace cohort::data
