//! The colours: told apart by people who see colours differently (Okabe & Ito 2008), and by their marks' shapes.

/// A name with its light and dark value.
const COLOURS: [(&str, &str, &str); 14] = [
    ("page", "#ffffff", "#14171b"),
    ("card", "#f5f6f8", "#1d2127"),
    ("ink", "#1b1f24", "#e8eaed"),
    ("soft", "#59626d", "#a3adb8"),
    ("line", "#d5dae0", "#39414b"),
    ("link", "#0b5cad", "#79b8f5"),
    ("s0", "#0072b2", "#56b4e9"),
    ("s1", "#d55e00", "#ff8f3d"),
    ("s2", "#00805c", "#33c79a"),
    ("s3", "#a8487c", "#e08fbd"),
    ("s4", "#8a6500", "#e6b422"),
    ("s5", "#4b4fb5", "#a3a6f5"),
    ("bad", "#b3261e", "#ff8a80"),
    ("good", "#00694c", "#52d6a8"),
];

/// How many series have a colour and a shape of their own.
pub const SERIES: usize = 6;

/// What the classes of a drawing mean; `$name` stands for a colour.
const RULES: &str = "\
svg text{font-family:'DejaVu Sans',system-ui,sans-serif;font-size:12px;fill:$ink}
svg text.soft{fill:$soft;font-size:11px}
svg text.onlight{fill:#111;font-size:11px;pointer-events:none}
svg text.ondark{fill:#fff;font-size:11px;pointer-events:none}
.paper{fill:$page}
.axis{stroke:$soft;stroke-width:1;fill:none}
.grid{stroke:$line;stroke-width:1;fill:none}
.rule{stroke:$soft;stroke-width:1;stroke-dasharray:5 4;fill:none}
.none{fill:$line}
.dropped{stroke:#111;stroke-width:1.2}
.chosen{fill:none;stroke:#111;stroke-width:5;pointer-events:none}
.choice{fill:none;stroke:#fff;stroke-width:1.6;pointer-events:none}
";

fn resolve(rules: &str, value: impl Fn(&str, &str) -> String) -> String {
    // The longer names first: none is the beginning of another but by chance.
    let mut text = rules.to_string();
    for (name, light, _) in COLOURS {
        text = text.replace(&format!("${name}"), &value(name, light));
    }
    text
}

fn rules() -> String {
    let series = |i: usize| {
        format!(
            ".f{i}{{fill:$s{i};stroke:$page;stroke-width:.6}}\n.o{i}{{fill:$page;stroke:$s{i};stroke-width:1.6}}\n\
             .l{i}{{fill:none;stroke:$s{i};stroke-width:2}}\n"
        )
    };
    RULES.to_string() + &(0..SERIES).map(series).collect::<String>()
}

/// The classes in light colours.
#[must_use]
pub fn plain() -> String {
    resolve(&rules(), |_, light| light.to_string())
}

/// The variables of both themes, and the classes by these: light, unless the reader's system or choice is dark.
#[must_use]
pub fn css() -> String {
    let variables = |dark: bool| -> String {
        let one = |(name, light, night): &(&str, &str, &str)| {
            format!("--{name}:{};", if dark { night } else { light })
        };
        COLOURS.iter().map(one).collect()
    };
    let (light, dark) = (variables(false), variables(true));
    let classes = resolve(&rules(), |name, _| format!("var(--{name})"));
    format!(
        ":root{{color-scheme:light;{light}}}\n\
         @media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n\
         @media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n{classes}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_is_resolved() {
        assert!(!plain().contains('$') && plain().contains(".l5{fill:none;stroke:#4b4fb5"), "{}", plain());
        assert!(!css().contains('$') && css().contains("fill:var(--s1)"), "{}", css());
    }
}
