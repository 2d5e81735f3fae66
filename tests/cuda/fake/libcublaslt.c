// Products in plain loops, as cuBLASLt's manual says what they are (columns first), for tests of src/kernels/cuda/driver.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int transposed, epilogue; const float *bias; int type; uint64_t rows, columns; int64_t stride; } Object;
typedef struct { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; } Heuristic;

static int live, choices;
int fake_objects(void) { return live; }
int fake_choices(void) { return choices; }

static int make(Object **object) { *object = calloc(1, sizeof(Object)); live++; return 0; }
static int drop(Object *object) { free(object); live--; return 0; }

int cublasLtCreate(Object **handle) { return make(handle); }
int cublasLtDestroy(Object *handle) { return drop(handle); }
int cublasLtMatmulDescCreate(Object **desc, int compute, int scale) { return make(desc) || compute != 68 || scale != 0; }
int cublasLtMatmulDescDestroy(Object *desc) { return drop(desc); }
int cublasLtMatmulDescSetAttribute(Object *desc, int attribute, const void *value, size_t bytes) {
    switch (attribute) {
        case 3: memcpy(&desc->transposed, value, 4); return bytes == 4 ? 0 : 7;
        case 7: memcpy(&desc->epilogue, value, 4); return bytes == 4 ? 0 : 7;
        case 8: memcpy(&desc->bias, value, 8); return bytes == 8 ? 0 : 7;
        default: return 7;
    }
}
int cublasLtMatrixLayoutCreate(Object **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    make(layout);
    (*layout)->type = type, (*layout)->rows = rows, (*layout)->columns = columns, (*layout)->stride = stride;
    return 0;
}
int cublasLtMatrixLayoutDestroy(Object *layout) { return drop(layout); }
int cublasLtMatmulPreferenceCreate(Object **preference) { return make(preference); }
int cublasLtMatmulPreferenceDestroy(Object *preference) { return drop(preference); }
int cublasLtMatmulPreferenceSetAttribute(Object *preference, int attribute, const void *value, size_t bytes) {
    uint32_t alignment = 0;
    (void)preference;
    memcpy(&alignment, value, 4);
    if (attribute == 1) return bytes == 8 && alignment == 32u << 20 ? 0 : 7;
    return attribute >= 5 && attribute <= 8 && bytes == 4 && alignment >= 1 && alignment <= 256 ? 0 : 7;
}
// There is no algorithm for half precision here.
int cublasLtMatmulAlgoGetHeuristic(void *handle, Object *desc, Object *a, Object *b, Object *c, Object *d, void *preference,
                                   int asked, Heuristic *result, int *got) {
    (void)handle, (void)desc, (void)preference;
    choices++;
    if (a->rows != b->rows || a->columns != d->rows || b->columns != d->columns || c != d || asked != 1) return 7;
    memset(result, 0, sizeof *result);
    result->algorithm[0] = 42;
    *got = a->type == 0;
    return 0;
}
#ifndef MISFIT
int cublasLtMatmul(void *handle, Object *desc, const float *alpha, const float *a, Object *la, const float *b, Object *lb,
                   const float *beta, const float *c, Object *lc, float *d, Object *ld, const uint64_t *algorithm,
                   void *workspace, size_t bytes, void *stream) {
    (void)handle, (void)lc, (void)stream;
    if (!desc->transposed || *algorithm != 42 || !workspace || bytes != 32u << 20) return 7;
    for (uint64_t j = 0; j < ld->columns; j++) {
        for (uint64_t i = 0; i < ld->rows; i++) {
            float sum = 0;
            for (uint64_t l = 0; l < la->rows; l++) sum += a[l + i * (uint64_t)la->stride] * b[l + j * (uint64_t)lb->stride];
            sum = *alpha * sum + (*beta == 0 ? 0 : *beta * c[i + j * (uint64_t)ld->stride]);
            d[i + j * (uint64_t)ld->stride] = sum + (desc->epilogue == 4 ? desc->bias[i] : 0);
        }
    }
    return 0;
}
#endif
