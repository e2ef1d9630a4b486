//! What templates written for Python's Jinja expect beyond Jinja itself, as the transformers library gives
//! it.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, ValueOrKwargs};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, Value, context, escape_formatter, functions,
};

/// The one template of the environment.
const NAME: &str = "chat_template";
/// About this many steps, and 64 times as many bytes, before a template is stopped. Long conversations take
/// some ten thousand.
const FUEL: u64 = 2_000_000;
/// Bytes that one value that is no text may be written as.
const WRITTEN: usize = 1 << 18;
/// Nesting of macros and blocks.
const RECURSION: usize = 200;
/// Nesting of values that `tojson` follows.
const JSON_DEPTH: usize = 64;

thread_local! {
    /// What `namespace` made in the rendering that runs on this thread.
    static NAMESPACES: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
}

/// What `raise_exception` was given: the source of the error it makes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Compiles a template, with `now` (seconds since 1970, UTC) for its clock.
pub(super) fn compile(source: &str, now: i64) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.set_formatter(|out, state, value| {
        // What a list takes to write is charged when it is written, and it may hold itself.
        if *state.auto_escape() == AutoEscape::None && value.kind() != ValueKind::String {
            let mut bounded = Bounded { out, left: WRITTEN };
            return write!(bounded, "{value}").map_err(|_| {
                Error::new(ErrorKind::OutOfFuel, format!("a value takes more than {WRITTEN} bytes to write"))
            });
        }
        escape_formatter(out, state, value)
    });
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    env.add_function("namespace", namespace);
    env.add_function("strftime_now", move |format: &str| strftime(format, now));
    env.add_template_owned(NAME, without_generation_marks(source))?;
    Ok(env)
}

/// Renders what [`compile`] made.
pub(super) fn render(env: &Environment, context: Value) -> Result<String, Error> {
    let text = env.get_template(NAME).and_then(|template| template.render(context));
    NAMESPACES.take().iter().for_each(let_go);
    text
}

/// Jinja's, but remembered.
fn namespace(defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let made = functions::namespace(defaults)?;
    NAMESPACES.with_borrow_mut(|all| all.push(made.clone()));
    Ok(made)
}

/// Has a namespace hold no other value any more. Values are counted references, and nothing but a namespace can be
/// changed once it is made: one that came to hold itself would never be freed.
fn let_go(namespace: &Value) {
    let Ok(keys) = namespace.try_iter() else { return };
    for key in keys {
        let Some(name) = key.as_str().filter(|name| is_name(name)) else { continue };
        if namespace.get_item(&key).is_ok_and(|held| held.as_object().is_some()) {
            // Only a template can do it, and a stranger's key must be no more than a name in it. What no template can write
            // was there from the start, with what is older.
            let assignment = format!("{{% set namespace.{name} = 0 %}}");
            let _ = Environment::empty().render_str(&assignment, context! { namespace => namespace.clone() });
        }
    }
}

fn is_name(key: &str) -> bool {
    key.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
        && key.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
}

/// Takes so many bytes and no more.
struct Bounded<W> {
    out: W,
    left: usize,
}

impl<W: std::fmt::Write> std::fmt::Write for Bounded<W> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.left = self.left.checked_sub(text.len()).ok_or(std::fmt::Error)?;
        self.out.write_str(text)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// `{% generation %}` … `{% endgeneration %}` mark the assistant's words for training and print nothing: they become
/// an `if` that holds.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) = next_tag(rest) {
        let name = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replaced = match name {
            "generation" => tag.replace(name, "if true"),
            "endgeneration" => tag.replace(name, "endif"),
            _ => tag.to_owned(),
        };
        let _ = write!(out, "{before}{{%{replaced}%}}"); // writing to a String cannot fail
        rest = after;
    }
    out + rest
}

/// What is before, in and after the first `{% … %}`.
fn next_tag(source: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = source.split_once("{%")?;
    let (tag, after) = rest.split_once("%}")?;
    Some((before, tag, after))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: no HTML escapes, a space after colons and commas.
#[allow(clippy::needless_pass_by_value)] // minijinja hands arguments over
fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted and of no effect here: values keep their order and nothing is escaped.
    for ignored in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = kwargs.get(ignored)?;
    }
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_json(state, value, indent.map(|n| n.min(16)), 0, &mut out)?;
    Ok(out)
}

