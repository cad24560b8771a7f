#include "boundary.hpp"

#include <exception>
#include <new>

#include "sit_deploy/error.hpp"

namespace sit_deploy {

std::string printable(std::string_view text) {
    std::string out(text);
    for (std::size_t i = 0; i < out.size(); ++i) {
        const auto byte = static_cast<unsigned char>(out[i]);
        if (byte < 0x20 || byte == 0x7F) out[i] = ' ';
        // U+0080 to U+009F in UTF-8
        const bool second = byte >= 0x80 && byte < 0xA0 && i > 0 && static_cast<unsigned char>(out[i - 1]) == 0xC2;
        if (second) out[i - 1] = out[i] = ' ';
    }
    return out;
}

namespace {

/// A message for people: names in it may be of any length, and what is wrong and what to do stand at its ends.
std::string message(std::string_view text) {
    constexpr std::size_t most = 1000, head = 500, tail = 400;
    if (text.size() <= most) return printable(text);
    const auto is_inside = [&](std::size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
    std::size_t end = head, start = text.size() - tail;
    while (end > 0 && is_inside(end)) --end;  // characters stay whole
    while (start < text.size() && is_inside(start)) ++start;
    return printable(std::string(text.substr(0, end)) + " ... " + std::string(text.substr(start)));
}

}  // namespace

void throw_error(std::string_view what) {
    try {
        throw;
    } catch (const Error& error) {
        const std::string text = message(error.what());
        if (text == error.what()) throw;
        throw Error(text);
    } catch (const std::bad_alloc&) {
        throw Error(message(std::string(what) + ": there is not enough memory"));
    } catch (const std::exception& error) {
        throw Error(message(std::string(what) + ": " + error.what()));
    }
    // what is no std::exception is no failure: a thread that is cancelled unwinds so
}

}  // namespace sit_deploy
