// A strict JSON reader that keeps numbers and strings as they are spelled: a manifest's digest is over its own text with
// the keys sorted, so a reader that turns 0.485 into a double and back could not verify it.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sit_deploy::json {

class Value {
public:
    enum class Kind { null, boolean, number, string, array, object };

    Kind kind = Kind::null;
    std::string token;  ///< of a scalar, as spelled; a string's with its quotes
    std::vector<Value> items;
    std::vector<std::pair<std::string, Value>> members;  ///< keys decoded

    /// The member of an object; throws Error where there is none.
    [[nodiscard]] const Value& at(std::string_view key) const;
    [[nodiscard]] const Value* find(std::string_view key) const;
    [[nodiscard]] std::string string() const;
    /// A number that a double holds, so neither NaN nor infinite.
    [[nodiscard]] double number() const;
    /// A whole number from 0 on.
    [[nodiscard]] std::size_t size() const;
    /// The items of an array of so many; throws Error where it is another.
    [[nodiscard]] const std::vector<Value>& row(std::size_t length) const;

    /// As Python's json.dumps(sort_keys=True, separators=(",", ":"), ensure_ascii=False), leaving out one key of the object.
    [[nodiscard]] std::string canonical(std::string_view without = {}) const;
};

/// Throws Error: not one JSON value in UTF-8, or with a key twice in an object, half a character, or levels or values
/// beyond what anything of ours has.
Value parse(std::string_view text);

}  // namespace sit_deploy::json
