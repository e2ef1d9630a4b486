// A library that has the functions which the plugin looks for in a llama.cpp, and tensors enough to answer as one.
// -DWRONG=NAME lets one function answer wrongly, -DLACKS_NAME leaves one out.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef WRONG
#define WRONG none
#endif
#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)

// The function that is wrong, by its number.
enum {
    none_, ggml_type_name_, ggml_nelements_, ggml_nrows_, ggml_nbytes_, ggml_element_size_, ggml_is_contiguous_,
    ggml_get_name_, ggml_op_desc_, ggml_backend_tensor_get_, ggml_backend_tensor_set_, ggml_init_,
    ggml_new_tensor_2d_, ggml_tensor_overhead_,
};
static const int wrong = NAME(WRONG, _);

struct tensor {
    int64_t ne[2];
    size_t size;
    bool turned;
    const char *op;
    char name[64];
    unsigned char data[512];
};
struct context {
    int n;
    struct tensor tensors[8];
};
struct params {
    size_t size;
    void *buffer;
    bool no_alloc;
};

static struct tensor *add(struct context *c, int64_t a, int64_t b, size_t size, const char *op) {
    struct tensor *t = &c->tensors[c->n++];
    t->ne[0] = a, t->ne[1] = b, t->size = size, t->op = op;
    return t;
}

const char *ggml_type_name(int type) { return wrong == ggml_type_name_ ? "q4_0" : type == 0 ? "f32" : "f16"; }
size_t ggml_tensor_overhead(void) { return wrong == ggml_tensor_overhead_ ? 3 : 368; }
void *ggml_init(struct params p) {
    return wrong == ggml_init_ || p.size == 0 || !p.no_alloc ? NULL : calloc(1, sizeof(struct context));
}
void ggml_free(void *c) { free(c); }
struct tensor *ggml_new_tensor_2d(struct context *c, int type, int64_t a, int64_t b) {
    return wrong == ggml_new_tensor_2d_ ? NULL : add(c, a, b, type == 0 ? 4 : 2, "NONE");
}
struct tensor *ggml_add(struct context *c, struct tensor *a, struct tensor *b) {
    (void)b;
    return add(c, a->ne[0], a->ne[1], a->size, "ADD");
}
struct tensor *ggml_transpose(struct context *c, struct tensor *a) {
    struct tensor *t = add(c, a->ne[1], a->ne[0], a->size, "TRANSPOSE");
    t->turned = true;
    return t;
}
int64_t ggml_nelements(const struct tensor *t) { return t->ne[0] * t->ne[1] + (wrong == ggml_nelements_); }
int64_t ggml_nrows(const struct tensor *t) { return t->ne[wrong == ggml_nrows_ ? 0 : 1]; }
size_t ggml_nbytes(const struct tensor *t) { return t->ne[0] * t->ne[1] * t->size + (wrong == ggml_nbytes_); }
size_t ggml_element_size(const struct tensor *t) { return wrong == ggml_element_size_ ? 8 : t->size; }
bool ggml_is_contiguous(const struct tensor *t) { return wrong == ggml_is_contiguous_ || !t->turned; }
struct tensor *ggml_set_name(struct tensor *t, const char *name) {
    strncpy(t->name, name, sizeof t->name - 1);
    return t;
}
const char *ggml_op_desc(const struct tensor *t) { return wrong == ggml_op_desc_ ? "MUL" : t->op; }
void *ggml_get_data(struct tensor *t) { return t->data; }
void *ggml_backend_cpu_buffer_type(void) {
    static int type;
    return &type;
}
void *ggml_backend_alloc_ctx_tensors_from_buft(void *c, void *type) { return c == NULL ? NULL : type; }
void ggml_backend_buffer_free(void *buffer) { (void)buffer; }
#ifndef LACKS_ggml_backend_tensor_set
void ggml_backend_tensor_set(struct tensor *t, const void *from, size_t offset, size_t n) {
    memcpy(t->data + offset, from, wrong == ggml_backend_tensor_set_ ? n / 2 : n);
}
#endif
void ggml_backend_tensor_get(const struct tensor *t, void *to, size_t offset, size_t n) {
    memcpy(to, t->data + offset + (wrong == ggml_backend_tensor_get_ ? 4 : 0), n);
}
int32_t llama_model_meta_val_str(const void *m, const char *key, char *to, size_t n) {
    (void)m, (void)key, (void)to, (void)n;
    return -1;
}
int32_t llama_model_n_embd(const void *m) { return m == NULL; }

#ifndef LACKS_llama_model_n_layer
int32_t llama_model_n_layer(const void *m) { return m == NULL; }
#endif
#ifndef LACKS_ggml_get_name
const char *ggml_get_name(const struct tensor *t) { return wrong == ggml_get_name_ ? "leaf_0" : t->name; }
#endif
