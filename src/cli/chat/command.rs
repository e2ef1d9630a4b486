//! What a line means: words for the model, or a command.

use std::path::PathBuf;

use ggsteer::near::nearest;

use super::meter::Shown;

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Say this to the model.
    Say(String),
    /// Switch the ablation.
    Ablate(bool),
    /// Add this much; 0 for nothing.
    Add(f32),
    /// Answer with and without steering: this, or the last turn.
    Compare(Option<String>),
    /// Answer again.
    Regen,
    /// Write the conversation.
    Save {
        /// Where to.
        path: PathBuf,
        /// Over what is there.
        force: bool,
    },
    /// Forget the conversation.
    Clear,
    /// Set the system prompt, or show it.
    System(Option<System>),
    /// Set the meter.
    Meter(Shown),
    /// List the commands.
    Help,
    /// Leave.
    Quit,
}

/// The system prompt wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum System {
    /// None.
    Off,
    /// This one.
    Text(String),
}

/// The names, what follows them, and what they do.
const COMMANDS: [(&str, &str, &str); 12] = [
    ("/ablate", "on|off", "erase the direction, or do not"),
    ("/add", "C|off", "add C times the direction at its block, or nothing"),
    ("/compare", "[TEXT]", "answer TEXT, or the last turn again, with and without steering, side by side"),
    ("/regen", "", "answer the last turn again, under the steering of now"),
    ("/meter", "on|off|colour", "show what the direction reads at every token; colour tints the text by it"),
    ("/system", "[TEXT|off]", "set the system prompt, drop it, or show it"),
    ("/clear", "", "forget what was said"),
    ("/reset", "", "the same"),
    ("/save", "[--force] FILE", "write the conversation: .md to be read, .jsonl an object a turn"),
    ("/help", "", "this list"),
    ("/quit", "", "leave, as Ctrl-D does"),
    ("/exit", "", "the same"),
];

/// The names of all commands.
pub fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, ..)| *name)
}

/// The list that `/help` shows.
pub fn help() -> String {
    let mut text = String::new();
    for (name, operands, words) in COMMANDS {
        text += &format!("{:<26} {words}\n", format!("{name} {operands}"));
    }
    text + "A line that ends with \\ goes on in the next. // at its beginning stands for a / that is none of a command.\n\
            Ctrl-C stops an answer; at the prompt, twice, it leaves."
}

/// Whether a line goes on in the next: it ends with an odd number of backslashes.
pub fn goes_on(line: &str) -> bool {
    line.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1
}

