//! What the fuzz targets do with their bytes: one function for each kind of file that a stranger may hand us.
//!
//! `tests/regressions.rs` runs the same functions on what was found once, and on the seeds. A function returns whether
//! the bytes were taken for what they should be; it panics where something is wrong with *us*.
#![allow(dead_code)]
#![forbid(unsafe_code)]

use std::path::Path;

use ggsteer::calibration::{Calibration, Imatrix};
use ggsteer::card::Run;
use ggsteer::direction::Direction;
use ggsteer::gguf::{Changes, Gguf, GgufFile, ModelSummary, Value, amended_header, fingerprint};
use ggsteer::optimize::Log;
use ggsteer::optimize::log::{KIND, Subject};
use ggsteer::prompts::PromptSet;
use ggsteer::report::Report;
use ggsteer::report::run::Document;
use ggsteer::runtime::template::{ChatTemplate, Message, Role, Segment};
use ggsteer::select::Checkpoint;

/// A GGUF file: every value, every tensor's bytes, and a header amended.
pub fn gguf(data: &[u8]) -> bool {
    let Ok(gguf) = Gguf::parse(data) else { return false };
    for (key, value) in gguf.metadata() {
        // By its place: a value may be no number, which equals nothing.
        assert!(gguf.get(key).is_some_and(|first| std::ptr::eq(first, value)), "the first of its name");
        assert!(value.describe().len() < 1000);
        let _ = (value.as_u64(), gguf.get_str(key), gguf.get_f32(key), gguf.get_bool(key));
    }
    for tensor in gguf.tensors() {
        let bytes = &data[gguf.data_range(tensor)];
        assert_eq!(bytes.len() as u64, tensor.bytes);
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        let _ = (tensor.elements(), tensor.rows(), tensor.shape());
    }
    // Nothing to change: the very bytes. A key more: all else is as it was.
    let header = &data[gguf.header_bytes()];
    assert_eq!(amended_header(data, &gguf, &Changes::default()).expect("nothing to refuse"), header);
    let set = vec![("ggsteer.fuzz".to_owned(), Value::U8(1))];
    if let Ok(mut file) = amended_header(data, &gguf, &Changes { set, step: 64, ..Changes::default() }) {
        file.extend(&data[header.len()..]);
        let after = Gguf::parse(&file).expect("what we write we read");
        assert_eq!(after.tensors(), gguf.tensors());
        assert_eq!(after.get("ggsteer.fuzz"), Some(&Value::U8(1)));
    }
    in_a_file("model.gguf", data, |path| {
        if let Ok(file) = GgufFile::open(path) {
            assert_eq!(fingerprint(&file).len(), 64);
            let _ = ModelSummary::new(&file);
        }
    });
    true
}

/// A prompt set; the first byte chooses its format.
pub fn prompts(data: &[u8]) -> bool {
    const EXTENSIONS: [&str; 6] = ["txt", "jsonl", "json", "csv", "tsv", "parquet"];
    let Some((first, rest)) = data.split_first() else { return false };
    let name = format!("set.{}", EXTENSIONS[usize::from(*first) % EXTENSIONS.len()]);
    in_a_file(&name, rest, |path| {
        let Ok(set) = PromptSet::load(&path.display().to_string()) else { return false };
        assert!(!set.is_empty() && set.prompts.iter().all(|prompt| !prompt.trim().is_empty()));
        assert!(set.n_duplicates() < set.len());
        true
    })
}

/// A direction file.
pub fn direction(data: &[u8]) -> bool {
    let direction = Direction::read("direction.gguf", data, None);
    let direction = direction.or_else(|_| Direction::read("direction.gguf", data, Some(1)));
    let Ok(direction) = direction else { return false };
    assert!(direction.vector.iter().all(|x| x.is_finite()) && direction.norm() > 0.0);
    in_a_file("direction.gguf", b"", |path| {
        direction.save(path, true).expect("what was loaded can be saved");
        let again = Direction::load(path, None).expect("what we write we read");
        assert_eq!((again.vector, again.block), (direction.vector, direction.block));
    });
    true
}

/// A calibration file of ours, or an imatrix of either format.
pub fn calibration(data: &[u8]) -> bool {
    in_a_file("calibration.gguf", data, |path| {
        let imatrix = Imatrix::load(path);
        if let Ok(imatrix) = &imatrix {
            for (_, values) in imatrix.entries() {
                assert!(values.iter().all(|x| x.is_finite() && *x >= 0.0));
            }
        }
        let Ok(calibration) = Calibration::load(path) else { return imatrix.is_ok() };
        for name in calibration.tensors() {
            let inputs = calibration.inputs(name).expect("it is one of the names");
            for slice in 0..inputs.n_slices() {
                let rows =
                    [inputs.fit(slice), inputs.held_out(slice)].map(|r| r.expect("checked when loaded"));
                assert_eq!(rows[0].len(), inputs.n_fit(slice) * inputs.n_in());
                assert_eq!(rows[1].len(), inputs.n_held_out(slice) * inputs.n_in());
                assert!(rows.iter().flatten().all(|x| x.is_finite()));
            }
        }
        true
    })
}

/// A chat template, rendered on a small conversation.
pub fn template(data: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(data) else { return false };
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>").and_then(|t| t.at(0)) else { return false };
    let template = template.with_flag("enable_thinking", false);
    let messages = [
        Message::new(Role::System, "You bake bread."),
        Message::new(Role::User, " Who </s> are you?\n"),
        Message::new(Role::Assistant, "<think>oats</think> A baker."),
        Message::new(Role::User, "How long must dough rest?"),
    ];
    let mut rendered = false;
    for (messages, start) in [(&messages[..], true), (&messages[1..2], false), (&messages[3..], true)] {
        let Ok(segments) = template.render(messages, start) else { continue };
        rendered = true;
        assert!(segments.iter().all(|segment| !segment.as_str().is_empty()));
        let users = segments.iter().filter(|segment| matches!(segment, Segment::Text(_))).count();
        assert!(users >= messages.len(), "each message is there");
        let _ = template.post_instruction(messages);
    }
    rendered
}

/// A file from which `select` (first byte even) or `optimize` (odd) goes on.
pub fn checkpoint(data: &[u8]) -> bool {
    let Some((first, rest)) = data.split_first() else { return false };
    in_a_file("checkpoint", rest, |path| {
        if first % 2 == 1 {
            return Log::open(path, &subject()).is_ok();
        }
        (0..4).any(|n| Checkpoint::at(path, false).begin(Vec::new(), n).is_ok())
    })
}

/// The search that logs among the seeds are of.
pub fn subject() -> Subject {
    Subject {
        log: KIND.into(),
        model: "m".into(),
        directions: vec!["d".into()],
        harmful: "a".into(),
        harmless: "b".into(),
        markers: "c".into(),
        max_tokens: 8,
        seed: 3,
    }
}

/// What a command printed with `--json`, for a report and for a card.
pub fn report(data: &[u8]) -> bool {
    let card = in_a_file("run.json", data, |path| Run::load(path).is_ok());
    let Ok(document) = Document::read("run.json", data) else { return card };
    let page = Report::new(&[document]).html();
    assert!(page.starts_with("<!"));
    true
}

/// Runs `f` on a file of these bytes.
fn in_a_file<T>(name: &str, data: &[u8], f: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    std::fs::write(&path, data).expect("a temporary file");
    f(&path)
}
