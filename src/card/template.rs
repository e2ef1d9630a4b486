//! Chat formats as Ollama writes them, for files whose own template is one of the formats known by name.

use crate::gguf::{Array, GgufFile, Value};
use crate::runtime::template::{ChatTemplate, Message, Role, Segment};

/// Formats by the names of [`ChatTemplate::builtin`], in the template language of Go. The beginning-of-text token is not in
/// them: Ollama's tokenizer writes it. `EOS` stands for the text of the end-of-text token.
const FORMATS: [(&str, &str); 5] = [
    (
        "chatml",
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
    ),
    (
        "llama3",
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}\
         <|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("phi3", "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n"),
    ("zephyr", "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}EOS\n{{ end }}<|assistant|>\n"),
    (
        "vicuna",
        "{{ range .Messages }}{{ if eq .Role \"system\" }}{{ .Content }} {{ else if eq .Role \"user\" }}USER: \
         {{ .Content }} {{ else }}ASSISTANT: {{ .Content }}EOS{{ end }}{{ end }}ASSISTANT:",
    ),
];

/// The format's template for Ollama.
pub fn go(format: &str, eos: &str) -> Option<String> {
    FORMATS.iter().find(|(name, _)| *name == format).map(|(_, source)| source.replace("EOS", eos))
}

/// The text of a token that a key names.
pub fn token(file: &GgufFile, key: &str) -> Option<String> {
    let id = file.get_u32(key).ok()? as usize;
    match file.get("tokenizer.ggml.tokens") {
        Some(Value::Array(Array::String(tokens))) => tokens.get(id).cloned(),
        _ => None,
    }
}

/// The known format that a file's own template writes, told by what it writes.
pub fn format_of(file: &GgufFile) -> Option<&'static str> {
    let [bos, eos] = ["bos", "eos"].map(|t| token(file, &format!("tokenizer.ggml.{t}_token_id")));
    let (bos, eos) = (bos.unwrap_or_default(), eos.unwrap_or_default());
    let written = conversations_in(file.get_str("tokenizer.chat_template").ok()?, &bos, &eos)?;
    // Some templates leave the beginning-of-text token to the tokenizer.
    let strip = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| text.strip_prefix(bos.as_str()).unwrap_or(text).to_owned()).collect()
    };
    let written = strip(&written);
    let same = |name: &str| {
        let source = ChatTemplate::builtin(name)?;
        conversations_in(source, &bos, &eos).map(|known| strip(&known) == written)
    };
    FORMATS.iter().map(|(name, _)| *name).find(|name| same(name) == Some(true))
}

/// Conversations that tell the formats apart.
pub fn conversations() -> [Vec<Message>; 3] {
    let [system, user, answer] =
        [(Role::System, "Be brief."), (Role::User, "Who are you?"), (Role::Assistant, "A lamp.")]
            .map(|(role, content)| Message::new(role, content));
    let again = Message::new(Role::User, "Since when?");
    [vec![user.clone()], vec![system.clone(), user.clone()], vec![system, user, answer, again]]
}

/// What a template makes of them.
fn conversations_in(source: &str, bos: &str, eos: &str) -> Option<Vec<String>> {
    let template = ChatTemplate::new(source, bos, eos).ok()?;
    let render = |messages: &Vec<Message>| {
        let segments = template.render(messages, true).ok()?;
        Some(segments.iter().map(Segment::as_str).collect())
    };
    conversations().iter().map(render).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Go's own language, in a reader that is not ours, writes what the Jinja templates write.
    #[test]
    fn the_formats_for_ollama_write_the_same() {
        for (name, _) in FORMATS {
            let known = conversations_in(ChatTemplate::builtin(name).unwrap(), "", "</s>").unwrap();
            for (messages, known) in conversations().iter().zip(known) {
                let messages: Vec<gtmpl::Value> = (messages.iter())
                    .map(|message| {
                        HashMap::from([
                            ("Role".to_owned(), message.role.as_str().to_owned()),
                            ("Content".to_owned(), message.content.clone()),
                        ])
                        .into()
                    })
                    .collect();
                let context = HashMap::from([("Messages".to_owned(), gtmpl::Value::from(messages))]);
                let written = gtmpl::template(&go(name, "</s>").unwrap(), context).unwrap();
                assert_eq!(written, known, "{name}");
            }
        }
    }
}
