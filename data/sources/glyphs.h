// The strokes that digits are drawn from.

#pragma once

#include <array>
#include <vector>

namespace cohort::data {

// x to the right, y down; a glyph fills the unit square.
struct Point {
  float x = 0;
  float y = 0;
};

struct Stroke {
  bool smooth = false;  // a curve through the points, or straight lines between them
  std::vector<Point> points;
};

using Glyph = std::vector<Stroke>;

// The styles in which people write each digit.
const std::array<std::vector<Glyph>, 10>& DigitGlyphs();

}  // namespace cohort::data
