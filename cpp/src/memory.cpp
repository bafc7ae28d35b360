// Blocks of memory that are used again: a training step asks for the same sizes every time, and fresh pages cost more
// than the work done on them. (Of an LSTM's training step, batch 256, 64 steps, 128 units, the system's clearing of
// pages took a tenth.)
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "fastrnn/fastrnn.hpp"

namespace fastrnn {
namespace {

constexpr std::int64_t kHugePage = std::int64_t(1) << 21;
constexpr std::int64_t kSmallestKept = std::int64_t(1) << 18;
constexpr std::int64_t kMostKept = std::int64_t(1) << 30;
constexpr std::size_t kMostBlocks = 64;

struct Block {
  void* data;
  std::int64_t size;
};

/// The blocks that are kept, the last released last. Never destroyed: blocks may be released while the process ends.
struct Shelf {
  std::mutex mutex;
  std::vector<Block> blocks;
  std::int64_t size = 0;

  Block take(std::size_t i) {
    const Block block = blocks[i];
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
    size -= block.size;
    return block;
  }
};
Shelf& shelf() {
  static Shelf* const instance = [] {
    auto* made = new Shelf;
    made->blocks.reserve(kMostBlocks + 1);
    return made;
  }();
  return *instance;
}

/// What is asked of the system for so many bytes. Large blocks are whole huge pages.
std::int64_t rounded(std::int64_t bytes) {
  const std::int64_t unit = bytes >= kHugePage / 2 ? kHugePage : 64;
  return (bytes + unit - 1) / unit * unit;
}

void give_back(const Block& block) { std::free(block.data); }

}  // namespace

Memory allocate(std::int64_t bytes) {
  if (bytes <= 0) return {};
  const std::int64_t size = rounded(bytes);
  if (size >= kSmallestKept) {
    // Never wait: in a child made by fork the lock may be held by a thread that is no more.
    const std::unique_lock<std::mutex> lock(shelf().mutex, std::try_to_lock);
    if (lock) {
      const std::vector<Block>& blocks = shelf().blocks;
      std::size_t best = blocks.size();
      for (std::size_t i = 0; i < blocks.size(); ++i)
        if (blocks[i].size >= size && blocks[i].size <= size + size / 4 &&
            (best == blocks.size() || blocks[i].size <= blocks[best].size))
          best = i;
      if (best < blocks.size()) {
        const Block block = shelf().take(best);
        return Memory(block.data, ReleaseMemory{block.size});
      }
    }
  }
  void* data = nullptr;
  const bool huge = size % kHugePage == 0;
  if (posix_memalign(&data, huge ? kHugePage : 64, static_cast<std::size_t>(size)) != 0) throw std::bad_alloc();
  if (huge) madvise(data, static_cast<std::size_t>(size), MADV_HUGEPAGE);
  return Memory(data, ReleaseMemory{size});
}

void ReleaseMemory::operator()(void* data) const noexcept {
  const Block block{data, size};
  if (size < kSmallestKept || size > kMostKept) return give_back(block);
  const std::unique_lock<std::mutex> lock(shelf().mutex, std::try_to_lock);
  if (!lock) return give_back(block);
  // The system may take the pages back when it needs them; until then they stay, and cost nothing to use again.
  if (size % kHugePage == 0) madvise(data, static_cast<std::size_t>(size), MADV_FREE);
  shelf().blocks.push_back(block);
  shelf().size += size;
  while (shelf().size > kMostKept || shelf().blocks.size() > kMostBlocks) give_back(shelf().take(0));
}

void release_memory() {
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  while (!shelf().blocks.empty()) give_back(shelf().take(0));
}

}  // namespace fastrnn
