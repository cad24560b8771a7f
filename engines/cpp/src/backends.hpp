// What the backends share, and how they are opened.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "sit_deploy/engine.hpp"

namespace sit_deploy {

/// Contexts that callers borrow: whoever finds none free waits.
template <class Context>
class Pool {
public:
    void add(std::unique_ptr<Context> context) { free_.push_back(std::move(context)); }

    /// Run `work` on a free context, which goes back however it ends.
    template <class Work>
    void with(Work work) {
        Lease lease(*this);
        work(*lease.context);
    }

private:
    struct Lease {
        explicit Lease(Pool& owner) : pool(owner) {
            std::unique_lock lock(pool.mutex_);
            pool.changed_.wait(lock, [&] { return !pool.free_.empty(); });
            context = std::move(pool.free_.back());
            pool.free_.pop_back();
        }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        ~Lease() {
            {
                const std::lock_guard lock(pool.mutex_);
                pool.free_.push_back(std::move(context));  // room for all was made when they were added
            }
            pool.changed_.notify_one();
        }
        Pool& pool;
        std::unique_ptr<Context> context;
    };

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::unique_ptr<Context>> free_;
};

std::unique_ptr<Engine> open_openvino(const Bundle& bundle, const Options& options);
std::unique_ptr<Engine> open_tensorrt(const Bundle& bundle, const Options& options);

}  // namespace sit_deploy
