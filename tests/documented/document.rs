//! The command lines and quotes of a Markdown page.

use std::ops::Range;

/// A page.
pub struct Document<'a> {
    pub lines: Vec<&'a str>,
    pub groups: Vec<Group>,
    /// Text blocks (their lines) that follow no commands.
    pub loose: Vec<Range<usize>>,
}

/// Commands and what they are said to print.
#[derive(Default)]
pub struct Group {
    /// The 1-based line of the first.
    pub line: usize,
    pub commands: Vec<String>,
    /// The quoted lines, counted from 0.
    pub quote: Option<Range<usize>>,
    /// Whether stderr is quoted too, as on a terminal.
    pub merged: bool,
    /// Whether the quote shows a failure.
    pub fails: bool,
}

impl<'a> Document<'a> {
    pub fn parse(text: &'a str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let mut document = Self { lines, groups: Vec::new(), loose: Vec::new() };
        // The line after the last sh block.
        let mut after_commands = None;
        let mut at = 0;
        while at < document.lines.len() {
            let line = document.lines[at];
            let Some(language) = line.strip_prefix("```") else {
                if !line.is_empty() {
                    after_commands = None;
                }
                at += 1;
                continue;
            };
            let length = document.lines[at + 1..].iter().position(|line| *line == "```");
            let block = at + 1..at + 1 + length.expect("every fence is closed");
            at = block.end + 1;
            match language {
                "sh" => {
                    document.commands(block);
                    after_commands = Some(());
                    continue;
                }
                "console" => document.console(block),
                "text" if after_commands.is_some() => document.quote(block),
                "text" => document.loose.push(block),
                _ => {}
            }
            after_commands = None;
        }
        document
    }

    fn commands(&mut self, block: Range<usize>) {
        let lines: Vec<&str> = self.lines[block.clone()].to_vec();
        let commands = joined(&lines).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        self.groups.push(Group { line: block.start + 1, commands, ..Group::default() });
    }

    fn quote(&mut self, block: Range<usize>) {
        let fails = self.lines[block.clone()].iter().any(|line| line.starts_with("error: "));
        let group = self.groups.last_mut().expect("a quote follows its commands");
        (group.quote, group.fails) = (Some(block), fails);
    }

    fn console(&mut self, block: Range<usize>) {
        let mut at = block.start;
        while at < block.end {
            let first = at;
            let mut command =
                vec![self.lines[at].strip_prefix("$ ").expect("a console block begins with $ ")];
            while command.last().is_some_and(|line| line.ends_with('\\')) {
                at += 1;
                command.push(self.lines[at]);
            }
            at += 1;
            let quote = at..(at..block.end).find(|at| self.lines[*at].starts_with("$ ")).unwrap_or(block.end);
            at = quote.end;
            let commands = joined(&command).collect();
            self.groups.push(Group { line: first + 1, commands, merged: true, ..Group::default() });
            self.quote(quote);
        }
    }

    /// The text with other lines in these places, which are in order.
    pub fn replace(&self, replaced: Vec<(Range<usize>, Vec<String>)>) -> String {
        let mut text: Vec<String> = Vec::new();
        let mut at = 0;
        for (range, lines) in replaced {
            text.extend(self.lines[at..range.start].iter().map(ToString::to_string));
            text.extend(lines);
            at = range.end;
        }
        text.extend(self.lines[at..].iter().map(ToString::to_string));
        text.join("\n") + "\n"
    }
}

/// Command lines, those that a backslash continues made one.
fn joined(lines: &[&str]) -> impl Iterator<Item = String> {
    let mut all = vec![String::new()];
    for line in lines {
        let last = all.last_mut().expect("never empty");
        if let Some(begun) = line.strip_suffix('\\') {
            *last += begun;
        } else {
            *last += line;
            all.push(String::new());
        }
    }
    all.into_iter().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

#[test]
fn commands_and_quotes_are_told_apart() {
    let text = "# A\n\n```sh\na \\\n  b   # c\n# no command\n\nd\n```\n\n```text\nprinted\n```\n\n```text\nloose\n```\n\n\
                ```console\n$ e\nsaid\n$ f \\\ng\nerror: h\n```\n";
    let document = Document::parse(text);
    let commands: Vec<_> = document.groups.iter().map(|g| g.commands.join(" | ")).collect();
    assert_eq!(commands, ["a   b   # c | d", "e", "f g"]);
    let quotes: Vec<_> =
        document.groups.iter().map(|g| document.lines[g.quote.clone().unwrap()].join("|")).collect();
    assert_eq!(quotes, ["printed", "said", "error: h"]);
    assert_eq!(
        document.groups.iter().map(|g| (g.merged, g.fails)).collect::<Vec<_>>(),
        [(false, false), (true, false), (true, true)]
    );
    assert_eq!(document.loose.len(), 1);
    let range = document.groups[1].quote.clone().unwrap();
    assert_eq!(document.replace(vec![(range, vec!["x".into(), "y".into()])]), text.replace("said", "x\ny"));
}
