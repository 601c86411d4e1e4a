// The emulator's side of csrc/cuda/access.h: accesses are checked against the memory the call declared.
#pragma once

#include <cstring>

#include "cuda_emulator.h"

namespace fym::gpu {

template <class T>
T read(const T* from) {
  emulator::check(from, sizeof(T), false);
  T value;
  std::memcpy(static_cast<void*>(&value), from, sizeof value);
  return value;
}

template <class T>
void write(T* to, T value) {
  emulator::check(to, sizeof(T), true);
  std::memcpy(static_cast<void*>(to), &value, sizeof value);
}

}  // namespace fym::gpu
