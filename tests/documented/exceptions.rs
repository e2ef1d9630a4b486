//! What the documents show and this test does not run, each with the reason.

use std::fs;

use regex::Regex;

/// What is done in place of running a line as it stands.
pub enum Way {
    /// It is run with this in place of that.
    With(&'static str, &'static str),
    /// Nothing.
    Left,
}

/// Command lines (a regular expression for the whole line), what is done instead, why.
const COMMANDS: &[(&str, Way, &str)] = &[
    ("git clone .*", Way::Left, "the project is here already"),
    ("make demo", Way::With("make", "ggsteer"), "make builds the program first, as for this test"),
    (
        "make .*",
        Way::Left,
        "builds llama.cpp, or runs this very test; that there is such a target is checked",
    ),
    (
        r"(\w+=\S+ )?cargo .*",
        Way::Left,
        "builds llama.cpp, or runs a bench for minutes; that there is such a bench is checked",
    ),
    (r"sh scripts/patched\.sh.*", Way::Left, "builds llama.cpp for minutes: `tests/patched.rs` runs it"),
    (
        r"sh scripts/(reliability|unsafe|deny|scale|sanitize|fuzz)\.sh.*",
        Way::Left,
        "takes an hour, or another compiler",
    ),
    ("(sudo )?apt-get install .*", Way::Left, "changes the machine"),
    (
        "ggsteer abliterate model.gguf -o out.gguf",
        Way::Left,
        "of the default sets the sample refuses too few; with sets of its own the line below is run",
    ),
    ("ggsteer chat [^<]*", Way::Left, "a conversation at a terminal: `tests/chat.rs` holds it"),
    ("ggsteer doctor .*", Way::Left, "what it prints is of the machine: `tests/feel.rs` runs it"),
    ("ggsteer worker .*", Way::Left, "serves until it is stopped: `tests/rpc.rs` runs it"),
    ("(ggsteer serve|curl) .*", Way::Left, "serves until it is stopped: `tests/serve.rs` runs and asks it"),
    (r"ggsteer .* --rpc 192\.168\..*", Way::Left, "other machines: `tests/rpc.rs` has one on this machine"),
    (
        "ggsteer abliterate model.gguf -o out.gguf --report report.html",
        Way::With("model.gguf", "model.gguf --harmful harmful.txt --harmless harmless.txt"),
        "of the default sets the sample refuses too few",
    ),
    (
        "ggsteer compare lorekeeper-7m-f16.gguf .*",
        Way::Left,
        "six files take minutes: `docs/commands.md` compares two",
    ),
    (
        "ggsteer compare model-f16.gguf model-q8_0.gguf .*",
        Way::Left,
        "three files take a minute: `tests/report.rs` reports on two",
    ),
    (
        r"ggsteer generate .* --ablate direction\.2\.gguf",
        Way::With(" --ablate direction.2.gguf", ""),
        "the sample has one direction alone",
    ),
    ("ggsteer optimize .*", Way::With("--trials 60", "--trials 3"), "60 trials take minutes"),
    (
        r"(cd examples/plugin && make|\./generate|python3 examples/plugin/).*",
        Way::Left,
        "needs a compiler, or a llama.cpp for Python: `tests/plugin/examples.rs` builds and runs them",
    ),
    ("(llama-|ollama ).*", Way::Left, "another program, which this machine may not have"),
];

/// Text blocks that quote no command of this test: the document, how the first line begins, why.
const NO_QUOTES: &[(&str, &str, &str)] = &[
    ("README.md", "random llama, 12 blocks", "`cargo bench --bench hook`, which takes minutes"),
    ("README.md", "the direction of each file", "six files take minutes: `docs/commands.md` compares two"),
    ("docs/prompt-sets.md", "PATH[:COLUMN]", "a grammar"),
    ("docs/selection.md", "seed  ", "`cargo bench --bench selection`, which takes minutes"),
    ("docs/selection.md", "                tokens", "`cargo bench --bench selection`, which takes minutes"),
];

/// What to do about a line that is not simply run.
pub fn find(command: &str) -> Option<&'static Way> {
    let matches = |pattern: &str| Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(command);
    COMMANDS.iter().find(|(pattern, ..)| matches(pattern)).map(|(_, way, _)| way)
}

/// Whether a text block is known to quote nothing that is run here.
pub fn is_no_quote(document: &str, first: &str) -> bool {
    NO_QUOTES.iter().any(|(known, begin, _)| *known == document && first.starts_with(begin))
}

/// That make has the target, and cargo the bench or example, of a line that is not run.
pub fn check_target(command: &str) -> Result<(), String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let found = match words[..] {
        ["make", target, ..] => {
            let makefile = fs::read_to_string(super::root().join("Makefile")).unwrap();
            makefile.lines().any(|line| line.starts_with(&format!("{target}:")))
        }
        ["cargo", "bench", "--bench", name, ..] => super::root().join(format!("benches/{name}.rs")).is_file(),
        ["cargo", "run", "--release", "--example", name, ..] => {
            super::root().join(format!("examples/{name}.rs")).is_file()
        }
        _ => true,
    };
    if found { Ok(()) } else { Err(format!("there is no such target: {command}")) }
}
