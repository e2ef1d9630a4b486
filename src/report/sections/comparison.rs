//! Files of one model side by side.

use super::super::page::{Figure, Part, Section};
use super::super::plot::{Interval, Intervals, Kind, Plot, Series, Xy, number, theme};
use super::super::run::{Compare, Compared};
use super::{bytes, count, finding, interval, of_all, percent, short, table};
use crate::select::Candidate;

pub fn section(id: String, run: &Compare) -> Section {
    let Some((first, others)) = run.models.split_first() else { return Section { id, ..Section::default() } };
    let position = first.place.position;
    let mut plots = vec![cosines(&id, position, others), refusals(&id, &run.models)];
    plots.push(distances(&id, others));
    let score =
        |m: &Compared, of: fn(&Candidate) -> f64| m.chosen.as_ref().map_or("–".into(), |c| number(of(c)));
    let directions = run.models.iter().map(|m| {
        vec![
            short(&m.model),
            bytes(m.file_size),
            format!("{:.2}", m.bits_per_weight),
            m.chosen.as_ref().map_or("none".into(), |c| number(f64::from(c.position))),
            m.chosen.as_ref().map_or("none".into(), |_| m.place.block.to_string()),
            score(m, |c| c.bypass),
            score(m, |c| c.induce),
            score(m, |c| c.kl),
            format!("{:.4}", m.cosine),
        ]
    });
    let header =
        ["file", "size", "bits", "position", "block", "bypass", "induce", "KL", "cos with the first"];
    let directions = table(format!("{id}-directions"), "The direction of each file", &header, 1, directions);
    let behaviour = run.models.iter().map(|m| {
        vec![
            short(&m.model),
            percent(m.plain.harmful.refused.rate),
            interval(&m.plain.harmful.refused),
            percent(m.ablated.harmful.refused.rate),
            percent(m.ablated_by_first.harmful.refused.rate),
            percent(m.plain.over_refusal.rate),
            number(m.plain.harmful.kl_tokens.mean),
            number(m.plain.harmless.kl_tokens.mean),
            m.perplexity.as_ref().map_or("–".into(), |p| number(p.perplexity)),
            m.perplexity_ratio.as_ref().map_or("–".into(), |r| format!("{:.4}", r.ratio)),
        ]
    });
    let header = [
        "file",
        "refused",
        "95 % interval",
        "own erased",
        "first's erased",
        "over-refusal",
        "KL harmful",
        "KL harmless",
        "perplexity",
        "ratio",
    ];
    let behaviour = table(
        format!("{id}-behaviour"),
        "Refusals, and the distance to the first file",
        &header,
        1,
        behaviour,
    );
    let notes = run
        .models
        .iter()
        .filter_map(|m| m.no_choice.as_ref().map(|why| Part::Text(format!("{}: {why}.", short(&m.model)))));
    let parts = [Part::Plots(plots), Part::Table(directions)];
    Section {
        title: "Files of one model".into(),
        lead: format!(
            "Each file was measured on {} + {} prompts, its direction chosen on {} + {}, and asked {} + {} others. The first, \
             {}, is what the others are compared with.",
            run.prompts.train.harmful.n,
            run.prompts.train.harmless.n,
            run.prompts.validation.harmful.n,
            run.prompts.validation.harmless.n,
            run.prompts.test.harmful.n,
            run.prompts.test.harmless.n,
            short(&first.model)
        ),
        parts: parts.into_iter().chain(notes).chain([Part::Table(behaviour)]).collect(),
        findings: findings(first, others),
        figures: others
            .iter()
            .map(|m| Figure {
                value: format!("{:.4}", m.cosine),
                label: format!("cos of the direction: {}", short(&m.model)),
                note: format!("{:.2} bits a weight", m.bits_per_weight),
            })
            .collect(),
        id,
    }
}

