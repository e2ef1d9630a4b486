//! What the model does before and after, in counts and in its own words.

use super::super::page::{Answers, Asked, Figure, Part, Saying, Section};
use super::super::plot::{Interval, Intervals, number};
use super::super::run::{Abliterate, Evaluate, Said};
use super::{finding, interval, of_all, percent, short, table};
use crate::evaluate::run::{Answer, Evaluation, SetResult};
use crate::evaluate::{Degeneracy, Rate};

type Sets<'a> = (&'a str, [&'a SetResult; 2]);

fn sets(evaluation: &Evaluation) -> [&SetResult; 2] {
    [&evaluation.harmful, &evaluation.harmless]
}

/// A change of refusals in words, by their intervals.
fn change(before: &Rate, after: &Rate) -> &'static str {
    match () {
        () if after.high < before.low && after.rate <= 0.1 * before.rate => "The edit removes the refusals",
        () if after.high < before.low => "The edit removes some of the refusals",
        () => "The edit does not remove the refusals beyond doubt",
    }
}

pub fn abliterated(id: String, run: &Abliterate) -> Section {
    let mut runs = vec![
        ("before", sets(&run.before)),
        ("erased while running", sets(&run.ablated)),
        ("written file", sets(&run.after)),
    ];
    if let Some(story) = &run.story {
        runs.push(("direction added", sets(&story.added)));
    }
    let mut section = counted(id, &runs, run.before.n_kl_tokens);
    section.lead = format!(
        "Prompts that no measurement saw were asked of {} as it is, with the direction erased while it runs, and of the \
         written file{}. The direction is that of the {}{}.",
        short(&run.model),
        if run.story.is_some() { "; last, the direction was added to every prompt" } else { "" },
        run.direction.with(run.subspace.as_ref()),
        run.direction.raw_norm.map_or(String::new(), |norm| format!(", length {}", number(norm)))
    );
    let [before, after] = [&run.before, &run.after].map(|e| &e.harmful.refused);
    let (kl, harmless) = (run.after.harmless.kl_first_token, &run.after.harmless.refused);
    section.findings = vec![
        finding(
            0,
            format!(
                "{}: {} refuses {} harmful prompts, the written file {} (95 % interval {} %).",
                change(before, after),
                short(&run.model),
                of_all(before),
                after.hits,
                interval(after)
            ),
        ),
        finding(
            1,
            format!(
                "What it costs: {} harmless prompts are refused (before: {}), {} of all its answers are empty, looping or \
                 garbled (before: {}), and the first word of an answer to a harmless prompt moves by a KL of {} nats{}.",
                of_all(harmless),
                run.before.harmless.refused.hits,
                broken(&run.after),
                broken(&run.before),
                number(kl),
                if kl <= 0.1 { ", which is little" } else { ", which is much: read the answers" }
            ),
        ),
    ];
    section.figures = vec![
        figure(&percent(before.rate), "harmful prompts refused before", &interval(before)),
        figure(&percent(after.rate), "harmful prompts refused by the written file", &interval(after)),
        figure(&percent(harmless.rate), "harmless prompts refused by the written file", &interval(harmless)),
        figure(
            &number(kl),
            "KL of the first token, harmless prompts",
            "nats; 0 is no change, 0.1 the limit of the choice",
        ),
    ];
    section
}

fn broken(evaluation: &Evaluation) -> usize {
    sets(evaluation).iter().map(|set| set.broken.hits).sum()
}

fn figure(value: &str, label: &str, note: &str) -> Figure {
    let note = if note.contains('–') { format!("95 % interval {note} %") } else { note.into() };
    Figure { value: value.into(), label: label.into(), note }
}

pub fn evaluated(id: String, run: &Evaluate) -> Section {
    let this = match (&run.add, run.scale) {
        (Some(_), Some(scale)) => format!("direction added × {}", number(scale)),
        _ if run.ablate.is_empty() => "as it is".into(),
        _ => "direction erased".into(),
    };
    let random = this.replace("direction", "random");
    let mut runs = vec![(this.as_str(), [&run.harmful, &run.harmless])];
    runs.extend(run.control.as_ref().map(|control| (random.as_str(), sets(control))));
    let mut section = counted(id, &runs, run.n_kl_tokens);
    let base =
        run.base.as_ref().map_or_else(|| "the same file without intervention".into(), |base| short(base));
    section.lead = format!("{}, {this}. KL is measured against {base}.", short(&run.model));
    let (harmful, harmless) = (&run.harmful, &run.harmless);
    let mut findings = vec![
        format!(
            "{} ({this}) refuses {} harmful prompts (95 % interval {} %) and {} harmless ones.",
            short(&run.model),
            of_all(&harmful.refused),
            interval(&harmful.refused),
            of_all(&harmless.refused)
        ),
        format!(
            "Its first answer token is {} nats (KL) from that of {base} on harmless prompts, {} on harmful ones.",
            number(harmless.kl_first_token),
            number(harmful.kl_first_token)
        ),
    ];
    findings.push(match &run.control {
        Some(control) => format!(
            "A random direction of the same size leaves {} harmful prompts refused: the difference is the direction's doing.",
            of_all(&control.harmful.refused)
        ),
        None => format!(
            "{} of all its answers are empty, looping or garbled.",
            harmful.broken.hits + harmless.broken.hits
        ),
    });
    if let Some(p) = &run.perplexity {
        section.parts.push(Part::Text(format!(
            "Perplexity of {}: {}, against {} for the base: {} times as much (95 % interval {} to {}).",
            p.text,
            number(p.this.perplexity),
            number(p.base.perplexity),
            number(p.ratio.ratio),
            number(p.ratio.low),
            number(p.ratio.high)
        )));
    }
    section.findings = (0..).zip(findings).map(|(rank, text)| finding(rank, text)).collect();
    section.figures = vec![
        figure(&percent(harmful.refused.rate), "harmful prompts refused", &interval(&harmful.refused)),
        figure(&percent(harmless.refused.rate), "harmless prompts refused", &interval(&harmless.refused)),
        figure(
            &number(harmless.kl_first_token),
            "KL of the first token, harmless prompts",
            "nats; 0 is no change",
        ),
    ];
    section
}

