"""Answers a prompt with a direction erased, and once more without: llama-cpp-python's low-level API and a plugin.

    generate.py LIBGGSTEER MODEL.gguf DIRECTION.gguf PROMPT [TOKENS]
"""

import ctypes
import sys

import llama_cpp


def load(path):
    """The plugin, with the types of the functions used here."""
    plugin = ctypes.CDLL(path)
    plugin.ggsteer_open.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    plugin.ggsteer_open.restype = ctypes.c_void_p
    plugin.ggsteer_load.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32]
    plugin.ggsteer_set_mode.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    plugin.ggsteer_last_error.restype = ctypes.c_char_p
    for name in ["check", "detach", "free"]:
        getattr(plugin, f"ggsteer_{name}").argtypes = [ctypes.c_void_p]
    return plugin


def answer(context, model, prompt, max_tokens):
    """The greedy answer to a prompt."""
    vocab = llama_cpp.llama_model_get_vocab(model)
    message = llama_cpp.llama_chat_message(b"user", prompt.encode())
    text = ctypes.create_string_buffer(65536)
    template = llama_cpp.llama_model_chat_template(model, None)
    length = llama_cpp.llama_chat_apply_template(template, (llama_cpp.llama_chat_message * 1)(message), 1, True, text, len(text))
    tokens = (llama_cpp.llama_token * 8192)()
    n_tokens = llama_cpp.llama_tokenize(vocab, text.value, length, tokens, len(tokens), True, True)
    assert n_tokens > 0, "the prompt cannot be tokenized"

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    sampler = llama_cpp.llama_sampler_init_greedy()
    batch = llama_cpp.llama_batch_get_one(tokens, n_tokens)
    said = b""
    for _ in range(max_tokens):
        assert llama_cpp.llama_decode(context, batch) == 0, "the decode failed"
        token = llama_cpp.llama_sampler_sample(sampler, context, -1)
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            break
        piece = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(vocab, token, piece, len(piece), 0, False)
        said += piece.raw[: max(n, 0)]
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
    llama_cpp.llama_sampler_free(sampler)
    return said.decode(errors="replace")


def main(library, model_path, direction_path, prompt, max_tokens="64"):
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit("error: the model cannot be loaded")

    # The plugin: opened for the llama.cpp that llama_cpp has loaded, a direction, what is done with it.
    plugin = load(library)
    steering = plugin.ggsteer_open(llama_cpp.llama_cpp._lib._name.encode(), model)
    direction = plugin.ggsteer_load(steering, direction_path.encode(), -1) if steering else -1
    if direction < 0 or plugin.ggsteer_set_mode(steering, direction, 1) != 0:
        sys.exit("error: " + plugin.ggsteer_last_error().decode())

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 512
    params.n_threads = params.n_threads_batch = 1
    params.cb_eval = ctypes.cast(plugin.ggsteer_eval_callback, llama_cpp.ggml_backend_sched_eval_callback)
    params.cb_eval_user_data = steering
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit("error: the context cannot be made")

    print(answer(context, model, prompt, int(max_tokens)))
    if plugin.ggsteer_check(steering) != 0:
        sys.exit("error: " + plugin.ggsteer_last_error().decode())
    plugin.ggsteer_detach(steering)
    print(answer(context, model, prompt, int(max_tokens)))

    llama_cpp.llama_free(context)
    plugin.ggsteer_free(steering)
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    main(*sys.argv[1:])
