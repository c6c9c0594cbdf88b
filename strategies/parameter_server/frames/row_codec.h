// Rows as they travel between workers and servers: TableSpec::wire.
//
//   float32  4 bytes a value, exact
//   float16  2 bytes, IEEE binary16, rounded to nearest even
//   bfloat16 2 bytes, the upper half of a float32, rounded to nearest even
//   int8     1 byte a value and 4 a row: each value is a whole number of 127ths of the row's
//            greatest, rounded to nearest, so off by at most 1/254 of that
//
// Encoding a value that was decoded gives the same bytes: rounding happens once. NaN and infinity
// arrive as what is not finite.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include <cohort/optim/table_spec.h>

namespace cohort::ps {

std::string_view WireName(TableSpec::Wire wire);  // "bfloat16"
std::size_t EncodedRowBytes(TableSpec::Wire wire, std::size_t dim);
// Of so many rows, up to a multiple of 4 bytes.
std::uint64_t EncodedBytes(TableSpec::Wire wire, std::size_t dim, std::uint64_t rows);

// `rows`: [n, dim]; `to`: EncodedBytes of them. The first row that the format cannot hold (float16
// ends at 65504; bfloat16 where float32 does, less half a step), with nothing said about the bytes
// then.
std::optional<std::size_t> EncodeRows(TableSpec::Wire wire, std::size_t dim,
                                      std::span<const float> rows, std::span<std::byte> to);
void DecodeRows(TableSpec::Wire wire, std::size_t dim, std::span<const std::byte> from,
                std::span<float> rows);

}  // namespace cohort::ps
