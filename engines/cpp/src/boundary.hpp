// The edge of the library: whatever is thrown inside leaves it as Error, in one line that a terminal can show.
#pragma once

#include <string_view>

namespace sit_deploy {

/// In a catch block: throw what was caught again as Error, with `what` before the message of any other exception.
[[noreturn]] void throw_error(std::string_view what);

/// Run the work of a public function. what: what it does, for the message of an exception that is not ours.
template <class Work>
auto at_boundary(std::string_view what, Work work) -> decltype(work()) {
    try {
        return work();
    } catch (...) {
        throw_error(what);
    }
}

}  // namespace sit_deploy
