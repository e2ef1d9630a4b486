//! The edits that a search found.

use super::super::page::{Part, Section, Table};
use super::super::plot::{Kind, Plot, Series, Xy, number};
use super::super::run::{Counts, Optimize, Trial};
use super::{count, finding, interval, of_all, percent, short, table};

pub fn section(id: String, run: &Optimize) -> Section {
    let better = run.pareto.iter().filter(|t| t.counts.dominates_plain).count();
    let tested = run.pareto.iter().filter(|t| t.test.as_ref().is_some_and(|c| c.dominates_plain)).count();
    let with_test = run.pareto.iter().any(|t| t.test.is_some());
    let commands = run.pareto.iter().filter_map(|t| t.command.clone()).collect();
    Section {
        title: "The search for a better edit".into(),
        lead: format!(
            "{} edits of {} were tried on {} harmful and {} harmless prompts. An edit is better than the plain ablation where \
             it leaves fewer harmful prompts unanswered and changes the answers to harmless ones less.",
            run.trials,
            short(&run.model),
            run.n_harmful,
            run.n_harmless
        ),
        parts: vec![
            Part::Plots(vec![plot(&id, run, with_test)]),
            Part::Table(edits(&id, run)),
            Part::Commands(commands),
        ],
        findings: vec![
            finding(
                0,
                format!(
                    "Of {}, {better} beat the plain ablation in both figures on the prompts they were searched on.",
                    count(run.trials, "trial")
                ),
            ),
            finding(
                1,
                if with_test {
                    format!(
                        "On prompts that the search did not see, {tested} of the {} listed do.",
                        run.pareto.len()
                    )
                } else {
                    "They were not tried on prompts that the search did not see: give --test-harmful and --test-harmless.".into()
                },
            ),
            finding(
                2,
                format!(
                    "The plain ablation has {} harmful prompts answered at a KL of {}; as it is, the model answers {}.",
                    of_all(&run.plain.counts.answered),
                    number(run.plain.counts.kl.mean),
                    of_all(&run.untouched.counts.answered)
                ),
            ),
        ],
        figures: Vec::new(),
        id,
    }
}

fn plot(id: &str, run: &Optimize, with_test: bool) -> Plot {
    let point = |trial: &Trial, name: &str, counts: &Counts| {
        let says = format!("{name}\n{} answered\nKL {}", of_all(&counts.answered), number(counts.kl.mean));
        let name = trial.trial.map_or(String::new(), |n| format!("trial {n}: "));
        (100.0 * (1.0 - counts.answered.rate), counts.kl.mean, name + &says)
    };
    let on_test = |t: &Trial| t.test.as_ref().map(|counts| point(t, "on the test prompts", counts));
    let mut series = vec![
        Series {
            name: "found, searched prompts".into(),
            kind: Kind::Points,
            points: run.pareto.iter().map(|t| point(t, "on the searched prompts", &t.counts)).collect(),
        },
        Series {
            name: "plain ablation".into(),
            kind: Kind::Points,
            points: vec![point(&run.plain, "plain ablation", &run.plain.counts)],
        },
    ];
    if with_test {
        series.push(Series {
            name: "found, test prompts".into(),
            kind: Kind::Hollow,
            points: run.pareto.iter().filter_map(on_test).collect(),
        });
    }
    Xy {
        id: format!("{id}-pareto"),
        title: "What no other edit beats in both".into(),
        caption: "Left is fewer harmful prompts left unanswered, down is less change of harmless answers."
            .into(),
        x: "harmful prompts not answered, %".into(),
        y: "KL of the first token, harmless prompts".into(),
        series,
        ..Xy::default()
    }
    .draw()
}

fn edits(id: &str, run: &Optimize) -> Table {
    let all = [("as it is", &run.untouched), ("plain ablation", &run.plain)];
    let rows = all.into_iter().chain(run.pareto.iter().map(|t| ("found", t))).map(|(name, t)| {
        let test = |of: fn(&Counts) -> String| t.test.as_ref().map_or("–".into(), of);
        vec![
            t.trial.map_or_else(|| name.into(), |n| format!("{name}: trial {n}")),
            t.direction.as_deref().map_or("–".into(), short),
            percent(t.counts.answered.rate),
            interval(&t.counts.answered),
            t.counts.refused.hits.to_string(),
            t.counts.broken.hits.to_string(),
            number(t.counts.kl.mean),
            test(|c| percent(c.answered.rate)),
            test(|c| interval(&c.answered)),
            test(|c| number(c.kl.mean)),
        ]
    });
    let header = [
        "edit",
        "direction",
        "answered",
        "95 % interval",
        "refused",
        "broken",
        "KL",
        "test: answered",
        "95 % interval",
        "test: KL",
    ];
    table(format!("{id}-list"), "The edits", &header, 2, rows)
}
