#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace cpuinfer {

void check_failed(const char* file, int line, const char* condition, const char* promise) {
  std::fprintf(stderr, "cpuinfer: internal error at %s:%d: %s (%s)\n", file, line, promise, condition);
  std::abort();
}

}  // namespace cpuinfer
