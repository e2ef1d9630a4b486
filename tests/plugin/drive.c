// Runs the words of its command line as calls of the plugin, in a program with a llama.cpp of its own, and prints what
// each gives: drive MODEL WORD...

#include "ggsteer.h"
#include "llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct ggsteer *steering;
static struct llama_context *context;

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

static void said(const char *word, long result) {
    const char *why = ggsteer_last_error();
    printf("%s: %ld%s%s\n", word, result, why ? " " : "", why ? why : "");
}

// Tokens FROM to TO of the tests', with the logits of each (as 32-bit floats) into a file.
static int decode(struct llama_model *model, int from, int to, const char *path) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_init(64, 0, 1);
    for (int i = from; i < to; i++) {
        const int at = batch.n_tokens++;
        batch.token[at] = i * 7 % 250;
        batch.pos[at] = i;
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = 0;
        batch.logits[at] = 1;
    }
    if (from == 0) {
        llama_memory_clear(llama_get_memory(context), true);
    }
    const int result = llama_decode(context, batch);
    FILE *file = fopen(path, from == 0 ? "wb" : "ab");
    for (int i = 0; result == 0 && i < batch.n_tokens; i++) {
        fwrite(llama_get_logits_ith(context, i), sizeof(float), n_vocab, file);
    }
    fclose(file);
    llama_batch_free(batch);
    return result;
}

// Vectors in place of tokens.
static int decode_vectors(const struct llama_model *model) {
    const int n_embd = llama_model_n_embd(model);
    struct llama_batch batch = llama_batch_init(3, n_embd, 1);
    for (int i = 0; i < 3; i++) {
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    for (int i = 0; i < 3 * n_embd; i++) {
        batch.embd[i] = 0.01f * (i % 19);
    }
    batch.n_tokens = 3;
    llama_memory_clear(llama_get_memory(context), true);
    const int result = llama_decode(context, batch);
    llama_batch_free(batch);
    return result;
}

int main(int argc, char **argv) {
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) {
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        char word[32] = "", text[512] = "";
        float a = 0, b = 0, c = 0;
        // WORD or WORD=TEXT, or WORD=A,B,C.
        sscanf(argv[i], "%31[^=]=%511s", word, text);
        sscanf(text, "%f,%f,%f", &a, &b, &c);
        const char *path = strchr(text, ',') ? strchr(text, ',') + 1 : text;
        if (strcmp(word, "open") == 0) {
            steering = ggsteer_open(text[0] ? text : NULL, model);
            said(word, steering != NULL);
        } else if (strcmp(word, "open-null") == 0) {
            said(word, ggsteer_open(NULL, NULL) != NULL);
        } else if (strcmp(word, "context") == 0) {
            struct llama_context_params params = llama_context_default_params();
            params.n_ctx = params.n_batch = 64;
            params.n_ubatch = a > 0 ? (uint32_t)a : 64;
            params.n_threads = params.n_threads_batch = 1;
            params.type_k = params.type_v = GGML_TYPE_F32;
            params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.cb_eval = ggsteer_eval_callback;
            params.cb_eval_user_data = steering;
            context = llama_init_from_model(model, params);
        } else if (strcmp(word, "load") == 0) {
            said(word, ggsteer_load(steering, strchr(text, ',') ? path : NULL, (int)a));
        } else if (strcmp(word, "mode") == 0) {
            said(word, ggsteer_set_mode(steering, (int)a, (int)b));
        } else if (strcmp(word, "strength") == 0) {
            said(word, ggsteer_set_strength(steering, (int)a, b));
        } else if (strcmp(word, "positions") == 0) {
            said(word, ggsteer_set_positions(steering, (int)a, (int)b));
        } else if (strcmp(word, "blocks") == 0) {
            said(word, ggsteer_set_blocks(steering, (int)a, (int)b, (int)c));
        } else if (strcmp(word, "side") == 0) {
            said(word, ggsteer_set_side(steering, (int)a, (int)b, c));
        } else if (strcmp(word, "phase") == 0) {
            said(word, ggsteer_set_phase(steering, a != 0));
        } else if (strcmp(word, "read") == 0) {
            said(word, ggsteer_read(steering, (int)a, (int)b));
        } else if (strcmp(word, "readings") == 0) {
            float values[256];
            const long n = (long)ggsteer_readings(steering, (int)a, b > 0 ? values : NULL, (size_t)b);
            said(word, n);
            for (long j = 0; j < n && n <= (long)b; j++) {
                printf("%.9g\n", values[j]);
            }
        } else if (strcmp(word, "decode") == 0) {
            if (decode(model, (int)a, (int)b, strchr(path, ',') + 1) != 0) {
                puts("decode failed");
            }
        } else if (strcmp(word, "vectors") == 0) {
            printf("vectors: %d\n", decode_vectors(model));
        } else if (strcmp(word, "check") == 0) {
            said(word, ggsteer_check(steering));
        } else if (strcmp(word, "detach") == 0) {
            said(word, ggsteer_detach(steering));
        } else if (strcmp(word, "reattach") == 0) {
            said(word, ggsteer_reattach(steering));
        } else if (strcmp(word, "free") == 0) {
            said(word, ggsteer_free(steering));
        } else if (strcmp(word, "version") == 0) {
            puts(ggsteer_version());
        } else {
            return 3;
        }
    }
    if (context != NULL) {
        llama_free(context);
    }
    llama_model_free(model);
    return 0;
}
