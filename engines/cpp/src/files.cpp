#include "files.hpp"

#include <openssl/evp.h>

#include <fstream>
#include <memory>

#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

class Digest {
public:
    Digest() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
        if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) throw Error("OpenSSL has no SHA-256");
    }

    void update(const void* data, std::size_t size) {
        if (EVP_DigestUpdate(context_.get(), data, size) != 1) throw Error("OpenSSL's SHA-256 failed");
    }

    std::string hexadecimal() {
        unsigned char bytes[EVP_MAX_MD_SIZE];
        unsigned length = 0;
        if (EVP_DigestFinal_ex(context_.get(), bytes, &length) != 1) throw Error("OpenSSL's SHA-256 failed");
        constexpr char digits[] = "0123456789abcdef";
        std::string out;
        for (unsigned i = 0; i < length; ++i) {
            out += digits[bytes[i] >> 4];
            out += digits[bytes[i] & 15];
        }
        return out;
    }

private:
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

std::ifstream open_binary(const std::filesystem::path& path) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) throw Error(path.string() + ": no such file, or not an ordinary one");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path.string() + ": cannot be read; check its permissions");
    return file;
}

}  // namespace

std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::size_t most) {
    std::ifstream file = open_binary(path);
    const std::uintmax_t size = std::filesystem::file_size(path);
    if (size > most) throw Error(path.string() + ": " + std::to_string(size) + " bytes are more than the " + std::to_string(most) + " taken");
    std::vector<std::uint8_t> data(static_cast<std::size_t>(size));
    file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(data.size()));
    if (static_cast<std::size_t>(file.gcount()) != data.size()) throw Error(path.string() + ": cannot be read whole");
    return data;
}

std::string sha256(const void* data, std::size_t size) {
    Digest digest;
    digest.update(data, size);
    return digest.hexadecimal();
}

std::string sha256_of_file(const std::filesystem::path& path) {
    std::ifstream file = open_binary(path);
    Digest digest;
    std::vector<char> piece(1 << 20);
    do {
        file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
        digest.update(piece.data(), static_cast<std::size_t>(file.gcount()));
    } while (file);
    if (file.bad()) throw Error(path.string() + ": cannot be read whole");
    return digest.hexadecimal();
}

}  // namespace sit_deploy
