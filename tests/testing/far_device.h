// FarDevice: a device whose memory is apart from the host's, without any hardware.
//
// What its Allocate returns are addresses of pages that nobody may touch: a load or store of the
// host through one of them crashes at once. The bytes lie elsewhere in the process; the device's
// kernels, which are the CPU's, and its copies find them. A kernel that is given the host's memory,
// another device's, or memory that was freed throws ContractError. New memory holds NaNs. What
// AllocateHost returns is the host's memory, and PageLocked.
//
// Devices that reach each other (Device::Reaches) have kernels that may read each other's memory.
//
// Its streams run their work late (late_stream.h), so that a missing WaitFor shows. Memory that is
// freed is out of reach from then on: what still runs on it crashes.
//
// Thread rules: Device's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cohort/device/device.h>

namespace cohort::testing {

// Makes the streams; empty: LateStreams with short delays.
using FarStreams = std::function<std::unique_ptr<Stream>()>;

std::shared_ptr<Device> MakeFarDevice(std::string name = "far:0", FarStreams make_stream = {});
// Several of one kind, "far:0", "far:1", ...: each copies from and to the others' memory too.
// `reach`: and reaches them.
std::vector<std::shared_ptr<Device>> MakeFarDevices(int count, FarStreams make_stream = {},
                                                    bool reach = false);

// What a far device's Copy was asked for so far, between its kind and the host, in bytes.
struct FarTraffic {
  std::int64_t to_device = 0;
  std::int64_t to_host = 0;
};
FarTraffic TrafficOf(const Device& far);

// Where bytes of a far device's own memory are: for what plays the part of hardware.
std::byte* BytesOf(const Device& far, std::byte* address, std::size_t bytes);

}  // namespace cohort::testing
