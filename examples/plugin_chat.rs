//! A plain chat loop of llama-cpp-2, and three lines that steer it: `plugin_chat MODEL.gguf DIRECTION.gguf` answers each
//! line of its input.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Result, bail};
use ggsteer::direction::Direction;
use ggsteer::intervention::Intervention;
use ggsteer::plugin::Steering;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaChatMessage, LlamaModel};
use llama_cpp_2::sampling::LlamaSampler;

/// Answers each line of `input` on a line of `output`.
///
/// # Errors
/// What llama.cpp, the direction's file or the steering says.
pub fn chat(
    backend: &LlamaBackend,
    [model, direction]: [&Path; 2],
    input: impl BufRead,
    output: &mut impl Write,
) -> Result<()> {
    let model = LlamaModel::load_from_file(backend, model, &LlamaModelParams::default())?;
    let template = model.chat_template(None)?;
    let params = LlamaContextParams::default().with_n_threads(1).with_n_threads_batch(1);

    let steering = Steering::new(&model);
    steering.set(Intervention::ablate(&[Direction::load(direction, None)?.vector])?)?;
    let params = steering.attach(params)?;

    let mut context = model.new_context(backend, params)?;
    let mut messages = Vec::new();
    for line in input.lines() {
        messages.push(LlamaChatMessage::new("user".into(), line?)?);
        let prompt = model.apply_chat_template(&template, &messages, true)?;
        let tokens = model.vocab().tokenize(prompt.as_bytes(), true, true);
        let mut batch = LlamaBatch::new(tokens.len(), 1);
        batch.add_sequence(&tokens, 0, false)?;
        context.clear_kv_cache();

        let mut answer = Vec::new();
        let mut sampler = LlamaSampler::greedy();
        for position in tokens.len().. {
            context.decode(&mut batch)?;
            let token = sampler.sample(&context, batch.n_tokens() - 1);
            if model.vocab().is_eog(token) || answer.len() > 1000 {
                break;
            }
            answer.extend(model.vocab().token_to_piece(token, false, None));
            batch.clear();
            batch.add(token, i32::try_from(position)?, &[0], true)?;
        }
        steering.check()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        writeln!(output, "{answer}")?;
        messages.push(LlamaChatMessage::new("assistant".into(), answer)?);
    }
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, direction] = &words[..] else { bail!("usage: plugin_chat MODEL.gguf DIRECTION.gguf") };
    let mut backend = LlamaBackend::init()?;
    backend.void_logs();
    chat(&backend, [model.as_ref(), direction.as_ref()], std::io::stdin().lock(), &mut std::io::stdout())
}
