#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>

#include "sit_deploy/error.hpp"

namespace sit_deploy::json {
namespace {

constexpr int max_depth = 64;

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
    [[noreturn]] void fail() const { throw Error("not JSON at byte " + std::to_string(place_)); }

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
        if (depth > max_depth) fail();
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

    Value number() {
        double ignored = 0;
        const char* first = text_.data() + place_;
        const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), ignored);
        const bool digit = *first == '-' || (*first >= '0' && *first <= '9');  // from_chars takes inf and nan too
        if (!digit || error == std::errc::invalid_argument) fail();
        place_ += static_cast<std::size_t>(end - first);
        return Value{Value::Kind::number, std::string(first, end), {}, {}};
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
            if (value.find(key)) fail();  // which of the two would count?
            if (peek() != ':') fail();
            ++place_;
            value.members.emplace_back(std::move(key), read(depth + 1));
            const char after = peek();
            ++place_;
            if (after == '}') return value;
            if (after != ',') fail();
        }
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
    std::size_t place_ = 0;
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

std::string Value::string() const {
    if (kind != Kind::string) throw Error("has no text where it should: " + (token.empty() ? "a group" : token));
    return Reader(token).decoded();
}

double Value::number() const {
    double value = 0;
    const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
    if (kind != Kind::number || error != std::errc() || end != token.data() + token.size())
        throw Error("has no number where it should: " + (token.empty() ? "a group" : token));
    return value;
}

std::size_t Value::size() const {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
    if (kind != Kind::number || error != std::errc() || end != token.data() + token.size())
        throw Error("has no whole number where it should: " + (token.empty() ? "a group" : token));
    return value;
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

Value parse(std::string_view text) { return Reader(text).whole(); }

}  // namespace sit_deploy::json
