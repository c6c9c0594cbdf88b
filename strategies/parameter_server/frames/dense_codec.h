// Values of chunks on the wire: those of trainable chunks as kFloat32, kFloat16, kBFloat16 or
// kUInt8 (int8 of row_codec.h, a scale for every 256 values), each chunk up to a multiple of 4
// bytes; others (running averages) as float32, whatever was asked for.
//
// Rounding is to the nearest. What is not finite arrives as what is not finite.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <cohort/core/dtype.h>

namespace cohort::ps {

// As FrameHeader has them.
std::uint32_t WireNumber(DType wire);
std::optional<DType> WireOf(std::uint32_t number);

// Of so many values, in units of 4 bytes.
std::size_t EncodedFloats(DType wire, std::size_t values);

// `to`: EncodedFloats of them. False: a value is too large for the format (float16 ends at 65504),
// and nothing is said about the bytes.
bool EncodeValues(DType wire, std::span<const float> values, std::span<float> to);
void DecodeValues(DType wire, std::span<const float> from, std::span<float> values);

// Of values that are multiplied by `scale` where they arrive: encodes values + residual / scale,
// and keeps in `residual`, times `scale`, what rounding took of that. Where 1 / scale is not finite
// nothing arrives: encodes the values, and keeps what there is.
bool EncodeWithFeedback(DType wire, std::span<const float> values, float scale,
                        std::span<float> residual, std::span<float> to);

}  // namespace cohort::ps
