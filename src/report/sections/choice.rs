//! Which candidate was taken, and why the others were not.

use std::collections::BTreeSet;

use super::super::page::{Figure, Part, Section};
use super::super::plot::{Colours, Heat, Plot, number};
use super::super::run::Choice;
use super::{count, emphasize, finding, short, table};
use crate::select::{Candidate, Verdict};

/// A score: which one it is of `scored_on`, its name, how to read it, and its value.
type Score = (usize, &'static str, &'static str, fn(&Candidate) -> f64);

const SCORES: [Score; 3] = [
    (
        0,
        "bypass",
        "Refusal score of harmful prompts with the candidate erased: the lower, the better it bypasses refusal.",
        |c| c.bypass,
    ),
    (
        1,
        "induce",
        "Refusal score of harmless prompts with the candidate added: the higher, the better it induces refusal.",
        |c| c.induce,
    ),
    (
        2,
        "KL",
        "Distance of the answers to harmless prompts with the candidate erased: the lower, the less is damaged.",
        |c| c.kl,
    ),
];

pub fn section(id: String, model: &str, choice: &Choice) -> Section {
    let n = choice.candidates.len();
    let kept = choice.verdicts.iter().filter(|v| **v == Verdict::Kept).count();
    let chosen = choice.chosen.map(|i| &choice.candidates[i]);
    let rules = &choice.rules;
    let lead = format!(
        "Every position after the user's words and every block gives a candidate: the difference of the two sets' means \
         there. Each is scored on validation prompts of {}. The rules drop the last {:.0} % of the blocks, KL above {} and \
         induce below {}; of the rest the lowest bypass is taken. The refusal score is a log odds: below 0 a refusal is less \
         likely than not.",
        short(model),
        100.0 * (1.0 - rules.layer_fraction).max(0.0),
        number(rules.kl_max),
        number(rules.induce_min)
    );
    let mut findings = Vec::new();
    match chosen {
        Some(c) => findings.push(format!(
            "Of {}, {} was taken: erased, it leaves harmful prompts a refusal score of {} (a log odds; below 0 is no \
             refusal); added, it gives harmless ones {}.",
            count(n, "candidate"),
            place(c),
            number(c.bypass),
            number(c.induce)
        )),
        None => findings.push(format!("None of {} survives the rules.", count(n, "candidate"))),
    }
    let dropped = |verdict: Verdict| choice.verdicts.iter().filter(|v| **v == verdict).count();
    findings.push(format!(
        "{kept} kept the rules to the end; {} lie too late, {} change harmless answers too much, {} do not induce refusal, \
         {} were outrun by a better one.",
        dropped(Verdict::LateLayer),
        dropped(Verdict::Kl),
        dropped(Verdict::Induce),
        dropped(Verdict::Outrun)
    ));
    findings.push(format!(
        "Scored on prompts that behave as their set should: {} of {} harmful ones are refused, {} of {} harmless ones \
         answered.",
        choice.n_harmful[1], choice.n_harmful[0], choice.n_harmless[1], choice.n_harmless[0]
    ));
    let plots = SCORES.iter().map(|score| heat(&id, choice, score)).collect();
    let figures = chosen.map(|c| Figure {
        value: format!("block {}", c.layer.block().map_or("–".into(), |il| il.to_string())),
        label: "output that the direction was measured at".into(),
        note: format!("position {}, of {}", number(f64::from(c.position)), count(n, "candidate")),
    });
    Section {
        title: "The choice of the direction".into(),
        lead,
        parts: vec![Part::Plots(plots), Part::Table(candidates(&id, choice))],
        findings: (3..).zip(findings).map(|(rank, text)| finding(rank, text)).collect(),
        figures: figures.into_iter().collect(),
        id,
    }
}

fn place(c: &Candidate) -> String {
    let block =
        c.layer.block().map_or_else(|| "the embedding".into(), |il| format!("the output of block {il}"));
    format!("{block} at position {}", number(f64::from(c.position)))
}