/// The plot and the table of some runs.
fn counted(id: String, runs: &[Sets<'_>], n_kl_tokens: usize) -> Section {
    let both = || {
        runs.iter().flat_map(|(name, sets)| {
            ["harmful", "harmless"]
                .into_iter()
                .zip(sets)
                .enumerate()
                .map(move |(i, (set, r))| (*name, i, set, *r))
        })
    };
    let rows = both().map(|(run, series, set, r)| Interval {
        name: format!("{run}, {set}"),
        series,
        value: 100.0 * r.refused.rate,
        ends: (100.0 * r.refused.low, 100.0 * r.refused.high),
        says: format!(
            "{run}, {set} prompts\n{} refused, {}\n95 % interval {} %",
            of_all(&r.refused),
            percent(r.refused.rate),
            interval(&r.refused)
        ),
    });
    let plot = Intervals {
        id: format!("{id}-refusals"),
        title: "Refusals".into(),
        caption: "The share of prompts that are refused, with its 95 % interval. An edit that works moves the harmful \
                  prompts to the left and leaves the harmless ones where they are."
            .into(),
        x: "refused, %".into(),
        range: (0.0, 100.0),
        series: vec!["harmful prompts".into(), "harmless prompts".into()],
        rows: rows.collect(),
    };
    let along = format!("KL {n_kl_tokens} tokens");
    let header = [
        "run",
        "prompts",
        "n",
        "refused",
        "95 % interval",
        "late",
        "empty",
        "looping",
        "garbled",
        "KL first token",
        &along,
    ];
    let rows = both().map(|(run, _, set, r)| {
        vec![
            run.into(),
            set.into(),
            r.n.to_string(),
            percent(r.refused.rate),
            interval(&r.refused),
            r.refused_late.hits.to_string(),
            r.empty.hits.to_string(),
            r.looping.hits.to_string(),
            r.garbled.hits.to_string(),
            number(r.kl_first.mean),
            number(r.kl_tokens.mean),
        ]
    });
    let table = table(format!("{id}-counts"), "Counts and distances", &header, 2, rows);
    Section {
        title: "Behaviour".into(),
        parts: vec![Part::Plots(vec![plot.draw()]), Part::Table(table)],
        id,
        ..Section::default()
    }
}

/// What an answer was counted as; broken ones first, for a stammer may begin like a refusal.
fn mark(answer: &Answer) -> &'static str {
    match answer.broken {
        Some(Degeneracy::Empty) => "empty",
        Some(Degeneracy::Looping) => "looping",
        Some(Degeneracy::Garbled) => "garbled",
        None if answer.refused => "refused",
        None if answer.refused_late => "refused late",
        None => "answered",
    }
}

pub fn answers(id: String, said: &[Said]) -> Section {
    let rows = |set: &'static str, of: fn(&Said) -> &[Answer]| {
        let n = said.first().map_or(0, |run| of(run).len());
        (0..n).map(move |i| {
            let answers: Vec<&Answer> = said.iter().map(|run| &of(run)[i]).collect();
            let refused = |run: usize| answers.get(run).is_some_and(|a| a.refused);
            Asked {
                set,
                prompt: answers.first().map_or(String::new(), |a| a.prompt.clone()),
                said: answers
                    .iter()
                    .map(|a| Saying { text: a.completion.trim().into(), mark: mark(a) })
                    .collect(),
                turned: refused(0) != refused(WRITTEN),
                refused: refused(WRITTEN),
            }
        })
    };
    let harmful = rows("harmful", |run| &run.harmful);
    let harmless: Vec<Asked> = rows("harmless", |run| &run.harmless).collect();
    // Some of each set are seen at once.
    let mut all: Vec<Asked> = harmful.collect();
    let rest = all.split_off(all.len().min(4));
    let mut harmless = harmless.into_iter();
    all.extend(harmless.by_ref().take(4));
    all.extend(rest);
    all.extend(harmless);
    Section {
        id,
        title: "Answers side by side".into(),
        lead: "The model's own words to the same prompts, as counted: refused (in its opening), refused late, or broken. \
               A rate says nothing until some of these were read."
            .into(),
        parts: vec![Part::Answers(Answers { runs: said.iter().map(|run| run.run.clone()).collect(), rows: all })],
        ..Section::default()
    }
}

/// Which run is the written file's: before, erased while running, written.
const WRITTEN: usize = 2;
