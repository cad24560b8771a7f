// sit_fuzz without libFuzzer: sit_fuzz TARGET CORPUS MUTATIONS [SEED] runs every file of a folder, then so many mutations of
// them. The input at hand is in TARGET.input of the working folder, for when it ends the program; the same seed makes the same
// inputs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "fuzz_targets.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// Random changes as libFuzzer's are: bits, bytes, numbers at the edges of their range, and parts cut, doubled or taken over.
class Mutator {
public:
    Mutator(std::vector<Bytes> seeds, unsigned seed) : seeds_(std::move(seeds)), random_(seed) {}

    Bytes next() {
        Bytes data = seeds_[below(seeds_.size())];
        for (std::size_t changes = 1 + below(6); changes > 0; --changes) change(data);
        if (data.size() > most) data.resize(most);
        return data;
    }

private:
    static constexpr std::size_t most = 64 * 1024;

    // by remainder and not by std::uniform_int_distribution, which each library does its own way
    std::size_t below(std::size_t end) { return end ? random_() % end : 0; }

    void change(Bytes& data) {
        const std::size_t at = below(data.size() + 1);
        const std::size_t length = 1 + below(std::min<std::size_t>(data.size() - at + 1, below(4) ? 8 : 512));
        const auto place = data.begin() + static_cast<std::ptrdiff_t>(at);
        const std::size_t end = std::min(data.size(), at + length);
        switch (below(8)) {
            case 0:
                if (at < data.size()) data[at] ^= static_cast<std::uint8_t>(1U << below(8));
                break;
            case 1:
                if (at < data.size()) data[at] = static_cast<std::uint8_t>(random_());
                break;
            case 2: {  // a number, in either order of bytes
                static constexpr std::uint64_t edges[] = {0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                                          0x2000000000000004, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF};
                const std::uint64_t value = edges[below(std::size(edges))];
                const std::size_t bytes = std::size_t{1} << below(4), big = below(2);
                for (std::size_t i = 0; i < bytes && at + i < data.size(); ++i)
                    data[at + i] = static_cast<std::uint8_t>(value >> 8 * (big ? bytes - 1 - i : i));
                break;
            }
            case 3: {  // a number, spelled
                static const char* const words[] = {"-1", "0", "1e9", "1e308", "-0.5", "NaN", "9223372036854775808", "18446744073709551616", "2305843009213693956",
                                                    "100000", "1000000000", "null", "[]", "{}", "\"\\ud800\"", "../x", "<f8", ">f4", "True"};
                const std::string word = words[below(std::size(words))];
                data.erase(place, data.begin() + static_cast<std::ptrdiff_t>(end));
                data.insert(data.begin() + static_cast<std::ptrdiff_t>(at), word.begin(), word.end());
                break;
            }
            case 4: data.erase(place, data.begin() + static_cast<std::ptrdiff_t>(end)); break;
            case 5: {
                const Bytes copy(place, data.begin() + static_cast<std::ptrdiff_t>(end));
                data.insert(data.begin() + static_cast<std::ptrdiff_t>(at), copy.begin(), copy.end());
                break;
            }
            case 6: {  // a part of another seed
                const Bytes& other = seeds_[below(seeds_.size())];
                const std::size_t from = below(other.size()), until = std::min(other.size(), from + length);
                data.insert(place, other.begin() + static_cast<std::ptrdiff_t>(from), other.begin() + static_cast<std::ptrdiff_t>(until));
                break;
            }
            default: data.resize(at);
        }
    }

    std::vector<Bytes> seeds_;
    std::mt19937 random_;
};

/// The input at hand, in a file that is there when the program is not any more.
class Record {
public:
    explicit Record(const std::string& name) : file_(::open(name.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600)) {}
    Record(const Record&) = delete;
    Record& operator=(const Record&) = delete;
    ~Record() { ::close(file_); }

    [[nodiscard]] bool keep(const Bytes& data) const {
        return ::ftruncate(file_, 0) == 0 && ::pwrite(file_, data.data(), data.size(), 0) == static_cast<ssize_t>(data.size());
    }

private:
    int file_;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "Usage: sit_fuzz TARGET CORPUS MUTATIONS [SEED]\n");
        return 3;
    }
    const sit_deploy::fuzz::Target& target = sit_deploy::fuzz::target(argv[1]);
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(argv[2])) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<Bytes> seeds;
    for (const auto& file : files) seeds.push_back(read(file));
    if (seeds.empty()) {
        std::fprintf(stderr, "%s has no files\n", argv[2]);
        return 3;
    }
    const Record record(std::string(argv[1]) + ".input");
    std::size_t runs = 0;
    const auto run = [&](const Bytes& data) {
        if (!record.keep(data)) std::exit(3);
        sit_deploy::fuzz::run(target, data.data(), data.size());
        ++runs;
    };
    for (const Bytes& seed : seeds) run(seed);
    Mutator mutator(seeds, argc > 4 ? static_cast<unsigned>(std::atoi(argv[4])) : 1);
    for (long left = std::atol(argv[3]); left > 0; --left) run(mutator.next());
    std::printf("%zu inputs\n", runs);
    return 0;
}
