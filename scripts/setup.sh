#!/usr/bin/env bash
# Installs what cohort builds with, from Debian's packages. Does nothing where all of it is there.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config git python3
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev
  libeigen3-dev libdnnl-dev libopenmpi-dev openmpi-bin libmpich-dev mpich libgloo-dev iproute2
  nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev
  zlib1g-dev libcurl4-openssl-dev libisal-dev libcpp-httplib-dev libjpeg62-turbo-dev libpng-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  clang-14 libclang-rt-14-dev clang-format
)

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: these packages are missing and this user can't install them: ${missing[*]}" >&2
    echo "setup: run as root: apt-get install ${missing[*]}" >&2
    exit 2
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
