// PNG through libpng. Its errors leave by longjmp: the functions that set the jump hold nothing
// that has a destructor, and all state is in an object outside of them.

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <new>

#include "sources/image_codecs.h"

namespace cohort::data {
namespace {

// libpng's callbacks find it through the error and io pointers.
struct PngState {
  const char* bytes = nullptr;
  std::size_t size = 0;
  std::size_t at = 0;  // of the input, behind what was read
  char message[200] = {};
  std::string* out = nullptr;  // of the encoder
};

[[noreturn]] void OnError(png_structp png, png_const_charp message) {
  auto* const state = static_cast<PngState*>(png_get_error_ptr(png));
  std::strncpy(state->message, message, sizeof(state->message) - 1);
  png_longjmp(png, 1);
}

void OnWarning(png_structp /*png*/, png_const_charp /*message*/) {}  // of chunks that do not matter

void OnRead(png_structp png, png_bytep out, std::size_t count) {
  auto* const state = static_cast<PngState*>(png_get_io_ptr(png));
  if (count > state->size - state->at) {
    state->at = state->size;
    png_error(png, "the file is cut off");
  }
  std::memcpy(out, state->bytes + state->at, count);
  state->at += count;
}

bool ReadHeader(png_structp png, png_infop info, PngState* state) {
  if (setjmp(png_jmpbuf(png)) != 0) {  // NOLINT: libpng's way
    return false;
  }
  png_set_read_fn(png, state, OnRead);
  png_read_info(png, info);
  return true;
}

// Everything to 8 bits and so many channels. False: state says why.
bool ReadPixels(png_structp png, png_infop info, int channels, unsigned char* pixels,
                std::size_t row_bytes, std::size_t height) {
  if (setjmp(png_jmpbuf(png)) != 0) {  // NOLINT
    return false;
  }
  png_set_expand(png);
  png_set_scale_16(png);
  const bool is_color = (png_get_color_type(png, info) & PNG_COLOR_MASK_COLOR) != 0;
  if (channels == 1 && is_color) {
    png_set_rgb_to_gray_fixed(png, PNG_ERROR_ACTION_NONE, 29900, 58700);
  }
  if (channels != 1 && !is_color) {
    png_set_gray_to_rgb(png);
  }
  if (channels == 4) {
    png_set_add_alpha(png, 0xFF, PNG_FILLER_AFTER);
  } else {
    png_set_strip_alpha(png);
  }
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, info);
  if (png_get_rowbytes(png, info) != row_bytes) {
    png_error(png, "rows of another size than its header makes");
  }
  for (int pass = 0; pass < passes; ++pass) {
    for (std::size_t y = 0; y < height; ++y) {
      png_read_row(png, pixels + y * row_bytes, nullptr);
    }
  }
  png_read_end(png, nullptr);
  return true;
}

void OnWrite(png_structp png, png_bytep bytes, std::size_t count) {
  static_cast<PngState*>(png_get_io_ptr(png))
      ->out->append(reinterpret_cast<const char*>(bytes), count);
}

void OnFlush(png_structp /*png*/) {}

bool WritePixels(png_structp png, png_infop info, PngState* state, const Tensor* image) {
  if (setjmp(png_jmpbuf(png)) != 0) {  // NOLINT
    return false;
  }
  const auto height = static_cast<png_uint_32>(image->shape()[0]);
  const auto width = static_cast<png_uint_32>(image->shape()[1]);
  const auto channels = static_cast<std::size_t>(image->shape()[2]);
  png_set_write_fn(png, state, OnWrite, OnFlush);
  png_set_IHDR(png, info, width, height, 8,
               channels == 1   ? PNG_COLOR_TYPE_GRAY
               : channels == 3 ? PNG_COLOR_TYPE_RGB
                               : PNG_COLOR_TYPE_RGB_ALPHA,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  for (std::size_t y = 0; y < height; ++y) {
    png_write_row(png, reinterpret_cast<const unsigned char*>(image->raw()) + y * width * channels);
  }
  png_write_end(png, info);
  return true;
}

class PngReader {
 public:
  explicit PngReader(std::string_view bytes) : state_{bytes.data(), bytes.size()} {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state_, OnError, OnWarning);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  Result<Tensor> Decode(const DecodeOptions& options, const PixelMemory& memory) {
    // What CheckImageSize refuses is refused with its own message; these only bound the chunks.
    png_set_user_limits(png_, 0x7FFFFFFF, 0x7FFFFFFF);
    png_set_chunk_malloc_max(png_, std::size_t{8} << 20);
    if (!ReadHeader(png_, info_, &state_)) {
      return Damage();
    }
    const std::size_t width = png_get_image_width(png_, info_);
    const std::size_t height = png_get_image_height(png_, info_);
    COHORT_RETURN_IF_ERROR(CheckImageSize(width, height, options));
    const std::size_t row_bytes = width * static_cast<std::size_t>(options.channels);
    Tensor image(
        DType::kUInt8,
        {static_cast<std::int64_t>(height), static_cast<std::int64_t>(width), options.channels},
        memory(height * row_bytes));
    if (!ReadPixels(png_, info_, options.channels, reinterpret_cast<unsigned char*>(image.raw()),
                    row_bytes, height)) {
      return Damage();
    }
    return image;
  }

 private:
  Status Damage() const {
    return DataLoss("PNG before byte " + std::to_string(state_.at) + ": " + state_.message);
  }

  PngState state_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

}  // namespace

Result<Tensor> DecodePng(std::string_view bytes, const DecodeOptions& options,
                         const PixelMemory& memory) {
  return PngReader(bytes).Decode(options, memory);
}

std::string EncodePng(const Tensor& image) {
  const Shape& shape = image.shape();
  constexpr std::int64_t kMaxSide = 0x7FFFFFFF;
  Require(image.dtype() == DType::kUInt8 && shape.rank() == 3 &&
              (shape[2] == 1 || shape[2] == 3 || shape[2] == 4) && shape[0] >= 1 &&
              shape[0] <= kMaxSide && shape[1] >= 1 && shape[1] <= kMaxSide,
          "EncodePng takes uint8 [height, width, 1, 3 or 4]");
  std::string bytes;
  PngState state;
  state.out = &bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &state, OnError, OnWarning);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  const bool written = info != nullptr && WritePixels(png, info, &state, &image);
  png_destroy_write_struct(&png, &info);
  Require(written, std::string("PNG: ") + state.message);
  return bytes;
}

}  // namespace cohort::data
