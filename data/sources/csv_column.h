// CsvColumn's values: text into numbers, in memory of the caller's. Knows nothing of rows.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/csv.h>

#include "sources/csv_reader.h"

namespace cohort::data {

// Text to position: given texts, or those that are found, by first sight.
class CsvVocabulary {
 public:
  static constexpr std::int64_t kNone = -1;

  // A text, its first bytes as words, so that most are compared without a look at memory.
  struct Key {
    static constexpr std::size_t kWords = 4;
    static constexpr std::size_t kBytes = kWords * sizeof(std::uint64_t);

    explicit Key(std::string_view of);
    // The same where kBytes can be read from its beginning on.
    static Key WithSlack(std::string_view of);
    std::uint64_t Hash() const;

    std::array<std::uint64_t, kWords> words = {};  // zeros behind its end
    std::string_view text;

   private:
    Key() = default;
  };

  explicit CsvVocabulary(const std::vector<std::string>& given = {});

  bool open() const { return open_; }  // none were given
  const std::vector<std::string>& texts() const { return texts_; }

  // kNone: there is no such text.
  std::int64_t Find(const Key& key) const;
  std::int64_t FindOrAdd(const Key& key);
  // Puts the texts in bytewise order; returns each old position's new one.
  std::vector<std::int64_t> Sort();

 private:
  struct Slot {
    std::array<std::uint64_t, Key::kWords> words = {};
    std::size_t size = 0;
    std::int64_t position = kNone;
  };

  // Where the text stands, or would.
  std::size_t SlotOf(const Key& key, std::uint64_t hash) const {
    std::size_t at = hash & (slots_.size() - 1);
    while (slots_[at].position != kNone && !Holds(slots_[at], key)) {
      at = (at + 1) & (slots_.size() - 1);
    }
    return at;
  }
  bool Holds(const Slot& slot, const Key& key) const {
    std::uint64_t differ = slot.size ^ key.text.size();
    for (std::size_t i = 0; i < Key::kWords; ++i) {
      differ |= slot.words[i] ^ key.words[i];
    }
    return differ == 0 && (slot.size <= Key::kBytes ||
                           texts_[static_cast<std::size_t>(slot.position)] == key.text);
  }
  std::int64_t Add(const Key& key, std::size_t slot);
  void Rehash(std::size_t slots);

  bool open_;
  std::vector<std::string> texts_;  // by position
  std::vector<Slot> slots_;         // a power of two, at most half of them taken
};

// Writes one column's values, one row after another.
class CsvValues {
 public:
  // All outlive this. `given`: the column's vocabulary; if it is open, this finds one of its own.
  CsvValues(const CsvColumn& spec, const std::vector<std::string>& markers,
            const CsvVocabulary& given);

  // Where the next value is written (float or int64), and how many bytes behind it the one after.
  void WriteTo(std::byte* out, std::size_t step) {
    out_ = out;
    step_ = step;
  }
  // Those of `rows` rows at fields[row * width], of CsvRows. Returns how many it wrote: fewer than
  // `rows` if the next is not of the column's type.
  std::size_t Append(const CsvField* fields, std::size_t width, std::size_t rows);
  // What is wrong with a field that was not written. Names neither file nor line.
  Status Why(const CsvField& field) const;
  // kCategory with an open vocabulary: the texts, by the position that was written for them; a
  // missing value is written as kNone.
  const std::vector<std::string>& found() const { return found_.texts(); }

 private:
  bool IsMissing(const CsvField& field) const;
  // Of any field that is there: false if it is not of the type.
  bool Number(const CsvField& field, float& value) const;
  bool Number(const CsvField& field, std::int64_t& value) const;
  bool Position(const CsvField& field, std::int64_t& value);
  bool Hash(const CsvField& field, std::int64_t& value) const;
  template <typename T, typename Convert>
  std::size_t AppendAs(const CsvField* fields, std::size_t width, std::size_t rows, T missing,
                       const Convert& convert);

  const CsvColumn* spec_;
  const std::vector<std::string>* markers_;
  std::array<bool, 256> begins_marker_ = {};
  const CsvVocabulary* given_;
  CsvVocabulary found_;
  std::byte* out_ = nullptr;
  std::size_t step_ = 0;
};

}  // namespace cohort::data
