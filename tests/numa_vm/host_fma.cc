// fmaf and fma for QEMU, by LD_PRELOAD. QEMU emulates a fused multiply-add by calling these of the C library, and
// leaves the upper halves of the vector registers dirty meanwhile, so that every call waits for them: some 150 ns on
// the CPUs that were measured. Clearing them makes a guest that multiplies matrices several times as fast. The bits are
// the same.
#include <immintrin.h>

extern "C" float fmaf(float a, float b, float c) {
  const float sum = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
  _mm256_zeroupper();
  return sum;
}

extern "C" double fma(double a, double b, double c) {
  const double sum = _mm_cvtsd_f64(_mm_fmadd_sd(_mm_set_sd(a), _mm_set_sd(b), _mm_set_sd(c)));
  _mm256_zeroupper();
  return sum;
}
