// Answers a prompt with a direction erased, and once more without: a plain llama.cpp program and a plugin.
//
//     generate MODEL.gguf DIRECTION.gguf PROMPT [TOKENS]

#include "ggsteer.h"
#include "llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static void fail(const char *what) {
    fprintf(stderr, "error: %s\n", what);
    exit(1);
}

// The greedy answer to a prompt, on a line of its own.
static void answer(struct llama_context *context, const struct llama_model *model, const char *prompt, int max_tokens) {
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    const struct llama_chat_message message = {"user", prompt};
    static char text[65536];
    static llama_token tokens[8192];
    const int length =
        llama_chat_apply_template(llama_model_chat_template(model, NULL), &message, 1, true, text, sizeof text);
    if (length < 0 || length > (int)sizeof text) {
        fail("the prompt does not fit the chat template");
    }
    const int n_tokens = llama_tokenize(vocab, text, length, tokens, 8192, true, true);
    if (n_tokens < 1) {
        fail("the prompt cannot be tokenized");
    }

    llama_memory_clear(llama_get_memory(context), true);
    struct llama_sampler *sampler = llama_sampler_init_greedy();
    struct llama_batch batch = llama_batch_get_one(tokens, n_tokens);
    llama_token token;
    for (int i = 0; i < max_tokens; i++) {
        if (llama_decode(context, batch) != 0) {
            fail("the decode failed");
        }
        token = llama_sampler_sample(sampler, context, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        char piece[256];
        const int n = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
        fwrite(piece, 1, n > 0 ? n : 0, stdout);
        batch = llama_batch_get_one(&token, 1);
    }
    putchar('\n');
    llama_sampler_free(sampler);
}

int main(int argc, char **argv) {
    if (argc < 4 || argc > 5) {
        fail("usage: generate MODEL.gguf DIRECTION.gguf PROMPT [TOKENS]");
    }
    const int max_tokens = argc == 5 ? atoi(argv[4]) : 64;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) {
        fail("the model cannot be loaded");
    }

    // The plugin: opened for the llama.cpp in this program, a direction, what is done with it.
    struct ggsteer *steering = ggsteer_open(NULL, model);
    if (steering == NULL) {
        fail(ggsteer_last_error());
    }
    const int direction = ggsteer_load(steering, argv[2], -1);
    if (direction < 0 || ggsteer_set_mode(steering, direction, GGSTEER_MODE_ABLATE) != 0) {
        fail(ggsteer_last_error());
    }

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.cb_eval = ggsteer_eval_callback;
    params.cb_eval_user_data = steering;
    struct llama_context *context = llama_init_from_model(model, params);
    if (context == NULL) {
        fail("the context cannot be made");
    }

    answer(context, model, argv[3], max_tokens);
    if (ggsteer_check(steering) != 0) {
        fail(ggsteer_last_error());
    }
    ggsteer_detach(steering);
    answer(context, model, argv[3], max_tokens);

    llama_free(context);
    ggsteer_free(steering);
    llama_model_free(model);
    return 0;
}
