// What is fuzzed: each parser, and each function that takes what came from outside. A target throws nothing but Error, which
// whoever runs it catches.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sit_deploy::fuzz {

struct Target {
    const char* name;
    void (*run)(const std::uint8_t* data, std::size_t size);
};

/// The target of a name; ends the program, listing the names, where there is none.
const Target& target(const char* name);

/// Run one input: Error is what a bad one should give, anything else ends the program.
void run(const Target& target, const std::uint8_t* data, std::size_t size);

}  // namespace sit_deploy::fuzz
