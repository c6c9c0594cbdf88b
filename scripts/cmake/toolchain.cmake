# Language level, warnings, sanitizers, ccache: what holds for every target of the project.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set_property(GLOBAL PROPERTY GLOBAL_DEPENDS_NO_CYCLES ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(COHORT_CCACHE ccache)
if(COHORT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # base_dir makes one cache serve several checkouts and build folders.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${COHORT_CCACHE})
endif()

find_package(Threads REQUIRED)

add_library(cohort_flags INTERFACE)
set(gnu_flags)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(gnu_flags -Wno-restrict)  # g++ 12 warns on std::string operator+ (GCC PR 105329)
endif()
set(flags
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wno-missing-field-initializers
  ${gnu_flags}
  -march=${COHORT_ARCH} -ffp-contract=off)
if(COHORT_WARNINGS_AS_ERRORS)
  list(APPEND flags -Werror)
endif()
# nvcc's host pass sees the same warnings, but for what is wrong with the code that it generates.
list(JOIN flags "," cuda_flags)
set(cuda_flags --compiler-options=${cuda_flags},-Wno-shadow,-Wno-unused-parameter --expt-relaxed-constexpr --extended-lambda)
if(COHORT_WARNINGS_AS_ERRORS)
  list(APPEND cuda_flags --Werror=all-warnings)
endif()
target_compile_options(cohort_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>" "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
if(COHORT_SANITIZE)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${COHORT_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all;-g1>")
  add_link_options(-fsanitize=${COHORT_SANITIZE})
endif()
if(COHORT_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "COHORT_FUZZ needs clang: -DCMAKE_CXX_COMPILER=clang++")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -g1)
  add_link_options(-fsanitize=address,undefined)
endif()
