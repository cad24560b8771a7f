#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>

#include "sit_deploy/error.hpp"

namespace sit_deploy::json {
namespace {

constexpr int max_depth = 100;                      // as on the Python side
constexpr std::size_t max_values = std::size_t{1} << 21;  // of memory for a manifest, 16 times its text

/// Whether the text is UTF-8: no byte out of place, nothing spelled longer than it has to be, no half of a surrogate pair.
bool is_utf8(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    for (std::size_t i = 0; i < text.size();) {
        const std::uint8_t lead = byte(i);
        const std::size_t length = lead < 0x80 ? 1 : lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
        if (length == 0 || text.size() - i < length) return false;
        for (std::size_t k = 1; k < length; ++k)
            if ((byte(i + k) & 0xC0) != 0x80) return false;
        const std::uint8_t next = length > 2 ? byte(i + 1) : 0;
        if ((lead == 0xE0 && next < 0xA0) || (lead == 0xED && next >= 0xA0) || (lead == 0xF0 && next < 0x90) || (lead == 0xF4 && next >= 0x90))
            return false;
        i += length;
    }
    return true;
}

void append_utf8(std::string& out, std::uint32_t point) {
    if (point < 0x80) {
        out += static_cast<char>(point);
    } else if (point < 0x800) {
        out += static_cast<char>(0xC0 | point >> 6);
        out += static_cast<char>(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        out += static_cast<char>(0xE0 | point >> 12);
        out += static_cast<char>(0x80 | (point >> 6 & 0x3F));
        out += static_cast<char>(0x80 | (point & 0x3F));
    } else {
        out += static_cast<char>(0xF0 | point >> 18);
        out += static_cast<char>(0x80 | (point >> 12 & 0x3F));
        out += static_cast<char>(0x80 | (point >> 6 & 0x3F));
        out += static_cast<char>(0x80 | (point & 0x3F));
    }
}

class Reader {
public:
    explicit Reader(std::string_view text) : text_(text) {}

    Value whole() {
        Value value = read(0);
        skip();
        if (place_ != text_.size()) fail();
        return value;
    }

    /// The text of a string token, its quotes included.
    std::string decoded() {
        std::string out;
        for (++place_; text_[place_] != '"'; ++place_) {
            if (text_[place_] != '\\') {
                out += text_[place_];
                continue;
            }
            const char escape = next();
            static const std::map<char, char> plain = {{'"', '"'},  {'\\', '\\'}, {'/', '/'},  {'b', '\b'},
                                                       {'f', '\f'}, {'n', '\n'},  {'r', '\r'}, {'t', '\t'}};
            if (const auto found = plain.find(escape); found != plain.end()) {
                out += found->second;
                continue;
            }
            if (escape != 'u') fail();
            std::uint32_t point = hex4();
            if (point >= 0xDC00 && point < 0xE000) fail();  // the second half of a pair, alone
            if (point >= 0xD800 && point < 0xDC00) {
                if (next() != '\\' || next() != 'u') fail();
                const std::uint32_t low = hex4();
                if (low < 0xDC00 || low > 0xDFFF) fail();
                point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
            }
            append_utf8(out, point);
        }
        return out;
    }

private:
    [[noreturn]] void fail(const std::string& why = {}) const { throw Error("not JSON at byte " + std::to_string(place_) + why); }

    void skip() {
        while (place_ < text_.size() && std::string_view(" \t\r\n").find(text_[place_]) != std::string_view::npos) ++place_;
    }

    char peek() {
        skip();
        if (place_ >= text_.size()) fail();
        return text_[place_];
    }

    char next() {
        if (++place_ >= text_.size()) fail();
        return text_[place_];
    }

    std::uint32_t hex4() {
        if (place_ + 4 >= text_.size()) fail();
        std::uint32_t value = 0;
        const char* first = text_.data() + place_ + 1;
        const auto [end, error] = std::from_chars(first, first + 4, value, 16);
        if (error != std::errc() || end != first + 4) fail();
        place_ += 4;
        return value;
    }

    Value read(int depth) {
        if (depth > max_depth) fail(" (nested more than " + std::to_string(max_depth) + " levels deep)");
        if (++values_ > max_values) throw Error("has more than " + std::to_string(max_values) + " values");
        switch (peek()) {
            case '{': return object(depth);
            case '[': return array(depth);
            case '"': return Value{Value::Kind::string, string_token(), {}, {}};
            case 't': return word("true", Value::Kind::boolean);
            case 'f': return word("false", Value::Kind::boolean);
            case 'n': return word("null", Value::Kind::null);
            default: return number();
        }
    }

    Value word(std::string_view expected, Value::Kind kind) {
        if (text_.substr(place_, expected.size()) != expected) fail();
        place_ += expected.size();
        return Value{kind, std::string(expected), {}, {}};
    }

    /// By JSON's grammar: what std::from_chars takes beyond it, as "-inf" and "1.", Python's reader would not.
    Value number() {
        const std::size_t start = place_;
        const auto digits = [&] {
            const std::size_t first = place_;
            while (place_ < text_.size() && text_[place_] >= '0' && text_[place_] <= '9') ++place_;
            if (place_ == first) fail();
        };
        const auto skipped = [&](std::string_view any) {
            const bool found = place_ < text_.size() && any.find(text_[place_]) != std::string_view::npos;
            place_ += found;
            return found;
        };
        skipped("-");
        if (!skipped("0")) digits();
        if (skipped(".")) digits();
        if (skipped("eE")) {
            skipped("+-");
            digits();
        }
        return Value{Value::Kind::number, std::string(text_.substr(start, place_ - start)), {}, {}};
    }

    std::string string_token() {
        const std::size_t start = place_;
        for (char c = next(); c != '"'; c = next()) {
            if (static_cast<unsigned char>(c) < 0x20) fail();
            if (c == '\\') next();
        }
        ++place_;
        return std::string(text_.substr(start, place_ - start));
    }

    Value object(int depth) {
        Value value{Value::Kind::object, {}, {}, {}};
        ++place_;
        if (peek() == '}') return ++place_, value;
        while (true) {
            if (peek() != '"') fail();
            const std::string token = string_token();
            std::string key = Reader(token).decoded();
            if (peek() != ':') fail();
            ++place_;
            value.members.emplace_back(std::move(key), read(depth + 1));
            const char after = peek();
            ++place_;
            if (after == '}') return unambiguous(std::move(value));
            if (after != ',') fail();
        }
    }

    /// An object with a key twice means two things: each reader would choose one.
    static Value unambiguous(Value object) {
        std::vector<std::string_view> keys;
        for (const auto& [key, value] : object.members) keys.push_back(key);
        std::sort(keys.begin(), keys.end());
        const auto twice = std::adjacent_find(keys.begin(), keys.end());
        if (twice != keys.end()) throw Error("has the name " + std::string(*twice) + " twice in one object");
        return object;
    }

    Value array(int depth) {
        Value value{Value::Kind::array, {}, {}, {}};
        ++place_;
        if (peek() == ']') return ++place_, value;
        while (true) {
            value.items.push_back(read(depth + 1));
            const char after = peek();
            ++place_;
            if (after == ']') return value;
            if (after != ',') fail();
        }
    }

    std::string_view text_;
    std::size_t place_ = 0, values_ = 0;
};

/// A decoded string as Python's json spells it with ensure_ascii=False.
std::string spelled(const std::string& text) {
    static const std::map<char, const char*> named = {{'"', "\\\""}, {'\\', "\\\\"}, {'\b', "\\b"}, {'\f', "\\f"},
                                                      {'\n', "\\n"}, {'\r', "\\r"},  {'\t', "\\t"}};
    std::string out = "\"";
    for (const char c : text) {
        if (const auto found = named.find(c); found != named.end()) {
            out += found->second;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            constexpr char digits[] = "0123456789abcdef";
            out += "\\u00";
            out += digits[c >> 4];
            out += digits[c & 15];
        } else {
            out += c;
        }
    }
    return out += '"';
}

}  // namespace

const Value* Value::find(std::string_view key) const {
    for (const auto& [name, value] : members)
        if (name == key) return &value;
    return nullptr;
}

const Value& Value::at(std::string_view key) const {
    if (const Value* found = find(key)) return *found;
    throw Error("lacks " + std::string(key));
}

namespace {

[[noreturn]] void wrong(const Value& value, const char* wanted) {
    throw Error(std::string("has no ") + wanted + " where it should: " + (value.token.empty() ? "a group" : value.token));
}

template <class Number>
Number exactly(const Value& value, const char* wanted) {
    Number number = 0;
    const char* last = value.token.data() + value.token.size();
    const auto [end, error] = std::from_chars(value.token.data(), last, number);
    if (value.kind != Value::Kind::number || error != std::errc() || end != last) wrong(value, wanted);
    return number;
}

}  // namespace

std::string Value::string() const {
    if (kind != Kind::string) wrong(*this, "text");
    return Reader(token).decoded();
}

double Value::number() const { return exactly<double>(*this, "number"); }

std::size_t Value::size() const { return exactly<std::size_t>(*this, "whole number"); }

const std::vector<Value>& Value::row(std::size_t length) const {
    if (kind != Kind::array) wrong(*this, "list");
    if (items.size() < length) throw Error("lacks an entry: it has " + std::to_string(items.size()) + " of " + std::to_string(length));
    if (items.size() > length) throw Error("has a list of " + std::to_string(items.size()) + " where it should have " + std::to_string(length));
    return items;
}

std::string Value::canonical(std::string_view without) const {
    if (kind == Kind::string) return spelled(string());
    if (kind == Kind::array) {
        std::string out = "[";
        for (const Value& item : items) out += (out.size() > 1 ? "," : "") + item.canonical();
        return out + "]";
    }
    if (kind != Kind::object) return token;
    std::vector<const std::pair<std::string, Value>*> sorted;
    for (const auto& member : members)
        if (without.empty() || member.first != without) sorted.push_back(&member);
    // bytes of UTF-8 sort as code points do, which is Python's order
    std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    std::string out = "{";
    for (const auto* member : sorted)
        out += (out.size() > 1 ? "," : "") + spelled(member->first) + ":" + member->second.canonical();
    return out + "}";
}

Value parse(std::string_view text) {
    if (!is_utf8(text)) throw Error("is not UTF-8");
    return Reader(text).whole();
}

}  // namespace sit_deploy::json
