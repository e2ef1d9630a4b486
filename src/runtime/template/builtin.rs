//! Chat formats by name, for models whose file has no template of its own or a broken one.
//!
//! They cover system, user and assistant turns, and nothing of tools.

#![forbid(unsafe_code)]

/// Names and templates, by name.
const TEMPLATES: [(&str, &str); 10] = [
    ("alpaca", ALPACA),
    ("chatml", CHATML),
    ("gemma", GEMMA),
    ("llama2", LLAMA2),
    ("llama3", LLAMA3),
    ("mistral", MISTRAL),
    ("phi3", PHI3),
    ("plain", PLAIN),
    ("vicuna", VICUNA),
    ("zephyr", ZEPHYR),
];

/// The template of that name.
pub(super) fn get(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
}

/// The names there are.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}

const CHATML: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt }}";

const LLAMA3: &str = "\
{{- bos_token }}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}";

/// A system prompt goes into the first user turn, as in those below.
const GEMMA: &str = "\
{{- bos_token }}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = message.content | trim + '\n\n' -%}
{%- else -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}
{{- ns.system + message.content | trim + '<end_of_turn>\n' }}
{%- set ns.system = '' -%}
{%- endif -%}
{%- endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt }}";

const LLAMA2: &str = "\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = '<<SYS>>\n' + message.content | trim + '\n<</SYS>>\n\n' -%}
{%- elif message.role == 'user' -%}
{{ bos_token + '[INST] ' + ns.system + message.content | trim + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- else -%}
{{ ' ' + message.content | trim + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}";

const MISTRAL: &str = "\
{{- bos_token }}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = message.content + '\n\n' -%}
{%- elif message.role == 'user' -%}
{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- else -%}
{{ ' ' + message.content + eos_token }}
{%- endif -%}
{%- endfor -%}";

const PHI3: &str = "\
{{- bos_token }}
{%- for message in messages -%}
{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor -%}
{{ '<|assistant|>\n' if add_generation_prompt }}";

const ZEPHYR: &str = "\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endfor -%}
{{ '<|assistant|>\n' if add_generation_prompt }}";

const VICUNA: &str = "\
{{- bos_token }}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + ' ' }}
{%- elif message.role == 'user' -%}
{{ 'USER: ' + message.content + ' ' }}
{%- else -%}
{{ 'ASSISTANT: ' + message.content + eos_token }}
{%- endif -%}
{%- endfor -%}
{{ 'ASSISTANT:' if add_generation_prompt }}";

const ALPACA: &str = "\
{{- bos_token }}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\n\n' }}
{%- elif message.role == 'user' -%}
{{ '### Instruction:\n' + message.content + '\n\n' }}
{%- else -%}
{{ '### Response:\n' + message.content + eos_token + '\n\n' }}
{%- endif -%}
{%- endfor -%}
{{ '### Response:\n' if add_generation_prompt }}";

/// Base models: the contents and nothing else.
const PLAIN: &str = "\
{{- bos_token }}
{%- for message in messages -%}
{{ message.content }}
{%- endfor -%}";
