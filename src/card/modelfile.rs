//! Ollama's `Modelfile`, and command lines for other programs.

use super::template::{go, token};
use super::{Card, Kind, shell};
use crate::gguf::GgufFile;

/// Texts of the tokens that end a text or a turn, as the file names them.
pub fn stops(file: &GgufFile) -> Vec<String> {
    let mut stops: Vec<String> = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let text = token(file, &format!("tokenizer.ggml.{name}_token_id"));
        // A Modelfile has no way to write a quotation mark between quotation marks.
        let writable =
            |text: &String| !text.is_empty() && !text.contains(|c: char| c == '"' || c.is_control());
        if let Some(text) = text.filter(writable)
            && !stops.contains(&text)
        {
            stops.push(text);
        }
    }
    stops
}

/// The whole file.
pub fn write(card: &Card) -> String {
    let mut text = format!("# {}\nFROM ./{}\n", create(card), card.file);
    let eos = card.stops.first().map_or("", String::as_str);
    match card.format.and_then(|format| go(format, eos)).filter(|_| !eos.contains(['"', '{', '}'])) {
        Some(template) => text += &format!("TEMPLATE \"\"\"{template}\"\"\"\n"),
        None if card.has_template => {
            text += "# No TEMPLATE: its chat template is none of the formats known by name. Ollama reads the file's own.\n";
        }
        None => {
            text +=
                "# No TEMPLATE: the file has no chat template. Add the one that the model was trained on.\n";
        }
    }
    for stop in &card.stops {
        text += &format!("PARAMETER stop \"{stop}\"\n");
    }
    text
}

/// A name that Ollama takes.
fn ollama_name(card: &Card) -> String {
    let stem = card.file.strip_suffix(".gguf").unwrap_or(&card.file).to_lowercase();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = stem.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "model".into() } else { name.into() }
}

fn create(card: &Card) -> String {
    format!("ollama create {} -f Modelfile", ollama_name(card))
}

/// See [`Card::commands`].
pub fn commands(card: &Card) -> Vec<(&'static str, String)> {
    let file = shell(&card.file);
    // llama.cpp reads lists and scales in these arguments.
    let listable = !card.file.contains([',', ':', '"']);
    match &card.kind {
        Kind::Model(_) => {
            let mut all = vec![
                ("Talk to it", format!("llama-cli -m {file} -cnv")),
                ("Serve it", format!("llama-server -m {file}")),
                ("Measure its perplexity", format!("llama-perplexity -m {file} -f text.txt")),
            ];
            if card.n_parts == 1 {
                all.push(("Give it to Ollama", create(card)));
                all.push(("Talk to it there", format!("ollama run {}", ollama_name(card))));
            }
            all
        }
        Kind::Lora { .. } if listable => vec![
            ("Talk to the model with it", format!("llama-cli -m model.gguf --lora {file} -cnv")),
            ("With half of it", format!("llama-cli -m model.gguf --lora-scaled {file}:0.5 -cnv")),
            ("Serve the model with it", format!("llama-server -m model.gguf --lora {file}")),
        ],
        Kind::ControlVector { origin, .. } if listable && origin.mode.as_deref() == Some("add") => vec![
            (
                "Talk to the model with it",
                format!("llama-cli -m model.gguf --control-vector-scaled {file}:1 -cnv"),
            ),
            (
                "Away from the behaviour",
                format!("llama-cli -m model.gguf --control-vector-scaled {file}:-1 -cnv"),
            ),
            (
                "Serve the model with it",
                format!("llama-server -m model.gguf --control-vector-scaled {file}:1"),
            ),
        ],
        Kind::Lora { .. } | Kind::ControlVector { .. } => Vec::new(),
    }
}