/// Every value takes fuel as it is written: a list that holds another one twice, and so on, is short to write down in a
/// template and longer than memory in full.
fn write_json(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    let text = value.as_str().map_or(0, str::len);
    state.consume_fuel(((64 + text + depth * indent.unwrap_or(0)) / 64) as u64)?;
    if depth > JSON_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "value is nested too deeply for tojson"));
    }
    let line = |depth: usize, out: &mut String| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { comma });
                line(depth + 1, out);
                write_json(state, &item, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut empty = true;
            for key in value.try_iter()? {
                out.push_str(if empty { "" } else { comma });
                line(depth + 1, out);
                let _ = write!(out, "{}: ", quoted(&key.to_string())); // writing to a String cannot fail
                write_json(state, &value.get_item(&key)?, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(depth, out);
            }
            out.push('}');
        }
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("{kind} cannot be written by tojson"),
            ));
        }
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `datetime.now().strftime(format)` in UTC and English, for the letters templates use; others are
/// errors.
fn strftime(format: &str, now: i64) -> Result<String, Error> {
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[days.rem_euclid(7) as usize]);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (letter, padded) = match chars.next() {
            Some('-') => (chars.next(), false),
            letter => (letter, true),
        };
        let mut number = |n: i64, width: usize| {
            let width = if padded { width } else { 0 };
            let _ = write!(out, "{n:0width$}"); // writing to a String cannot fail
        };
        match letter.unwrap_or('\0') {
            'Y' => number(year, 4),
            'y' => number(year.rem_euclid(100), 2),
            'm' => number(month, 2),
            'd' => number(day, 2),
            'H' => number(hour, 2),
            'I' => number((hour + 11) % 12 + 1, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'j' => number(days - days_before(year) + 1, 3),
            'B' => out.push_str(month_name),
            'b' => out.push_str(&month_name[..3]),
            'A' => out.push_str(day_name),
            'a' => out.push_str(&day_name[..3]),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            '%' => out.push('%'),
            _ => {
                let message = format!("strftime_now cannot write {format:?}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: i64) -> i64 {
    let leaps = |y: i64| y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    365 * (year - 1970) + leaps(year - 1) - leaps(1969)
}

/// The (year, month, day) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut day = days - days_before(year);
    let february = if is_leap(year) { 29 } else { 28 };
    for (month, length) in (1..).zip([31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    unreachable!("a year ends with December")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use minijinja::value::Object;

    use super::*;

    fn rendered(source: &str, context: Value) -> Result<String, Error> {
        render(&compile(source, 0)?, context)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds: i64| strftime("%A %a %d %B %b %Y %y-%m %H:%M:%S %I%p %-d %j %%", seconds).unwrap();
        assert_eq!(at(0), "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12AM 1 001 %");
        assert_eq!(at(951_825_599), "Tuesday Tue 29 February Feb 2000 00-02 11:59:59 11AM 29 060 %");
        assert_eq!(at(1_735_689_599), "Tuesday Tue 31 December Dec 2024 24-12 23:59:59 11PM 31 366 %");
        assert_eq!(at(-1), "Wednesday Wed 31 December Dec 1969 69-12 23:59:59 11PM 31 365 %");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn json_is_pythons() {
        let source = "{{ x | tojson }}\n{{ x | tojson(indent=2) }}";
        let x = context! { a => vec![1, 2], b => "<é'\"\n>", c => (), d => true, e => Vec::<i32>::new() };
        let expected = "{\"a\": [1, 2], \"b\": \"<é'\\\"\\n>\", \"c\": null, \"d\": true, \"e\": []}\n{\n  \"a\": [\n    1,\n    2\n  ],\n  \
            \"b\": \"<é'\\\"\\n>\",\n  \"c\": null,\n  \"d\": true,\n  \"e\": []\n}";
        assert_eq!(rendered(source, context! { x }).unwrap(), expected);
        let cycle = "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns | tojson }}";
        assert!(rendered(cycle, context! {}).is_err());
        assert!(rendered("{{ nothing | tojson }}", context! {}).is_err());
    }

    #[test]
    fn generation_marks_print_nothing() {
        let source = "a{%- generation -%} b {%-   endgeneration %}c{% generation %}d{% endgeneration %}";
        assert_eq!(rendered(source, context! {}).unwrap(), "abcd");
    }

    #[test]
    fn python_habits_work() {
        for (source, expected) in [
            ("{{ 'a|b'.split('|')[-1].upper() }}", "B"),
            ("{{ ' x\\n'.strip() + '\\n x'.lstrip('\\n') }}", "x x"),
            ("{% for x in [1, 2, 3][::-1] %}{{ x }}{% endfor %}", "321"),
            ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
            (
                "{% set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            ("{% if x is defined and x is not none %}a{% else %}b{% endif %}", "b"),
            ("{{ {'a': 1}.get('b', 2) }}{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}", "2a1"),
            ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
            ("{%- macro f(x) -%}<{{ x }}>{%- endmacro -%}{{ f('a') }}", "<a>"),
            ("{{ true }}{{ none }}{{ 1.0 }}", "TrueNone1.0"),
            ("{{ 'x' if not y else 'z' }}{{ '<&>' }}", "x<&>"),
        ] {
            assert_eq!(rendered(source, context! {}).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        let deep = format!("{}x{}", "{% if true %}".repeat(2000), "{% endif %}".repeat(2000));
        let brackets = format!("{{{{ {}1{} }}}}", "[".repeat(5000), "]".repeat(5000));
        for source in [
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ 'xxxxxxxxxxxxxxxx' * 1000000000 }}",
            "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{% include 'chat_template' %}",
            "{% include '/etc/hostname' %}",
            deep.as_str(),
            brackets.as_str(),
        ] {
            assert!(rendered(source, context! {}).is_err(), "{}", &source[..40]);
        }
    }

    #[test]
    fn what_holds_itself_is_let_go() {
        #[derive(Debug)]
        struct Token;
        impl Object for Token {}

        let token = Arc::new(Token);
        for source in [
            "{% set ns = namespace(token=token) %}{% set ns.ns = ns %}",
            "{% set a = namespace(token=token) %}{% set b = namespace(a=a) %}{% set a.b = [{'b': b}] %}",
            "{% set ns = namespace() %}{% macro f() %}{{ token }}{{ ns }}{% endmacro %}{% set ns.f = f %}",
            "{% for i in range(3) %}{% set ns = namespace(token=token) %}{% set ns.in = ns %}{% endfor %}",
            "{% set ns = namespace({'token': token, 'a b': 1, '': 2}) %}{% set ns._1 = ns %}",
            "{% set ns = namespace(token=token) %}{% set ns.ns = ns %}{{ raise_exception('no') }}",
        ] {
            let result = rendered(source, context! { token => Value::from_dyn_object(token.clone()) });
            assert_eq!(result.is_err(), source.contains("raise_exception"), "{source}");
            drop(result);
            assert_eq!(Arc::strong_count(&token), 1, "{source}");
        }
    }
}