/// A line as it is meant: with line feeds in place of backslashes at ends of lines.
pub fn joined(input: &str) -> String {
    let lines: Vec<&str> = input.split('\n').collect();
    let last = lines.len() - 1;
    let line = |(i, line): (usize, &&str)| match line.strip_suffix('\\') {
        Some(cut) if i < last && goes_on(line) => cut.to_owned(),
        _ => (*line).to_owned(),
    };
    lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

/// What a line means; `None` for a blank one.
///
/// # Errors
/// Words for the user: no such command, or one used in another way than it can be.
pub fn parse(input: &str) -> Result<Option<Command>, String> {
    let text = joined(input);
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with("//") {
        return Ok(Some(Command::Say(text[1..].to_owned())));
    }
    if !text.starts_with('/') {
        return Ok(Some(Command::Say(text.to_owned())));
    }
    let (name, operand) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let operand = operand.trim();
    let usage = || {
        let (_, operands, _) = COMMANDS.iter().find(|(n, ..)| *n == name).unwrap_or(&COMMANDS[0]);
        format!(
            "{name}: expected {}, found {operand:?}",
            if operands.is_empty() { "nothing" } else { operands }
        )
    };
    let switch = || match operand {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(usage()),
    };
    let alone = |command| if operand.is_empty() { Ok(command) } else { Err(usage()) };
    let text = || (!operand.is_empty()).then(|| operand.to_owned());
    let command = match name {
        "/ablate" => Command::Ablate(switch()?),
        "/add" if operand == "off" => Command::Add(0.0),
        "/add" => Command::Add(operand.parse().ok().filter(|c: &f32| c.is_finite()).ok_or_else(usage)?),
        "/compare" => Command::Compare(text()),
        "/regen" => alone(Command::Regen)?,
        "/meter" => Command::Meter(match operand {
            "on" => Shown::Line,
            "off" => Shown::Nothing,
            "colour" | "color" => Shown::Colour,
            _ => return Err(usage()),
        }),
        "/system" if operand == "off" => Command::System(Some(System::Off)),
        "/system" => Command::System(text().map(System::Text)),
        "/clear" | "/reset" => alone(Command::Clear)?,
        "/save" => {
            let forced = operand.strip_prefix("--force").filter(|rest| rest.starts_with(char::is_whitespace));
            let path = forced.unwrap_or(operand).trim();
            if path.is_empty() || path == "--force" {
                return Err(usage());
            }
            Command::Save { path: path.into(), force: forced.is_some() }
        }
        "/help" => alone(Command::Help)?,
        "/quit" | "/exit" => alone(Command::Quit)?,
        _ => return Err(unknown(name)),
    };
    Ok(Some(command))
}

fn unknown(name: &str) -> String {
    match nearest(&name[1..], names().map(|known| &known[1..])) {
        Some(known) => format!("unknown command {name:?}: did you mean /{known}?"),
        None => format!("unknown command {name:?}: /help lists them; begin with // to say it to the model"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(line: &str) -> Command {
        parse(line).unwrap().unwrap()
    }

    #[test]
    fn words_are_for_the_model_and_commands_are_not() {
        assert_eq!(says(" How do I knit? "), Command::Say("How do I knit?".into()));
        assert_eq!(says("//etc is a folder"), Command::Say("/etc is a folder".into()));
        assert_eq!(parse("  \n "), Ok(None));
        assert_eq!(says("/ablate off"), Command::Ablate(false));
        assert_eq!(says("/add -0.5"), Command::Add(-0.5));
        assert_eq!(says("/add off"), Command::Add(0.0));
        assert_eq!(says("/compare"), Command::Compare(None));
        assert_eq!(says("/compare Why?  Say."), Command::Compare(Some("Why?  Say.".into())));
        assert_eq!(says("/meter color"), Command::Meter(Shown::Colour));
        assert_eq!(says("/system"), Command::System(None));
        assert_eq!(says("/system off"), Command::System(Some(System::Off)));
        assert_eq!(says("/system Be\\\nbrief"), Command::System(Some(System::Text("Be\nbrief".into()))));
        assert_eq!(says("/save a b.md"), Command::Save { path: "a b.md".into(), force: false });
        assert_eq!(says("/save --force b.md"), Command::Save { path: "b.md".into(), force: true });
        assert_eq!([says("/reset"), says("/exit")], [Command::Clear, Command::Quit]);
    }

    #[test]
    fn a_wrong_command_says_what_is_right() {
        let error = |line: &str| parse(line).unwrap_err();
        assert_eq!(error("/ablaet on"), "unknown command \"/ablaet\": did you mean /ablate?");
        assert!(error("/etc/passwd is a file").contains("begin with //"));
        assert_eq!(error("/ablate"), "/ablate: expected on|off, found \"\"");
        assert_eq!(error("/add nan"), "/add: expected C|off, found \"nan\"");
        assert_eq!(error("/regen now"), "/regen: expected nothing, found \"now\"");
        assert_eq!(error("/save --force"), "/save: expected [--force] FILE, found \"--force\"");
        assert!(error("/meter loud").contains("on|off|colour"));
    }

    #[test]
    fn a_backslash_carries_a_line_over() {
        assert!(goes_on("a\\") && !goes_on("a\\\\") && !goes_on("a"));
        assert_eq!(joined("a\\\nb\\\\\nc\\"), "a\nb\\\\\nc\\");
        assert_eq!(says("pasted\nlines"), Command::Say("pasted\nlines".into()));
    }

    #[test]
    fn every_command_is_understood_and_listed() {
        let help = help();
        for (name, operands, _) in COMMANDS {
            let first =
                operands.split('|').next().unwrap().replace('C', "1").replace("[--force] FILE", "a.md");
            let line = format!("{name} {}", if first.starts_with('[') { "" } else { &first });
            assert!(parse(&line).unwrap().is_some_and(|c| !matches!(c, Command::Say(_))), "{line}");
            assert!(help.contains(name));
        }
    }
}
