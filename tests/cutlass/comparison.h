// Counts what agrees with CUTLASS and what does not, under headings. A program that is started with
// the argument "mistaken" makes one mistake under each heading, which then must find differences.
#pragma once

#include <iostream>
#include <string>
#include <utility>

inline bool mistaken = false;
inline int wrong_headings = 0;

class Comparison {
 public:
  explicit Comparison(std::string heading) : heading_(std::move(heading)) {}
  Comparison(const Comparison&) = delete;

  ~Comparison() {
    const bool as_meant = mistaken ? different_ > 0 : different_ == 0 && compared_ > 0;
    if (!as_meant) ++wrong_headings;
    std::cout << (as_meant ? "ok     " : "WRONG  ") << heading_ << ": " << compared_
              << " compared, " << different_ << " different\n";
  }

  // Whole numbers, and words that say where they are from.
  template <typename ours_t, typename theirs_t, typename... place_t>
  void equal(ours_t ours, theirs_t theirs, const place_t&... place) {
    ++compared_;
    if (std::cmp_equal(ours, theirs)) return;
    if (++different_ > kShown || mistaken) return;
    std::cout << "  " << heading_;
    ((std::cout << ' ' << place), ...);
    std::cout << ": ours " << +ours << ", CUTLASS's " << +theirs << '\n';
  }

 private:
  static constexpr int kShown = 5;

  std::string heading_;
  long compared_ = 0;
  long different_ = 0;
};

// main() of each program: runs all of its comparisons; the exit status.
inline int report(int argument_count, char** arguments, void (*compare_all)()) {
  mistaken = argument_count > 1 && arguments[1] == std::string("mistaken");
  compare_all();
  return wrong_headings == 0 ? 0 : 1;
}
