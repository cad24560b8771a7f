// What Pixels are made of each cv::Mat: offset of the data, size, width, height, stride, format; or what is refused.
#include <cstdint>
#include <cstdio>
#include <vector>

#include <opencv2/core.hpp>

#include "sit_deploy/opencv.hpp"

int main() {
    std::vector<std::uint8_t> memory(4096);
    const auto show = [&](const char* name, const cv::Mat& mat) {
        try {
            const sit_deploy::Pixels pixels = sit_deploy::pixels_of(mat);
            std::printf("%s %td %zu %d %d %zu %d\n", name, pixels.data - memory.data(), pixels.size, static_cast<int>(pixels.width),
                        static_cast<int>(pixels.height), pixels.stride, static_cast<int>(pixels.format));
        } catch (const sit_deploy::Error& error) {
            std::printf("%s: %s\n", name, error.what());
        }
    };
    const cv::Mat whole(6, 8, CV_8UC3, memory.data());
    show("whole", whole);
    show("part", whole(cv::Rect(2, 1, 4, 3)));
    show("column", whole(cv::Rect(1, 0, 1, 6)));
    show("grey", cv::Mat(6, 8, CV_8UC1, memory.data()));
    show("four", cv::Mat(6, 2, CV_8UC4, memory.data()));
    show("filled up", cv::Mat(6, 1, CV_8UC3, memory.data(), 23)(cv::Rect(0, 0, 1, 6)));
    show("empty", cv::Mat());
    show("16 bits", cv::Mat(6, 8, CV_16UC3, memory.data()));
    show("two channels", cv::Mat(6, 8, CV_8UC2, memory.data()));
    const int sizes[] = {2, 3, 4};
    show("cube", cv::Mat(3, sizes, CV_8UC1, memory.data()));
    return 0;
}
