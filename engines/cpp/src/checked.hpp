// Arithmetic on sizes that come from outside: a product that does not fit is told, and never a small number.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>

#include "sit_deploy/error.hpp"

namespace sit_deploy {

/// The product, or nothing where it does not fit into std::size_t.
inline std::optional<std::size_t> product(std::initializer_list<std::size_t> factors) {
    std::size_t result = 1;
    for (const std::size_t factor : factors) {
        if (factor != 0 && result > std::numeric_limits<std::size_t>::max() / factor) return std::nullopt;
        result *= factor;
    }
    return result;
}

/// The product; throws Error where it does not fit. what: for the message, "bytes of 3 images".
inline std::size_t checked_product(const char* what, std::initializer_list<std::size_t> factors) {
    if (const auto result = product(factors)) return *result;
    throw Error(std::string(what) + " are more than a machine can count");
}

}  // namespace sit_deploy
