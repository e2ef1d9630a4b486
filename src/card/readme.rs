//! The model card.

use super::run::{Evaluated, Run, SetFigures};
use super::{Card, Kind, code_block, markdown, shell, yaml};
use crate::evaluate::interval::{Mean, Rate};
use crate::prompts::split::UsedPair;
use crate::rewrite::{Record, Tied};

/// The whole page.
pub fn write(card: &Card) -> String {
    let mut page = front_matter(card);
    page += &format!("\n# {}\n\n{}\n", markdown(&title(card)), introduction(card));
    page += &format!("\n## What was done\n\n{}", done(card));
    page += &format!("\n## What was measured\n\n{}", measured(card));
    page += &format!("\n## How to run it\n\n{}", running(card));
    page += &format!("\n## How to repeat it\n\n{}", repeating(card));
    page + "\n" + LIMITS
}

const LIMITS: &str = "\
## Limits and responsible use

- Erasing a direction takes away the model's habit of declining. It adds no knowledge and no judgement: whoever runs the model
  answers for what it says, and should put rules of their own in front of it before others use it.
- The figures above are of one list of prompts, in one language. On others the model may still refuse, or have lost something.
- A refusal is counted by phrases. A low rate does not say that the answers are right, useful or harmless.
- The edit is not undone by another system prompt. The file that it was made from, or a LoRA adapter in its place, is.
- The licence of the base model, and what it says of use, goes on to apply.
";

fn front_matter(card: &Card) -> String {
    let mut yaml_text = String::from("---\n");
    let mut key = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            yaml_text += &format!("{name}: {}\n", yaml(value));
        }
    };
    let [license, name, link] = &card.license;
    key("base_model", &card.base_model);
    key("license", license);
    key("license_name", name);
    key("license_link", link);
    let what = match &card.kind {
        Kind::Model(_) => "text-generation",
        Kind::Lora { .. } => "lora",
        Kind::ControlVector { .. } => "control-vector",
    };
    if matches!(card.kind, Kind::Model(_)) {
        key("pipeline_tag", &Some("text-generation".into()));
    }
    yaml_text += "tags:\n";
    for tag in ["gguf", "llama.cpp", "ggsteer", "abliterated", what, &card.architecture] {
        if !tag.is_empty() && (tag != "text-generation") {
            yaml_text += &format!("- {}\n", yaml(tag));
        }
    }
    yaml_text + "---\n"
}

fn title(card: &Card) -> String {
    let model = card.name.as_deref().unwrap_or(&card.file);
    match &card.kind {
        Kind::Model(_) => format!("{model}, with a direction erased"),
        Kind::Lora { .. } => format!("An adapter for {model} that erases a direction"),
        Kind::ControlVector { .. } => format!("A direction of {model}"),
    }
}

fn introduction(card: &Card) -> String {
    let file = markdown(&card.file);
    let base = match &card.base_model {
        Some(name) => format!("[{name}](https://huggingface.co/{name})"),
        None => "a model whose file does not say where it is from".into(),
    };
    match &card.kind {
        Kind::Model(model) => format!(
            "{file} is {base} ({}, {} blocks × {}, {:.2} bits a weight) with a direction of the residual stream taken out of the \
             weights by [ggsteer](https://crates.io/crates/ggsteer): the model can no longer represent what the direction stands \
             for, and what depended on it, such as refusing, goes ([Arditi et al. 2024](https://arxiv.org/abs/2406.11717)).",
            markdown(&card.architecture),
            model.n_block,
            model.n_embd,
            model.bits_per_weight(),
        ),
        Kind::Lora { .. } => format!(
            "{file} is a LoRA adapter for {base} ({}), made by [ggsteer](https://crates.io/crates/ggsteer). While it is loaded, \
             the model writes nothing along a direction of its residual stream, and what depended on it, such as refusing, goes \
             ([Arditi et al. 2024](https://arxiv.org/abs/2406.11717)). The model's own file stays as it is.",
            markdown(&card.architecture),
        ),
        Kind::ControlVector { block, .. } => format!(
            "{file} is a direction of the residual stream of {base} ({}), at the output of block {block} (counted from 0), \
             measured by [ggsteer](https://crates.io/crates/ggsteer).",
            markdown(&card.architecture),
        ),
    }
}

