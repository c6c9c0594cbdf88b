// JPEG through libjpeg-turbo. Its errors leave by longjmp: the functions that set the jump hold
// nothing that has a destructor, and all state is in an object outside of them.

#include <csetjmp>
#include <cstddef>
#include <cstdio>  // jpeglib.h needs FILE

#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "sources/image_codecs.h"

namespace cohort::data {
namespace {

// libjpeg's callbacks find it through client_data.
struct JpegState {
  jpeg_error_mgr errors = {};
  jpeg_progress_mgr progress = {};
  std::jmp_buf jump = {};
  char message[JMSG_LENGTH_MAX] = {};  // of the error, or of the first warning that is one
  std::size_t at = 0;                  // byte of the input at it
  bool damaged = false;
};

void Note(j_common_ptr info) {
  auto* const state = static_cast<JpegState*>(info->client_data);
  if (state->damaged) {
    return;
  }
  state->damaged = true;
  info->err->format_message(info, state->message);
  if (info->is_decompressor != 0) {
    const auto* const in = reinterpret_cast<j_decompress_ptr>(info);
    state->at = in->src == nullptr ? 0 : in->src->bytes_in_buffer;  // what is left; turned later
  }
}

[[noreturn]] void OnError(j_common_ptr info) {
  Note(info);
  std::longjmp(static_cast<JpegState*>(info->client_data)->jump, 1);
}

// libjpeg goes on after a warning with made-up pixels. Those that leave the pixels sound:
bool IsHarmless(int code) {
  return code == JWRN_EXTRANEOUS_DATA || code == JWRN_ADOBE_XFORM || code == JWRN_JFIF_MAJOR;
}

void OnMessage(j_common_ptr info, int level) {
  if (level < 0 && !IsHarmless(info->err->msg_code)) {
    Note(info);
  }
}

// A small file can make a decoder go over a large image once for each of many scans.
void OnProgress(j_common_ptr info) {
  constexpr int kMaxScans = 500;
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMaxScans) {
    ERREXIT(info, JERR_BAD_PROGRESSION);
  }
}

void Attach(JpegState* state, j_common_ptr info) {
  info->err = jpeg_std_error(&state->errors);
  state->errors.error_exit = OnError;
  state->errors.emit_message = OnMessage;
  info->client_data = state;
}

// False: state says why.
bool ReadHeader(jpeg_decompress_struct* info, JpegState* state, const unsigned char* bytes,
                std::size_t size) {
  if (setjmp(state->jump) != 0) {  // NOLINT: libjpeg's way
    return false;
  }
  jpeg_create_decompress(info);
  info->client_data = state;
  jpeg_mem_src(info, bytes, size);
  jpeg_read_header(info, TRUE);
  return true;
}

bool ReadPixels(jpeg_decompress_struct* info, JpegState* state, J_COLOR_SPACE space,
                unsigned char* pixels, std::size_t row_bytes) {
  if (setjmp(state->jump) != 0) {  // NOLINT
    return false;
  }
  state->progress.progress_monitor = OnProgress;
  info->progress = &state->progress;
  info->out_color_space = space;
  info->dct_method = JDCT_ISLOW;  // the same pixels with and without vectors
  jpeg_start_decompress(info);
  while (info->output_scanline < info->output_height) {
    JSAMPROW row = pixels + info->output_scanline * row_bytes;
    jpeg_read_scanlines(info, &row, 1);
  }
  jpeg_finish_decompress(info);
  return true;
}

bool WritePixels(jpeg_compress_struct* info, JpegState* state, const Tensor* image, int quality,
                 unsigned char** bytes, unsigned long* size) {  // NOLINT: libjpeg's type
  if (setjmp(state->jump) != 0) {                               // NOLINT
    return false;
  }
  jpeg_create_compress(info);
  info->client_data = state;
  jpeg_mem_dest(info, bytes, size);
  info->image_height = static_cast<JDIMENSION>(image->shape()[0]);
  info->image_width = static_cast<JDIMENSION>(image->shape()[1]);
  info->input_components = static_cast<int>(image->shape()[2]);
  info->in_color_space = info->input_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(info);
  jpeg_set_quality(info, quality, TRUE);
  jpeg_start_compress(info, TRUE);
  const std::size_t row_bytes = static_cast<std::size_t>(info->image_width) *
                                static_cast<std::size_t>(info->input_components);
  while (info->next_scanline < info->image_height) {
    JSAMPROW row = reinterpret_cast<unsigned char*>(image->raw()) + info->next_scanline * row_bytes;
    jpeg_write_scanlines(info, &row, 1);
  }
  jpeg_finish_compress(info);
  return true;
}

Status Damage(const JpegState& state, std::size_t size) {
  return DataLoss("JPEG at byte " + std::to_string(size - std::min(size, state.at)) + ": " +
                  state.message);
}

class JpegReader {
 public:
  explicit JpegReader(std::string_view bytes) : bytes_(bytes) {
    Attach(&state_, reinterpret_cast<j_common_ptr>(&info_));
  }
  ~JpegReader() { jpeg_destroy_decompress(&info_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  Result<Tensor> Decode(const DecodeOptions& options, const PixelMemory& memory) {
    if (!ReadHeader(&info_, &state_, reinterpret_cast<const unsigned char*>(bytes_.data()),
                    bytes_.size())) {
      return Damage(state_, bytes_.size());
    }
    COHORT_RETURN_IF_ERROR(CheckImageSize(info_.image_width, info_.image_height, options));
    if (info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK) {
      return DecodeInks(options, memory);
    }
    const std::size_t row_bytes = info_.image_width * static_cast<std::size_t>(options.channels);
    Tensor image(DType::kUInt8, {info_.image_height, info_.image_width, options.channels},
                 memory(info_.image_height * row_bytes));
    const J_COLOR_SPACE space = options.channels == 1   ? JCS_GRAYSCALE
                                : options.channels == 3 ? JCS_RGB
                                                        : JCS_EXT_RGBA;
    const bool read = ReadPixels(&info_, &state_, space,
                                 reinterpret_cast<unsigned char*>(image.raw()), row_bytes);
    if (!read || state_.damaged) {
      return Damage(state_, bytes_.size());
    }
    return image;
  }

 private:
  // Cyan, magenta, yellow and black, which libjpeg leaves as they are.
  Result<Tensor> DecodeInks(const DecodeOptions& options, const PixelMemory& memory) {
    constexpr std::size_t kInks = 4;
    const std::size_t pixels = std::size_t{info_.image_height} * info_.image_width;
    std::vector<std::uint8_t> inks(pixels * kInks);
    const bool read = ReadPixels(&info_, &state_, JCS_CMYK, inks.data(), info_.image_width * kInks);
    if (!read || state_.damaged) {
      return Damage(state_, bytes_.size());
    }
    const auto channels = static_cast<std::size_t>(options.channels);
    Tensor image(DType::kUInt8, {info_.image_height, info_.image_width, options.channels},
                 memory(pixels * channels));
    // Adobe's programs, which are those that write such files and mark them, store 255 - ink.
    const std::uint8_t flip = info_.saw_Adobe_marker != 0 ? 0 : 255;
    for (std::size_t p = 0; p < pixels; ++p) {
      const std::uint8_t* const from = inks.data() + p * kInks;
      const auto light = [&](std::size_t ink) {
        const unsigned product = unsigned{static_cast<std::uint8_t>(from[ink] ^ flip)} *
                                 static_cast<std::uint8_t>(from[3] ^ flip);
        return (product + 127) / 255;
      };
      auto* const to = reinterpret_cast<std::uint8_t*>(image.raw()) + p * channels;
      if (channels == 1) {
        to[0] = static_cast<std::uint8_t>((light(0) * 299 + light(1) * 587 + light(2) * 114 + 500) /
                                          1000);
        continue;
      }
      for (std::size_t c = 0; c < channels; ++c) {
        to[c] = c == 3 ? 255 : static_cast<std::uint8_t>(light(c));
      }
    }
    return image;
  }

  std::string_view bytes_;
  JpegState state_;
  jpeg_decompress_struct info_ = {};
};

}  // namespace

Result<Tensor> DecodeJpeg(std::string_view bytes, const DecodeOptions& options,
                          const PixelMemory& memory) {
  return JpegReader(bytes).Decode(options, memory);
}

std::string EncodeJpeg(const Tensor& image, int quality) {
  const Shape& shape = image.shape();
  Require(image.dtype() == DType::kUInt8 && shape.rank() == 3 && (shape[2] == 1 || shape[2] == 3) &&
              shape[0] >= 1 && shape[0] <= JPEG_MAX_DIMENSION && shape[1] >= 1 &&
              shape[1] <= JPEG_MAX_DIMENSION,
          "EncodeJpeg takes uint8 [height, width, 1 or 3], at most 65500 pixels a side");
  Require(quality >= 1 && quality <= 100, "JPEG quality is from 1 to 100");
  JpegState state;
  jpeg_compress_struct info = {};
  Attach(&state, reinterpret_cast<j_common_ptr>(&info));
  unsigned char* bytes = nullptr;
  unsigned long size = 0;  // NOLINT: libjpeg's type
  const bool written = WritePixels(&info, &state, &image, quality, &bytes, &size);
  jpeg_destroy_compress(&info);
  const std::unique_ptr<unsigned char, decltype(&std::free)> owner(bytes, &std::free);
  Require(written, "memory for a JPEG");
  return {reinterpret_cast<const char*>(bytes), size};
}

}  // namespace cohort::data
