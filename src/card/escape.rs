//! Words of others in Markdown, YAML and a shell: they stay words.

/// As a YAML scalar in double quotes, on one line. JSON's strings are such scalars; what YAML does not allow in them raw
/// becomes a blank.
#[must_use]
pub fn yaml(text: &str) -> String {
    serde_json::Value::from(printable(text)).to_string()
}

/// As running text of a Markdown page: nothing in it is markup or HTML, and it stays on its line.
#[must_use]
pub fn markdown(text: &str) -> String {
    let mut out = String::new();
    for c in printable(text).chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '#' | '+' | '!' | '|' | '~' => {
                out.extend(['\\', c]);
            }
            // No address is made a link by itself.
            ':' => out += "&#58;",
            '@' => out += "&#64;",
            c => out.push(c),
        }
    }
    out
}

/// As one word of a POSIX shell.
#[must_use]
pub fn shell(word: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ',' | ':' | '=' | '+');
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        return word.to_owned();
    }
    // A name that begins with a dash would be taken for an option.
    let word = if word.starts_with('-') { format!("./{word}") } else { word.to_owned() };
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A fenced block whose fence is longer than any in it.
#[must_use]
pub fn code_block(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// Without control characters, line breaks of any kind and marks that turn the reading direction.
fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    text.chars().map(|c| if hidden(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(markdown("a|b <script>\n# `x` [y](z)"), r"a\|b &lt;script&gt; \# \`x\` \[y\]\(z\)");
        assert_eq!(markdown("https://a.b"), "https&#58;//a.b");
        assert_eq!(yaml("a\"b\\\n- c: d\u{85}"), r#""a\"b\\ - c: d ""#);
        assert_eq!(shell("a-b_c.gguf"), "a-b_c.gguf");
        assert_eq!(shell("a b's.gguf"), r"'a b'\''s.gguf'");
        assert_eq!(shell("-a"), "'./-a'");
        assert_eq!(shell("$(x)"), "'$(x)'");
        assert_eq!(code_block("sh", "a ```` b"), "`````sh\na ```` b\n`````\n");
        assert_eq!(code_block("sh", "a"), "```sh\na\n```\n");
    }
}
