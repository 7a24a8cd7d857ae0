// What the kernel tests share: buffers that notice any access beyond their end, reproducible operands, the floating-
// point mode that kernels run in, and visible skips.
#pragma once

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/format.h"
#include "base/types.h"
#include "kernels/registry.h"

namespace cpuinfer::kernels {

/// MXCSR as numa::Team sets it for workers: FTZ, DAZ, round to nearest even. Restores the old mode.
class FlushDenormals {
 public:
  FlushDenormals() : old_(_mm_getcsr()) { _mm_setcsr((old_ & ~0x6000u) | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(old_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned old_;
};

/// `count` elements that end at an unmapped page: reading or writing past the end faults. Filled with `fill`, and so
/// are the bytes in front of it, which before_intact() checks. The end is 64-byte aligned, so the start is wherever
/// whole cache lines of elements begin.
template <typename T>
class GuardedBuffer {
 public:
  GuardedBuffer(int64_t count, T fill) : count_(count) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    map_bytes_ = round_up(bytes + 1, page) + page;
    map_ = mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ENSURE(map_ != MAP_FAILED, "tests have memory");
    ENSURE(mprotect(static_cast<char*>(map_) + map_bytes_ - page, page, PROT_NONE) == 0, "pages can be protected");
    front_bytes_ = map_bytes_ - page - bytes;
    std::memset(map_, kFront, front_bytes_);
    data_ = reinterpret_cast<T*>(static_cast<char*>(map_) + front_bytes_);
    for (int64_t i = 0; i < count; ++i) data_[i] = fill;
  }
  GuardedBuffer(GuardedBuffer&& other) noexcept
      : count_(other.count_),
        map_(std::exchange(other.map_, nullptr)),
        map_bytes_(other.map_bytes_),
        front_bytes_(other.front_bytes_),
        data_(other.data_) {}
  ~GuardedBuffer() {
    if (map_ != nullptr) munmap(map_, map_bytes_);
  }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + count_; }

  void copy_from(const GuardedBuffer& other) {
    std::memcpy(data_, other.data_, sizeof(T) * static_cast<size_t>(count_));
  }
  bool before_intact() const {
    for (size_t i = 0; i < front_bytes_; ++i)
      if (static_cast<const unsigned char*>(map_)[i] != kFront) return false;
    return true;
  }

 private:
  static constexpr unsigned char kFront = 0xa5;
  int64_t count_;
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
  size_t front_bytes_ = 0;
  T* data_ = nullptr;
};

/// A NaN that no kernel produces, for everything that must not be read or written.
inline const float kCanary = std::bit_cast<float>(0x7fc0deadu);
inline constexpr bf16 kCanary16{0x7fed};

/// Kinds of operands.
enum class Values {
  kUnit,   ///< uniform in [-1, 1]
  kWide,   ///< exponents -30..30: cancellation and loss of low terms
  kTiny,   ///< exponents around -63, so that products straddle the smallest normal number; and subnormals
  kZeros,  ///< mostly +0 and -0
};
inline constexpr Values kAllValues[] = {Values::kUnit, Values::kWide, Values::kTiny, Values::kZeros};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  float value(Values kind) {
    const float unit = uniform(-1.0f, 1.0f);
    switch (kind) {
      case Values::kUnit: return unit;
      case Values::kWide: return std::ldexp(unit, integer(-30, 30));
      case Values::kTiny:
        if (integer(0, 9) == 0) return std::bit_cast<float>(static_cast<uint32_t>(integer(1, 0x7fffff)));  // subnormal
        return std::ldexp(unit, integer(-70, -56));
      case Values::kZeros:
        if (integer(0, 3) != 0) return integer(0, 1) != 0 ? 0.0f : -0.0f;
        return unit;
    }
    return unit;
  }
  /// Truncated to bf16, so that subnormal values stay subnormal.
  bf16 value16(Values kind) { return bf16{static_cast<uint16_t>(std::bit_cast<uint32_t>(value(kind)) >> 16)}; }

 private:
  std::mt19937 engine_;
};

/// Equal bits, or NaN on both sides (the payload of a NaN is not part of the contract).
inline bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}
inline bool same_bits(bf16 a, bf16 b) { return a == b || (std::isnan(to_float(a)) && std::isnan(to_float(b))); }

/// Index of the first difference, or -1.
template <typename T>
int64_t first_difference(const GuardedBuffer<T>& a, const GuardedBuffer<T>& b) {
  for (int64_t i = 0; i < a.size(); ++i)
    if (!same_bits(a[i], b[i])) return i;
  return -1;
}