fn heat(id: &str, choice: &Choice, (which, name, caption, value): &Score) -> Plot {
    let positions: BTreeSet<i32> = choice.candidates.iter().map(|c| c.position).collect();
    let layers: BTreeSet<usize> = choice.candidates.iter().map(|c| c.layer.paper()).collect();
    let rows: Vec<i32> = positions.into_iter().collect();
    let columns: Vec<usize> = layers.into_iter().collect();
    let at = |i: usize| (rows[i / columns.len()], columns[i % columns.len()]);
    let found: Vec<Option<usize>> = (0..rows.len() * columns.len())
        .map(|i| choice.candidates.iter().position(|c| (c.position, c.layer.paper()) == at(i)))
        .collect();
    let score = |i: usize| (choice.scored_on[i][*which] > 0).then(|| value(&choice.candidates[i]));
    let says = found.iter().map(|found| match found {
        None => "no candidate".into(),
        Some(i) => {
            let on = choice.scored_on[*i][*which];
            let score = score(*i)
                .map_or("not scored".into(), |x| format!("{name} {} on {}", number(x), count(on, "prompt")));
            format!("{}\n{score}\n{}", place(&choice.candidates[*i]), words(choice, *i))
        }
    });
    let colours = if *name == "KL" { Colours::UpTo(3.0 * choice.rules.kl_max) } else { Colours::AboutZero };
    Heat {
        id: format!("{id}-{}", name.to_lowercase()),
        title: format!("{name}: {} is better", if *name == "induce" { "higher" } else { "lower" }),
        caption: format!(
            "{caption} The frame is the choice; a stroke in the corner means that a rule dropped the candidate, by this score \
             or another; grey was not scored, for a rule or a better candidate had decided before (--exhaustive scores all)."
        ),
        columns: (
            "block (its output)".into(),
            columns.iter().map(|l| l.checked_sub(1).map_or("embd".into(), |il| il.to_string())).collect(),
        ),
        rows: ("position".into(), rows.iter().map(|p| number(f64::from(*p))).collect()),
        cells: found.iter().map(|found| found.and_then(score)).collect(),
        says: says.collect(),
        dropped: found.iter().map(|found| found.is_some_and(|i| is_dropped(choice.verdicts[i]))).collect(),
        chosen: found.iter().position(|found| found.is_some() && *found == choice.chosen),
        colours,
    }
    .draw()
}

/// By a rule, and not by a better candidate.
fn is_dropped(verdict: Verdict) -> bool {
    !matches!(verdict, Verdict::Kept | Verdict::Outrun)
}

fn words(choice: &Choice, i: usize) -> &'static str {
    match choice.verdicts[i] {
        Verdict::Kept if choice.chosen == Some(i) => "chosen",
        Verdict::Kept => "keeps the rules",
        Verdict::NotANumber => "not a number",
        Verdict::LateLayer => "late layer",
        Verdict::Kl => "KL too high",
        Verdict::Induce => "does not induce",
        Verdict::Outrun => "outrun",
    }
}

fn candidates(id: &str, choice: &Choice) -> super::Table {
    let mut order: Vec<usize> = (0..choice.candidates.len()).collect();
    let rank = |i: &usize| {
        (choice.chosen != Some(*i), choice.verdicts[*i] != Verdict::Kept, choice.scored_on[*i][0] == 0)
    };
    order.sort_by(|a, b| {
        rank(a).cmp(&rank(b)).then(choice.candidates[*a].bypass.total_cmp(&choice.candidates[*b].bypass))
    });
    let rows = order.iter().map(|&i| {
        let (c, on) = (&choice.candidates[i], choice.scored_on[i]);
        let score = |x: f64, n: usize| if n == 0 { "–".into() } else { number(x) };
        vec![
            words(choice, i).into(),
            number(f64::from(c.position)),
            c.layer.block().map_or("–".into(), |il| il.to_string()),
            c.layer.paper().to_string(),
            score(c.bypass, on[0]),
            score(c.induce, on[1]),
            score(c.kl, on[2]),
            on.map(|n| n.to_string()).join(" "),
        ]
    });
    let header = ["", "position", "block", "paper layer", "bypass", "induce", "KL", "on prompts"];
    let mut table = table(format!("{id}-candidates"), "All candidates", &header, 1, rows);
    emphasize(&mut table, |row| choice.chosen == Some(order[row]));
    table.folded = true;
    table
}
