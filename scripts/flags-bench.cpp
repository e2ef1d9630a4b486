// Times llama.cpp on a model: tokens per second of a 512-token prefill, of decoding one sequence and of decoding eight.
// Usage: flags-bench MODEL.gguf THREADS, or flags-bench quantize F16.gguf Q4_K.gguf. Built and run by flags-bench.sh.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

static int threads = 1;

// Wall time; with one thread the processor time of this process, which other work on the machine does not lengthen.
static double seconds() {
    if (threads == 1) {
        return double(std::clock()) / CLOCKS_PER_SEC;
    }
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// Decodes one step: `n` tokens, one after the other in one sequence, or one for each of `n` sequences.
static void step(llama_context * ctx, llama_batch & batch, int n, int pos, bool one_sequence) {
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i]     = (pos * 31 + i * 7) % 256;
        batch.pos[i]       = one_sequence ? pos + i : pos;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = one_sequence ? 0 : i;
        batch.logits[i]    = one_sequence ? i == n - 1 : 1;
    }
    if (llama_decode(ctx, batch) != 0) {
        std::fprintf(stderr, "error: llama_decode failed\n");
        std::exit(1);
    }
    llama_synchronize(ctx);
}

// Tokens per second of `steps` steps on an empty cache.
static double speed(llama_context * ctx, llama_batch & batch, int n, int steps, bool one_sequence) {
    llama_memory_clear(llama_get_memory(ctx), true);
    const double start = seconds();
    for (int s = 0; s < steps; s++) {
        step(ctx, batch, n, one_sequence ? s * n : s, one_sequence);
    }
    return n * steps / (seconds() - start);
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    if (argc == 4 && std::strcmp(argv[1], "quantize") == 0) {
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.ftype = LLAMA_FTYPE_MOSTLY_Q4_K_S;
        return llama_model_quantize(argv[2], argv[3], &params) == 0 ? 0 : 1;
    }
    if (argc != 3) {
        std::fprintf(stderr, "usage: flags-bench MODEL.gguf THREADS | quantize F16.gguf Q4_K.gguf\n");
        return 2;
    }
    threads = std::atoi(argv[2]);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        std::fprintf(stderr, "error: cannot load %s\n", argv[1]);
        return 1;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = 512;
    params.n_seq_max = 8;
    params.kv_unified = true;
    params.n_threads = params.n_threads_batch = threads;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        return 1;
    }
    llama_batch batch = llama_batch_init(512, 0, 8);
    speed(ctx, batch, 64, 1, true);
    speed(ctx, batch, 1, 4, true);
    const double prefill = speed(ctx, batch, 512, 1, true);
    const double decode  = speed(ctx, batch, 1, 48, true);
    const double batched = speed(ctx, batch, 8, 24, false);
    std::printf("%.2f %.2f %.2f\n", prefill, decode, batched);
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
}
