// Starts as llama.cpp's own programs do: `logits -m MODEL --control-vector FILE ...`. Reads token ids from stdin, and writes the
// logits after each to stdout, as f32.

#include "arg.h"
#include "common.h"
#include "llama.h"
#include "log.h"

#include <cstdio>
#include <vector>

int main(int argc, char ** argv) {
    common_params params;
    common_init();
    if (!common_params_parse(argc, argv, params, LLAMA_EXAMPLE_COMPLETION)) {
        return 2;
    }
    params.n_outputs_max_per_seq = params.n_batch;

    llama_backend_init();
    common_init_result_ptr init = common_init_from_params(params);
    llama_context * ctx = init->context();
    if (!init->model() || !ctx) {
        common_log_flush(common_log_main());
        return 1;
    }

    std::vector<llama_token> tokens;
    for (int token; scanf("%d", &token) == 1;) {
        tokens.push_back(token);
    }

    llama_batch batch = llama_batch_init(tokens.size(), 0, 1);
    for (size_t i = 0; i < tokens.size(); ++i) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = true;
    }
    batch.n_tokens = tokens.size();
    if (llama_decode(ctx, batch) != 0) {
        return 1;
    }

    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(init->model()));
    for (size_t i = 0; i < tokens.size(); ++i) {
        fwrite(llama_get_logits_ith(ctx, i), sizeof(float), n_vocab, stdout);
    }

    llama_batch_free(batch);
    init.reset();
    llama_backend_free();
    return 0;
}