fn done(card: &Card) -> String {
    let mut items = Vec::new();
    if let Some(record) = &card.record {
        items = of_record(record);
    }
    match &card.kind {
        Kind::Model(model) => {
            let types: Vec<String> =
                model.types.iter().map(|t| format!("{} {}", t.tensors, markdown(&t.r#type))).collect();
            items.push(format!("Tensors of the file by type: {}.", types.join(", ")));
        }
        Kind::Lora { left_out } if !left_out.is_empty() => {
            let names: Vec<String> = left_out.iter().map(|name| markdown(name)).collect();
            items.push(format!(
                "**Not in the adapter**, so that what they write along the direction stays: {}.",
                names.join(", ")
            ));
        }
        Kind::Lora { .. } => {
            items.push("Every tensor that writes the residual stream is in the adapter.".into());
        }
        Kind::ControlVector { origin, .. } => {
            if let Some(position) = origin.position {
                items.push(format!("Measured at position {position}, counted from the end of the prompt."));
            }
            if let (Some(a), Some(b)) = (origin.n_harmful, origin.n_harmless) {
                items.push(format!("The difference of the means over {a} prompts that show the behaviour and {b} that do not."));
            }
            if let Some(scores) = &origin.scores {
                items.push(format!(
                    "Chosen with bypass {:.3}, induce {:.3} and KL {:.4}.",
                    scores.bypass, scores.induce, scores.kl
                ));
            }
            items.push(if origin.mode.as_deref() == Some("add") {
                "To be *added*: a positive scale pushes toward the behaviour, a negative one away from it.".into()
            } else {
                "To be *taken out* of the stream. Stock llama.cpp only adds: loaded with --control-vector this file pushes \
                 **toward** the behaviour."
                    .into()
            });
        }
    }
    list(&items)
}

/// What the rewriter left in the file.
fn of_record(record: &Record) -> Vec<String> {
    let mut items: Vec<String> = (record.directions.iter())
        .map(|d| {
            let position = d.position.map_or(String::new(), |p| format!(", position {p}"));
            format!(
                "Direction of the output of block {} (counted from 0){position}, SHA-256 {}.",
                d.block,
                markdown(&d.sha256)
            )
        })
        .collect();
    if let Some(tensors) = &record.tensors {
        items.push(format!("{} tensors edited: {}.", tensors.len(), by_block(tensors)));
    }
    if let Some(strengths) = &record.strengths {
        let bounds =
            strengths.iter().fold([f32::MAX, f32::MIN], |[low, high], s| [low.min(*s), high.max(*s)]);
        items.push(format!(
            "Not all of the direction was taken out: strengths from {} to {}, by tensor.",
            bounds[0], bounds[1]
        ));
    }
    if let Some(types) = &record.types {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for ty in types {
            match counts.iter_mut().find(|(name, _)| name == ty) {
                Some((_, n)) => *n += 1,
                None => counts.push((ty, 1)),
            }
        }
        let counts: Vec<String> = counts.iter().map(|(ty, n)| format!("{n} {}", markdown(ty))).collect();
        items.push(format!("They are written as {}.", counts.join(", ")));
    }
    if let Some(rounding) = record.rounding.as_deref().filter(|way| *way != "exact") {
        items.push(format!("Rounding of quantized tensors: {}.", markdown(rounding)));
    }
    if record.precise.is_some() {
        items.push("The edit started from weights of a higher precision.".into());
    }
    if record.preserve_norm {
        items.push("Columns of matrices and rows of embeddings got back the lengths they had.".into());
    }
    if record.partial {
        items.push("**Partial**: not every tensor that writes the residual stream could be told.".into());
    }
    match record.tied {
        Some(Tied::Edit) => items.push("The token embedding is the output head too, and was edited.".into()),
        Some(Tied::Untie) => {
            items.push(
                "The output head was the token embedding; it is a tensor of its own now, as it was.".into(),
            );
        }
        Some(Tied::Skip) => {
            items.push("The token embedding is the output head too, and was left as it is.".into());
        }
        None => {}
    }
    for addition in &record.additions {
        items.push(format!(
            "A direction (SHA-256 {}) was added in block {}, times {}, by {}.",
            markdown(&addition.sha256),
            addition.block,
            addition.scale,
            markdown(&addition.tensor)
        ));
    }
    items
}

/// Tensors by their name without the block, with the blocks.
fn by_block(tensors: &[String]) -> String {
    let mut kinds: Vec<(&str, Vec<usize>)> = Vec::new();
    for tensor in tensors {
        let split = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let (base, block) = match split.and_then(|(block, base)| Some((base, block.parse::<usize>().ok()?))) {
            Some((base, block)) => (base, Some(block)),
            None => (tensor.as_str(), None),
        };
        match kinds.iter_mut().find(|(name, _)| *name == base) {
            Some((_, blocks)) => blocks.extend(block),
            None => kinds.push((base, block.into_iter().collect())),
        }
    }
    let kind = |(base, blocks): &(&str, Vec<usize>)| {
        let base = markdown(base.strip_suffix(".weight").unwrap_or(base));
        match (blocks.first(), blocks.last()) {
            (Some(first), Some(last)) if last - first + 1 == blocks.len() => {
                format!("{base} of blocks {first} to {last}")
            }
            (Some(_), _) => {
                let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
                format!("{base} of blocks {}", blocks.join(", "))
            }
            _ => base,
        }
    };
    kinds.iter().map(kind).collect::<Vec<_>>().join("; ")
}

fn measured(card: &Card) -> String {
    let mut rows = String::new();
    let mut items = Vec::new();
    for run in &card.runs {
        for (who, sets) in evaluations(run) {
            rows += &row(&who, sets);
        }
        for (name, value) in [
            ("largest leak of the weights", run.max_leak),
            ("largest leak on held-out inputs", run.max_data_leak),
            ("largest edit error on held-out inputs", run.max_edit_error),
        ] {
            if let Some(value) = value {
                items.push(format!("{name}: {value:.4}"));
            }
        }
        if let Some(found) = &run.perplexity {
            items.push(format!(
                "perplexity on {}: {:.3} ± {:.3}, of the base {:.3} ± {:.3}",
                markdown(&found.text),
                found.this.perplexity,
                found.this.standard_error,
                found.base.perplexity,
                found.base.standard_error
            ));
        }
        if let Some(parts) = &run.prompts {
            let n = |both: &UsedPair| format!("{} + {}", both.harmful.n, both.harmless.n);
            items.push(format!(
                "prompts: measured on {}, chosen by {}, evaluated on {}",
                n(&parts.train),
                n(&parts.validation),
                n(&parts.test)
            ));
        }
    }
    let mut text = String::new();
    if !rows.is_empty() {
        text += "| | prompts | refused | 95 % interval | broken | KL of the first token |\n|---|---|--:|--:|--:|--:|\n";
        text += &rows;
        text += "\nHarmful prompts are those that show the behaviour. Broken answers are empty, looping or garbled. KL is \
                 KL(base ‖ this) in nats, with its 95 % interval.\n";
    }
    if !items.is_empty() {
        text += &format!("{}{}", if rows.is_empty() { "" } else { "\n" }, list(&items));
    }
    if items.iter().any(|item| item.contains("leak")) {
        text += "\nLeak is what is left of the direction in what was written, edit error how far its output is from the exact \
                 edit: 0 is exact, 1 is no edit.\n";
    }
    if text.is_empty() {
        text += "Nothing that was given to this card.\n";
    }
    text
}

/// Who was evaluated in a run, and how it went.
fn evaluations<'r>(run: &'r Run) -> Vec<(String, [&'r SetFigures; 2])> {
    let model = markdown(run.model.as_deref().map_or("the model", base_name));
    let mut all = Vec::new();
    let abliterated = [
        (format!("{model}, as it was"), &run.before),
        (format!("{model}, direction erased while it runs"), &run.ablated),
        (markdown(run.output.as_deref().map_or("this file", base_name)), &run.after),
    ];
    let both = |found: &'r Evaluated| [&found.harmful, &found.harmless];
    all.extend(abliterated.into_iter().filter_map(|(who, found)| Some((who, both(found.as_ref()?)))));
    if let (Some(harmful), Some(harmless)) = (&run.harmful, &run.harmless) {
        let how = match (&run.ablate[..], &run.add) {
            ([], None) => "",
            (_, Some(_)) => ", direction added while it runs",
            _ => ", direction erased while it runs",
        };
        let base = run.base.as_deref().filter(|base| Some(*base) != run.model.as_deref());
        let base = base.map_or(String::new(), |base| format!(" (base: {})", markdown(base_name(base))));
        all.push((format!("{model}{how}{base}"), [harmful, harmless]));
    }
    all
}

fn base_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn row(who: &str, sets: [&SetFigures; 2]) -> String {
    let percent = |rate: &Rate| format!("{:.1} %", 100.0 * rate.rate);
    let line = |(name, set): (&str, &SetFigures)| {
        let Mean { mean, low, high, .. } = set.kl_first;
        format!(
            "| {who} | {} {name} | {} | {:.1}–{:.1} | {} | {mean:.4} [{low:.4}, {high:.4}] |\n",
            set.refused.n,
            percent(&set.refused),
            100.0 * set.refused.low,
            100.0 * set.refused.high,
            percent(&set.broken),
        )
    };
    ["harmful", "harmless"].into_iter().zip(sets).map(line).collect()
}

fn running(card: &Card) -> String {
    let commands = card.commands();
    if commands.is_empty() {
        return "llama.cpp's own programs cannot use this file as it is meant; `ggsteer generate` can, and `ggsteer export` \
                writes one that they can use.\n"
            .into();
    }
    let lines: Vec<String> = commands.iter().map(|(what, line)| format!("# {what}\n{line}")).collect();
    let mut text = code_block("sh", &lines.join("\n\n"));
    match card.kind {
        Kind::Model(_) if card.n_parts > 1 => {
            text += "\nllama.cpp finds the other parts by itself. Ollama wants one file: `llama-gguf-split --merge` makes it.\n";
        }
        Kind::Model(_) => text += "\nThe Modelfile and the model lie in the same folder.\n",
        Kind::Lora { .. } | Kind::ControlVector { .. } => {
            text += "\nmodel.gguf stands for the model it was made for.\n";
        }
    }
    text
}

fn repeating(card: &Card) -> String {
    let Some(record) = &card.record else {
        return "The direction is measured by `ggsteer extract` and chosen by `ggsteer select`.\n".into();
    };
    let file = shell(&card.file);
    let commands = match card.kind {
        Kind::Lora { .. } => format!("ggsteer export lora model.gguf --direction direction.gguf -o {file}"),
        _ => format!(
            "ggsteer orthogonalize model.gguf --direction direction.gguf -o {file}\n\
             ggsteer verify model.gguf {file} --direction direction.gguf"
        ),
    };
    let mut items = vec![
        format!("ggsteer {}", markdown(&record.version)),
        format!("fingerprint of model.gguf (`ggsteer inspect`): {}", markdown(&record.source)),
    ];
    if let Some(precise) = &record.precise {
        items.push(format!("fingerprint of the file given as --source: {}", markdown(precise)));
    }
    for parts in card.runs.iter().filter_map(|run| run.prompts.as_ref()) {
        for (name, both) in
            [("measured on", &parts.train), ("chosen by", &parts.validation), ("evaluated on", &parts.test)]
        {
            items.push(format!(
                "SHA-256 of the prompts {name}: harmful {}, harmless {}",
                markdown(&both.harmful.sha256),
                markdown(&both.harmless.sha256)
            ));
        }
    }
    format!(
        "With the options that \"What was done\" names, and the prompts that were used:\n\n{}\n{}",
        code_block("sh", &commands),
        list(&items)
    )
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("- {item}\n")).collect()
}