/// The levels (kernels/isa.h) named in an environment variable, separated by spaces; kNone if it is not set.
inline Isa isa_from_environment(const char* variable) {
  const char* names = std::getenv(variable);
  Isa isa = Isa::kNone;
  for (std::string_view rest = names != nullptr ? names : ""; !rest.empty();) {
    const size_t end = std::min(rest.find(' '), rest.size());
    if (end > 0) {
      const Result<Isa> level = isa_level(rest.substr(0, end));
      REQUIRE_MESSAGE(level.has_value(), variable << ": " << level.error().message);
      isa = isa | *level;
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return isa;
}

/// True if this machine, capped by the environment variable CPUINFER_ISA, has what a row needs. Otherwise says that the
/// row is skipped, or fails if CPUINFER_REQUIRE_ISA names what is missing.
inline bool runs_here(std::string_view what, Isa needs) {
  static const Isa machine = detect_isa();
  const Isa have = std::getenv("CPUINFER_ISA") != nullptr ? machine & isa_from_environment("CPUINFER_ISA") : machine;
  if (covers(have, needs)) return true;
  const std::string message =
      format("{} SKIPPED: it needs {}, this run has {}", what, isa_names(needs), isa_names(have));
  CHECK_MESSAGE((needs & isa_from_environment("CPUINFER_REQUIRE_ISA")) == Isa::kNone,
                message << ", but CPUINFER_REQUIRE_ISA demands it");
  MESSAGE(message);
  return false;
}

/// One product with everything that a kernel may get wrong around it: NaN in the padding of rows and units, rows of a
/// that are not asked for, canaries in the padding of c, guard pages behind all three.
struct Product {
  int m, n, k;
  int a_extra;    // elements of padding per row of a, multiple of 32
  int w_extra;    // elements of padding per unit, multiple of 32
  int c_extra;    // elements of padding per row of c, multiple of 16
  bool permuted;  // rows of a in random order, with repetitions, from a larger matrix
  bool accumulate;
  Values values;

  std::string name() const {
    return format("m={} n={} k={} a+{} w+{} c+{} permuted={} accumulate={} values={}", m, n, k, a_extra, w_extra,
                  c_extra, permuted, accumulate, static_cast<int>(values));
  }
};

class ProductData {
 public:
  ProductData(const Product& p, uint32_t seed)
      : shape_(p),
        a_(int64_t{p.m + (p.permuted ? 5 : 0)} * (p.k + p.a_extra), kCanary16),
        w_(int64_t{p.n / 16} * (16 * p.k + p.w_extra), kCanary16),
        c_(int64_t{p.m} * (p.n + p.c_extra), kCanary),
        rows_(p.permuted ? static_cast<size_t>(p.m) : 0) {
    Random random(seed);
    const int a_count = p.m + (p.permuted ? 5 : 0);
    for (int32_t& row : rows_) row = random.integer(0, a_count - 1);
    std::vector<bool> used(static_cast<size_t>(a_count), !p.permuted);
    for (const int32_t row : rows_) used[static_cast<size_t>(row)] = true;
    for (int r = 0; r < a_count; ++r)
      if (used[static_cast<size_t>(r)])
        for (int i = 0; i < p.k; ++i) a_[int64_t{r} * (p.k + p.a_extra) + i] = random.value16(p.values);
    for (int u = 0; u < p.n / 16; ++u)
      for (int i = 0; i < 16 * p.k; ++i) w_[int64_t{u} * (16 * p.k + p.w_extra) + i] = random.value16(p.values);
    if (p.accumulate)
      for (int r = 0; r < p.m; ++r)
        for (int i = 0; i < p.n; ++i) c_[int64_t{r} * (p.n + p.c_extra) + i] = random.value(p.values);
  }

  /// c before the product; pass a copy to run().
  const GuardedBuffer<float>& c() const { return c_; }
  const GuardedBuffer<bf16>& w() const { return w_; }
  float a(int row, int i) const {
    const int64_t a_row = rows_.empty() ? row : rows_[static_cast<size_t>(row)];
    return to_float(a_[a_row * (shape_.k + shape_.a_extra) + i]);
  }
  float w(int output, int i) const {
    return to_float(w_[int64_t{output / 16} * (16 * shape_.k + shape_.w_extra) + i / 2 * 32 + output % 16 * 2 + i % 2]);
  }

  void run(const GemmKernel& kernel, GuardedBuffer<float>& c) const {
    c.copy_from(c_);
    Gemm g;
    g.m = shape_.m;
    g.n = shape_.n;
    g.k = shape_.k;
    g.a = a_.data();
    g.a_stride = shape_.k + shape_.a_extra;
    g.a_rows = rows_.empty() ? nullptr : rows_.data();
    g.w = w_.data();
    g.w_unit_stride = int64_t{16} * shape_.k + shape_.w_extra;
    g.c = c.data();
    g.c_stride = shape_.n + shape_.c_extra;
    g.accumulate = shape_.accumulate;
    kernel.run(g);
  }

 private:
  Product shape_;
  GuardedBuffer<bf16> a_;
  GuardedBuffer<bf16> w_;
  GuardedBuffer<float> c_;
  std::vector<int32_t> rows_;
};

inline const GemmKernel& reference_gemm(Profile profile) {
  for (const GemmKernel& row : gemm_kernels())
    if (std::string_view(row.name) == "reference" && row.profile == profile) return row;
  ENSURE(false, "every profile of the same-bits promise has a reference");
}

}  // namespace cpuinfer::kernels