fn findings(first: &Compared, others: &[Compared]) -> Vec<super::Finding> {
    let Some(worst) = others.iter().min_by(|a, b| a.cosine.total_cmp(&b.cosine)) else { return Vec::new() };
    let same = others.iter().filter(|m| m.cosine >= 0.99).count();
    let most =
        others.iter().map(|m| &m.ablated_by_first.harmful.refused).max_by(|a, b| a.rate.total_cmp(&b.rate));
    let far = others
        .iter()
        .max_by(|a, b| a.plain.harmless.kl_tokens.mean.total_cmp(&b.plain.harmless.kl_tokens.mean));
    let none = others.iter().filter(|m| m.chosen.is_none()).count();
    let mut findings = vec![finding(
        0,
        format!(
            "The direction of {} is nearly that of the first file, {} (cos ≥ 0.99), in {} of {}; the lowest is {} with {}{}.",
            count(others.len(), "other file"),
            short(&first.model),
            same,
            others.len(),
            short(&worst.model),
            number(worst.cosine),
            if none > 0 { format!("; in {none} no candidate survives the rules") } else { String::new() }
        ),
    )];
    findings.extend(most.map(|most| {
        finding(
            1,
            format!(
                "Erased in the other files, the first file's direction leaves at most {} harmful prompts refused, where {} are \
                 in the first as it is.",
                of_all(most),
                of_all(&first.plain.harmful.refused)
            ),
        )
    }));
    findings.extend(far.map(|far| {
        finding(
            2,
            format!(
                "As they are, the answers to harmless prompts are farthest from the first file's in {}: a KL of {} nats a token.",
                short(&far.model),
                number(far.plain.harmless.kl_tokens.mean)
            ),
        )
    }));
    findings
}

/// The files that have a mark of their own, and how many have not.
fn cosines(id: &str, position: Option<i32>, others: &[Compared]) -> Plot {
    let series = others.iter().take(theme::SERIES).map(|m| Series {
        name: short(&m.model),
        kind: Kind::Lines,
        points: (m.cosines.iter().filter(|c| position.is_none_or(|p| c.position == p)))
            .map(|c| {
                (
                    c.block as f64,
                    c.cosine,
                    format!("{}\nblock {}\ncos {:.4}", short(&m.model), c.block, c.cosine),
                )
            })
            .collect(),
    });
    let left_out = others.len().saturating_sub(theme::SERIES);
    Xy {
        id: format!("{id}-cosines"),
        title: "Cosine with the first file's direction".into(),
        caption: format!(
            "At the output of each block{}. 1 is the same direction.{}",
            position.map_or(String::new(), |p| format!(", position {}", number(f64::from(p)))),
            if left_out > 0 { format!(" The table has {left_out} more files.") } else { String::new() }
        ),
        x: "block (its output)".into(),
        y: "cos".into(),
        whole: true,
        series: series.collect(),
        ..Xy::default()
    }
    .draw()
}

fn refusals(id: &str, models: &[Compared]) -> Plot {
    let names = ["as it is", "own direction erased", "first file's direction erased"];
    let rows = models.iter().flat_map(|m| {
        [&m.plain, &m.ablated, &m.ablated_by_first].into_iter().zip(names).enumerate().map(
            move |(series, (e, what))| {
                let rate = &e.harmful.refused;
                Interval {
                    name: if series == 0 { short(&m.model) } else { String::new() },
                    series,
                    value: 100.0 * rate.rate,
                    ends: (100.0 * rate.low, 100.0 * rate.high),
                    says: format!(
                        "{}, {what}\n{} harmful prompts refused\n95 % interval {} %",
                        short(&m.model),
                        of_all(rate),
                        interval(rate)
                    ),
                }
            },
        )
    });
    Intervals {
        id: format!("{id}-refusals"),
        title: "Harmful prompts refused, file by file".into(),
        caption: "With 95 % intervals.".into(),
        x: "refused, %".into(),
        range: (0.0, 100.0),
        series: names.map(String::from).into(),
        rows: rows.collect(),
    }
    .draw()
}

fn distances(id: &str, others: &[Compared]) -> Plot {
    let of = |name: &str, value: fn(&Compared) -> f64| Series {
        name: name.into(),
        kind: Kind::Points,
        points: others
            .iter()
            .map(|m| {
                let says = format!(
                    "{}\n{:.2} bits\n{name} {}",
                    short(&m.model),
                    m.bits_per_weight,
                    number(value(m))
                );
                (m.bits_per_weight, value(m), says)
            })
            .collect(),
    };
    Xy {
        id: format!("{id}-distance"),
        title: "Distance to the first file, by bits".into(),
        caption:
            "KL along the first file's own answers, the files as they are: what quantization alone does."
                .into(),
        x: "bits a weight".into(),
        y: "KL, nats a token".into(),
        series: vec![
            of("harmful prompts", |m| m.plain.harmful.kl_tokens.mean),
            of("harmless prompts", |m| m.plain.harmless.kl_tokens.mean),
        ],
        ..Xy::default()
    }
    .draw()
}
