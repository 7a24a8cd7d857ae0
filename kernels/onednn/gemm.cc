// The only file that knows oneDNN. Debian 12 has 2.6.3; its fast implementation ("brg", JIT-compiled) takes packed
// weights only if a, w and c are dense, and anything else falls to a scalar one: so rows of a are gathered, units of a
// padded matrix multiplied one by one, and results that are to be padded or accumulated go through scratch.
#include <atomic>
#include <compare>
#include <exception>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "base/log.h"
#include "kernels/onednn/onednn.h"
#include "kernels/pack.h"
#include "kernels/reference/reference.h"

// OpenMP's C interface, from the libgomp that oneDNN runs on. Declared here since clang comes without <omp.h>.
extern "C" {
int omp_get_max_threads();
void omp_set_num_threads(int count);
}

namespace cpuinfer::kernels {
namespace {

using dnnl::memory;

/// Workers are threads already: oneDNN must not start more. The setting is one of the calling thread.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : old_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(old_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  int old_;
};

/// oneDNN in one thread: its compiled primitives and scratch. Not thread-safe.
class DenseProducts {
 public:
  DenseProducts() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  /// c[m, n] = a[m, k] * w^T, all dense; w: [n/16] units.
  void run(int m, int n, int k, const bf16* a, const bf16* w, float* c) {
    const Primitive& primitive = find(Shape{m, n, k});
    // oneDNN takes non-const pointers for what it only reads.
    const memory a_memory(primitive.a, engine_, const_cast<bf16*>(a));
    const memory w_memory(primitive.w, engine_, const_cast<bf16*>(w));
    const memory c_memory(primitive.c, engine_, c);
    primitive.matmul.execute(stream_,
                             {{DNNL_ARG_SRC, a_memory}, {DNNL_ARG_WEIGHTS, w_memory}, {DNNL_ARG_DST, c_memory}});
    stream_.wait();
  }

  std::vector<bf16> rows;
  std::vector<float> product;

 private:
  struct Shape {
    int m;
    int n;
    int k;
    auto operator<=>(const Shape&) const = default;
  };
  struct Primitive {
    memory::desc a;
    memory::desc w;
    memory::desc c;
    dnnl::matmul matmul;
  };
  static constexpr size_t kMaxPrimitives = 512;  // prompts of ever new lengths must not fill the memory with code

  const Primitive& find(Shape shape) {
    if (const auto found = primitives_.find(shape); found != primitives_.end()) return found->second;
    if (primitives_.size() >= kMaxPrimitives) primitives_.clear();
    Primitive primitive;
    primitive.a = {{shape.m, shape.k}, memory::data_type::bf16, memory::format_tag::ab};
    primitive.w = {{shape.k, shape.n}, memory::data_type::bf16, memory::format_tag::BA16a16b2a};
    primitive.c = {{shape.m, shape.n}, memory::data_type::f32, memory::format_tag::ab};
    const dnnl::matmul::desc description(primitive.a, primitive.w, primitive.c);
    primitive.matmul = dnnl::matmul(dnnl::matmul::primitive_desc(description, engine_));
    return primitives_.emplace(shape, std::move(primitive)).first->second;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Shape, Primitive> primitives_;
};

/// The rows of a that are asked for, dense.
const bf16* dense_rows(const Gemm& g, std::vector<bf16>& scratch) {
  if (g.a_rows == nullptr && g.a_stride == g.k) return g.a;
  scratch.clear();
  for (int r = 0; r < g.m; ++r) {
    const bf16* row = g.a + (g.a_rows != nullptr ? g.a_rows[r] : r) * g.a_stride;
    scratch.insert(scratch.end(), row, row + g.k);
  }
  return scratch.data();
}

void multiply(const Gemm& g) {
  const OneOpenMpThread single;
  thread_local DenseProducts products;
  const bf16* a = dense_rows(g, products.rows);

  const bool dense_w = g.w_unit_stride == int64_t{kUnitOutputs} * g.k;
  if (dense_w && g.c_stride == g.n && !g.accumulate) return products.run(g.m, g.n, g.k, a, g.w, g.c);

  const int part_n = dense_w ? g.n : kUnitOutputs;
  const size_t part_size = static_cast<size_t>(g.m) * static_cast<size_t>(part_n);
  const int parts = g.n / part_n;
  // All parts before the first write to c: should one fail, c is still what it was.
  products.product.resize(part_size * static_cast<size_t>(parts));
  for (int part = 0; part < parts; ++part)
    products.run(g.m, part_n, g.k, a, g.w + part * g.w_unit_stride,
                 products.product.data() + static_cast<size_t>(part) * part_size);
  for (int part = 0; part < parts; ++part) {
    for (int r = 0; r < g.m; ++r) {
      const float* from = products.product.data() + static_cast<size_t>(part) * part_size + int64_t{r} * part_n;
      float* c = g.c + r * g.c_stride + part * part_n;
      for (int j = 0; j < part_n; ++j) c[j] = g.accumulate ? c[j] + from[j] : from[j];
    }
  }
}

void warn_once(const char* reason) noexcept {
  static std::atomic<bool> warned = false;
  if (warned.exchange(true)) return;
  try {
    log_warn("oneDNN failed ({}): its products are computed by the reference kernel", reason);
  } catch (...) {  // out of memory for the message
  }
}

}  // namespace

void gemm_onednn(const Gemm& g) noexcept {
  try {
    multiply(g);
    return;
  } catch (const std::exception& error) {
    warn_once(error.what());
  }
  gemm_reference_dp(g);
}

}  // namespace cpuinfer::kernels
