// Contracts of all kernels: argument structs, shapes, alignment, and the numeric definition that every
// implementation reproduces bit by bit. docs/numerics.md explains the reasons.
//
// Kernels are single-threaded, noexcept and allocation-free (the oneDNN row excepted); they know no tensors, models
// or threads. Callers run them with MXCSR FTZ and DAZ set and round-to-nearest (numa::Team does).
//
// Notation. fma(a, b, c) = a*b + c rounded once to binary32. bf16() rounds to nearest even (base/types.h).
// "sum16(v[0..n))" is the canonical sum: 16 lanes, lane i adds v[i], v[i+16], ... in order starting from +0, then
// the lanes are folded i += i+8, i += i+4, i += i+2, i += i+1 (for i below the offset); missing elements add +0.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "kernels/isa.h"

namespace cpuinfer::kernels {

/// Order of accumulation of one output of a matrix product over its K terms.
enum class Profile {
  kDp,      ///< one chain c = +0; for each pair i ascending: c = fma(a[2i+1], w[2i+1], c); c = fma(a[2i], w[2i], c)
            ///< (VDPBF16PS)
  kAmx,     ///< c = +0; for each 32 terms: e = o = +0; 16 times { e = fma(a[2i], w[2i], e);
            ///< o = fma(a[2i+1], w[2i+1], o) }; c = c + (e + o)   (TDPBF16PS)
  kOneDnn,  ///< whatever oneDNN does: a baseline for comparison, outside the same-bits promise
};
const char* profile_name(Profile profile);  // "dp" | "amx" | "onednn"

/// Matrix product with packed weights (kernels/pack.h): c[m, n] = a[m, k] * w^T, or c += that product.
struct Gemm {
  int m = 0;                        ///< rows, >= 1
  int n = 0;                        ///< outputs, multiple of 16
  int k = 0;                        ///< terms, multiple of 32, >= 32
  const bf16* a = nullptr;          ///< [*, a_stride] row-major
  int64_t a_stride = 0;             ///< elements between rows of a; multiple of 32. a is 64-byte aligned
  const int32_t* a_rows = nullptr;  ///< [m] row numbers of a; nullptr means 0, 1, ..., m-1
  const bf16* w = nullptr;          ///< [n/16] units of [k/32][16 k pairs][16 n][2]; 64-byte aligned
  int64_t w_unit_stride = 0;        ///< elements between units; >= 16 * k, multiple of 32
  float* c = nullptr;               ///< [m, c_stride] row-major; 64-byte aligned; rows may be padded
  int64_t c_stride = 0;             ///< elements between rows of c; multiple of 16
  bool accumulate = false;          ///< false: c = chain. true: c = c + chain (one addition after the chain)
  const bf16* next_w = nullptr;  ///< weights of the product that follows, for prefetching only; nullptr: behind these
};

/// One implementation of Gemm.
struct GemmKernel {
  const char* name;  ///< "avx512-fma": the name used by --gemm and in tables
  Isa needs;
  Profile profile;
  int m_min;       ///< smallest m for which the row is likely to be best; every m >= 1 is computed correctly
  bool automatic;  ///< false: runs only when asked for by name
  void (*run)(const Gemm&) noexcept;
};

/// RMS norm of one row: s = sum16(x[i]*x[i] accumulated by fma(x, x, lane)); r = 1 / sqrt(s / n + eps) with IEEE
/// division and square root; out[i] = bf16((x[i] * r) * weight[i]).   (Zhang & Sennrich 2019)
struct RmsNorm {
  const float* x;       ///< [n]
  const float* weight;  ///< [n]
  int n;
  float eps;
  bf16* out;      ///< [out_count]; elements n..out_count-1 become zero
  int out_count;  ///< >= n, multiple of 32
};

/// q or k of one head and token: RMS norm as above (skipped if weight is nullptr) in float32 to y, then the rotation
/// out[i] = bf16(y[i]*cos[i] - y[i+h]*sin[i]), out[i+h] = bf16(y[i+h]*cos[i] + y[i]*sin[i]), h = n/2: two products,
/// then one addition or subtraction, each rounded.   (RoPE, Su et al. 2021, in Hugging Face's half-split form)
struct NormRope {
  const float* x;       ///< [n]
  const float* weight;  ///< [n] or nullptr
  const float* cos;     ///< [n/2]
  const float* sin;     ///< [n/2]
  int n;                ///< head_dim, even
  float eps;
  bf16* out;      ///< [out_count]; elements n..out_count-1 become zero
  int out_count;  ///< >= n, multiple of 32
};

/// SwiGLU of one row: out[j] = bf16((g * (1 / (1 + exp2(-g * log2e)))) * u), with true divisions; log2e =
/// 0x1.715476p+0f. Input is the interleaved form of the packed gate/up matrix: 8 gates, then the 8 ups of the same
/// indices, and so on.
struct SiluMul {
  const float* gate_up;  ///< [2 * n]
  int n;                 ///< multiple of 8
  bf16* out;             ///< [out_count]; elements n..out_count-1 become zero
  int out_count;         ///< >= n, multiple of 8
};

/// Softmax of one row of attention scores inside one leaf of kLeafTokens tokens.
/// s[i] = scores[i] * scale; max = largest s[0..valid); p[i] = exp2(s[i] - max); sum = sum16(p[0..valid));
/// probs[i] = bf16(p[i]), zero for i >= valid. NaN scores are passed over by `max` (-inf if there are no others) and
/// show in p and sum; of +0 and -0, `max` may be either.
struct SoftmaxLeaf {
  const float* scores;  ///< [valid rounded up to 16], entries from `valid` on are not to be trusted
  int valid;            ///< 1..kLeafTokens
  float scale;          ///< softmax scale times log2e
  bf16* probs;          ///< [probs_count]
  int probs_count;      ///< >= valid, multiple of 32
  float* max;           ///< [1]
  float* sum;           ///< [1]
};

/// Merges the partial attention (max, sum, out[n]) of later tokens into that of earlier ones. A partial with sum == 0
/// has seen no tokens: as source it changes nothing, as destination it becomes a copy of the source. Otherwise
/// m = max(dst.max, src.max); a = exp2(dst.max - m); b = exp2(src.max - m);
/// sum = fma(src.sum, b, dst.sum * a); out[i] = fma(src.out[i], b, dst.out[i] * a).
struct AttentionPartial {
  float* max;  ///< [1]
  float* sum;  ///< [1]
  float* out;  ///< [n], not divided by sum
};
struct MergePartial {
  AttentionPartial dst;
  AttentionPartial src;  ///< read only
  int n;                 ///< multiple of 16
};

/// out[i] = bf16(x[i] * (1 / sum)) with a true division.
struct FinishAttention {
  const float* x;  ///< [n]
  float sum;
  int n;
  bf16* out;  ///< [n]
};

/// y[i] = fma(x[i], scale, y[i]): the fold of one expert's output into the residual stream.
struct ScaleAdd {
  const float* x;  ///< [n]
  float scale;
  float* y;  ///< [n]
  int n;     ///< multiple of 16
};

/// Tokens in an attention leaf = tokens in a KV page.
inline constexpr int kLeafTokens = 256;

/// exp2(x) of the contract, for |x| of any size: x below -126 gives +0, x above 127 gives exp2(127), NaN stays NaN.
///   x = min(127, x); t = rint(x) (half to even); f = x - t;
///   p = c6; p = fma(p, f, c5); ... fma(p, f, c0); result = bits(p) + (int(t) << 23); +0 if x < -126.
/// Relative error < 2^-23.6 on [-126, 127]; exp2(0) = 1 exactly. Degree-6 minimax polynomial of the relative error.
/// (These two are not `inline`: kernel objects may hold no symbol that the linker shares between files.)
constexpr float kExp2Coefficients[7] = {
    0x1.000000p+0f, 0x1.62e430p-1f, 0x1.ebfbdap-3f, 0x1.c6aed4p-5f, 0x1.3b2dbcp-7f, 0x1.5f456ap-10f, 0x1.41d334p-13f,
};
constexpr float kLog2e = 0x1.715476p+0f;
/// The scalar form: what all others must equal.
float exp2_scalar(float x) noexcept;

/// Softmax over all experts of one token, then its K most probable ones (ties: the lower index first).
/// p[i] = exp2((logit[i] - max) * log2e) / sum16(...); chosen in descending p; if `normalize`, each weight is divided
/// by the sum of the chosen ones, added in that order. Then sorted by ascending expert.
struct Router {
  const float* logits;  ///< [experts]
  int experts;
  int chosen;  ///< K, 1..experts
  bool normalize;
  int32_t* expert_ids;  ///< [K] ascending
  float* weights;       ///< [K] in the order of expert_ids
  float* scratch;       ///< [experts]
};
void route(const Router&) noexcept;

/// One implementation of everything that is no matrix product.
struct ElementwiseKernels {
  const char* name;  ///< "avx512"
  Isa needs;
  void (*rms_norm)(const RmsNorm&) noexcept;
  void (*norm_rope)(const NormRope&) noexcept;
  void (*silu_mul)(const SiluMul&) noexcept;
  void (*softmax_leaf)(const SoftmaxLeaf&) noexcept;
  void (*merge_partial)(const MergePartial&) noexcept;
  void (*finish_attention)(const FinishAttention&) noexcept;
  void (*scale_add)(const ScaleAdd&) noexcept;
};

}  // namespace cpuinfer::kernels
