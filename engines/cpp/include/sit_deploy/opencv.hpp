// cv::Mat as Pixels, without a copy. Includes nothing of OpenCV: include its headers as you do anyway.
#pragma once

#include <cstddef>
#include <string>

#include "sit_deploy/error.hpp"
#include "sit_deploy/pixels.hpp"

namespace sit_deploy {

/// View a cv::Mat of 8 bits, parts of another (ROI) too: one channel is grey, three are B, G, R and four B, G, R, A, which is what
/// imread and VideoCapture give. Of a cv::Mat in R, G, B set `format` of what is returned.
/// Throws Error: empty, of another depth, of other channels, or of more dimensions than two.
template <class Mat>
Pixels pixels_of(const Mat& mat) {
    if (mat.empty()) throw Error("the cv::Mat is empty; was the frame read?");
    if (mat.dims != 2) throw Error("the cv::Mat has " + std::to_string(mat.dims) + " dimensions; pass one image of two");
    if (mat.depth() != 0)  // CV_8U
        throw Error("the cv::Mat does not have 8 bits a channel (its depth is " + std::to_string(mat.depth()) +
                    ", and CV_8U is 0); scale it to 0 to 255 with convertTo(mat, CV_8U, scale)");
    const int channels = mat.channels();
    if (channels != 1 && channels != 3 && channels != 4)
        throw Error("the cv::Mat has " + std::to_string(channels) + " channels; turn it into one, three or four with cv::cvtColor");
    const PixelFormat format = channels == 1 ? PixelFormat::grey : channels == 3 ? PixelFormat::bgr : PixelFormat::bgra;
    return {mat.data, static_cast<std::size_t>(mat.dataend - mat.data), mat.cols, mat.rows, static_cast<std::size_t>(mat.step), format};
}

}  // namespace sit_deploy
