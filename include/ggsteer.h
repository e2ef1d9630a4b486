// ggsteer: steering of language models inside any program with a llama.cpp in it. See docs/plugin.md.
//
// Made from src/plugin/c by cbindgen; a test compares the two.
//
// Functions may be called from any thread. None unwinds or aborts: a failure is a return value of -1 or NULL, and
// ggsteer_last_error has the words. Directions and blocks are counted from 0.

#ifndef GGSTEER_H
#define GGSTEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// What is done with a direction: see ggsteer_set_mode.
enum ggsteer_mode {
  // Nothing.
  GGSTEER_MODE_OFF = 0,
  // It is taken out of the residual stream after every write to it.
  GGSTEER_MODE_ABLATE = 1,
  // It is added at the output of its block.
  GGSTEER_MODE_ADD = 2,
};

// Which tokens something is done at: see ggsteer_set_positions.
enum ggsteer_position {
  // All.
  GGSTEER_POSITION_ALL = 0,
  // Those of the prompt.
  GGSTEER_POSITION_PROMPT = 1,
  // Those that are generated.
  GGSTEER_POSITION_GENERATED = 2,
};

// Which values along a direction are taken out: see ggsteer_set_side.
enum ggsteer_side {
  // All.
  GGSTEER_SIDE_BOTH = 0,
  // Those above the center.
  GGSTEER_SIDE_ABOVE = 1,
  // Those below the center.
  GGSTEER_SIDE_BELOW = 2,
};

// A steering, to be put into `llama_context_params` as the user data of `ggsteer_eval_callback`.
struct ggsteer;

// `struct llama_model` of the host, of which nothing is known here.
struct llama_model;

// `struct ggml_tensor` of the host, of which nothing is known here.
struct ggml_tensor;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of this library, such as "0.1.0".
const char *ggsteer_version(void);

// What went wrong in the last call of this thread, or NULL where nothing did. It is good until the next call.
const char *ggsteer_last_error(void);

// A steering for contexts of `model`, which does nothing yet; NULL on failure.
//
// `library` is the path of the shared llama.cpp (libllama) that the program has loaded, or NULL where the program itself
// exports llama.cpp's functions: linked with -rdynamic, or with shared libraries. It is tried out before it is used, and
// refused where it does not behave as it should. Models whose architecture is not known to name its nodes well are
// refused.
struct ggsteer *ggsteer_open(const char *library,
                             const struct llama_model *model);

// The callback: to be `cb_eval` of llama_context_params, with the steering as `cb_eval_user_data`, before the context is
// made. Not to be called by anybody else than llama.cpp.
bool ggsteer_eval_callback(struct ggml_tensor *tensor,
                           bool ask,
                           void *steering);

// Loads a direction: the number to name it by, counted from 0, or -1. It does nothing until a mode is set.
//
// `block` chooses from a file with several directions; -1 takes the only one.
int32_t ggsteer_load(struct ggsteer *steering, const char *path, int32_t block);

// What is done with a direction (GGSTEER_MODE_…), from the next batch on. 0, or -1.
int32_t ggsteer_set_mode(struct ggsteer *steering, int32_t direction, int32_t mode);

// How much of it is done. Ablated: the part that is taken out, 1 all of it. Added: the factor of the file's vector. 1 at
// first. 0, or -1.
int32_t ggsteer_set_strength(struct ggsteer *steering,
                             int32_t direction,
                             float strength);

// Which tokens it is done at (GGSTEER_POSITION_…), all at first. Anything but all of them needs ggsteer_set_phase before
// each decode. 0, or -1.
int32_t ggsteer_set_positions(struct ggsteer *steering,
                              int32_t direction,
                              int32_t positions);

// Which blocks it is ablated in, counted from 0, both ends included; a last of -1 is the model's last. 0, or -1.
int32_t ggsteer_set_blocks(struct ggsteer *steering,
                           int32_t direction,
                           int32_t first,
                           int32_t last);

// Which values along the unit vector are ablated (GGSTEER_SIDE_…), and to which one, `center`, they are moved: both and 0
// at first. 0, or -1.
int32_t ggsteer_set_side(struct ggsteer *steering,
                         int32_t direction,
                         int32_t side,
                         float center);

// Says whether the batches decoded from now on are of the prompt (true) or generated (false). A batch with both is to be
// decoded in two. 0, or -1.
int32_t ggsteer_set_phase(struct ggsteer *steering,
                          bool prompt);

// Reads the residual stream along a direction at the output of a block, from the next batch on, before what is done
// there; -1 for `block` ends it. 0, or -1.
int32_t ggsteer_read(struct ggsteer *steering,
                     int32_t direction,
                     int32_t block);

// Takes what was read along a direction since the last call: one value a token, in the order in which llama.cpp computes
// them; at the model's last block of those alone whose logits were asked for. Gives the number of values, and takes them
// where `capacity` is large enough; -1 on failure.
int64_t ggsteer_readings(struct ggsteer *steering,
                         int32_t direction,
                         float *values,
                         uintptr_t capacity);

// Whether all was done since the last call, to be asked after each decode: 0, or -1, and then the decode's results are not
// to be used.
int32_t ggsteer_check(struct ggsteer *steering);

// Leaves contexts as they would be without the steering, from the next batch on. 0, or -1.
int32_t ggsteer_detach(struct ggsteer *steering);

// Undoes ggsteer_detach. 0, or -1.
int32_t ggsteer_reattach(struct ggsteer *steering);

// Ends a steering; NULL is let pass. Contexts that have it go on as without it. 0, or -1.
int32_t ggsteer_free(struct ggsteer *steering);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GGSTEER_H */
