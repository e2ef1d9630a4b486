//! What a rewrite left in each tensor.

use super::super::page::{Figure, Part, Section};
use super::super::plot::{Kind, Plot, Series, Xy, number, theme};
use super::super::run::{Tensor, Verify, Written};
use super::{bytes, count, finding, maybe, percent, short, table};

pub fn rewritten(id: String, [model, output]: [&str; 2], written: &Written) -> Section {
    let mut section = measured(id, &written.tensors);
    section.title = "The edit, tensor by tensor".into();
    section.lead = format!(
        "{} of {}, measured on the bytes of {} ({}) against the exact edit. {}",
        count(written.n_edited, "tensor"),
        short(model),
        short(output),
        bytes(written.file_size),
        LEGEND
    );
    section.findings = vec![finding(
        2,
        format!(
            "In the written file {} were edited and {} are byte for byte as they were; {}.",
            count(written.n_edited, "tensor"),
            written.n_untouched,
            left(written.max_leak, written.max_data_leak, written.max_edit_error)
        ),
    )];
    let worst =
        written.tensors.iter().filter(|t| t.leak.is_finite()).max_by(|a, b| a.leak.total_cmp(&b.leak));
    section.findings.extend(worst.map(|t| {
        let (leak, distance) = (number(t.leak), number(t.distance));
        finding(
            3,
            format!(
                "By weights the most is left in {} ({}): leak {leak}, distance {distance}.",
                t.name, t.after
            ),
        )
    }));
    section.figures = figures(written.max_leak, written.max_data_leak, written.max_edit_error);
    section
}

pub fn verified(id: String, run: &Verify) -> Section {
    let mut section = measured(id, &run.tensors);
    section.title = format!("{} verified", short(&run.rewritten));
    section.lead = format!("{} against {}. {LEGEND}", short(&run.rewritten), short(&run.original));
    section.findings = vec![
        finding(
            0,
            match &run.differences[..] {
                [] if run.ok => format!(
                    "{} is what it says it is: {} other than the writers are byte for byte as in {}.",
                    short(&run.rewritten),
                    count(run.n_untouched, "tensor"),
                    short(&run.original)
                ),
                all => format!("{} is not what it says it is: {}.", short(&run.rewritten), all.join("; ")),
            },
        ),
        finding(
            1,
            format!("Of the edit itself: {}.", left(run.max_leak, run.max_data_leak, run.max_edit_error)),
        ),
    ];
    section.figures = figures(run.max_leak, run.max_data_leak, run.max_edit_error);
    section
}

const LEGEND: &str = "Leak is the part of the direction that is left in the weights (0: none, 1: all of it), data leak the same in the \
     output on inputs that were held out, edit error how far that output is from the exact edit's (0: the edit is exactly \
     there, 1: no better than no edit), and distance the same for the weights alone. Rounding for the inputs (descent) \
     moves weights on purpose: there data leak and edit error are what counts.";

/// What is left of the direction, by what was measured.
fn left(leak: f64, data_leak: Option<f64>, edit_error: Option<f64>) -> String {
    match (data_leak, edit_error) {
        (Some(data_leak), Some(error)) => format!(
            "on inputs that were held out at most {} of the direction is left in what a tensor writes, and its output is at \
             most {} of the edit away from the exact one{}",
            percent(data_leak),
            percent(error),
            if error > 0.5 { ": much of the edit is not there" } else { "" }
        ),
        _ => format!("at most {} of the direction is left in a tensor's weights", percent(leak)),
    }
}

fn figures(leak: f64, data_leak: Option<f64>, edit_error: Option<f64>) -> Vec<Figure> {
    let one = |value: f64, label: &str, note: &str| Figure {
        value: percent(value),
        label: label.into(),
        note: note.into(),
    };
    let mut figures = vec![match data_leak {
        Some(leak) => one(leak, "of the direction left in the worst tensor's output", "data leak; 0 is none"),
        None => one(leak, "of the direction left in the worst tensor", "leak; 0 is none"),
    }];
    figures
        .extend(edit_error.map(|e| one(e, "of the edit missing in the worst tensor's output", "edit error")));
    figures
}

fn measured(id: String, tensors: &[Tensor]) -> Section {
    let with_inputs = tensors.iter().any(|t| t.edit_error.is_some());
    let mut plots = vec![plot(&id, "leak", "Leak by block", "leak", tensors, |t| Some(t.leak))];
    if with_inputs {
        plots.push(plot(&id, "edit-error", "Edit error by block", "edit error", tensors, |t| t.edit_error));
    }
    plots.push(plot(&id, "distance", "Distance by block", "distance", tensors, |t| Some(t.distance)));
    let rows = tensors.iter().map(|t| {
        vec![
            t.name.clone(),
            if t.before == t.after { t.before.clone() } else { format!("{} → {}", t.before, t.after) },
            t.method.clone().unwrap_or_else(|| "–".into()),
            number(t.leak),
            maybe(t.data_leak),
            maybe(t.edit_error),
            number(t.distance),
            number(t.share),
            bytes(t.bytes),
        ]
    });
    let header = [
        "tensor",
        "type",
        "rounding",
        "leak",
        "data leak",
        "edit error",
        "distance",
        "share along it",
        "size",
    ];
    let table = table(format!("{id}-list"), "Every writer of the stream", &header, 3, rows);
    Section { parts: vec![Part::Plots(plots), Part::Table(table)], id, ..Section::default() }
}

fn plot(
    id: &str,
    name: &str,
    title: &str,
    y: &str,
    tensors: &[Tensor],
    of: fn(&Tensor) -> Option<f64>,
) -> Plot {
    let mut kinds: Vec<&str> = Vec::new();
    for tensor in tensors {
        if !kinds.contains(&tensor.kind.as_str()) {
            kinds.push(&tensor.kind);
        }
    }
    // More kinds than marks: the rarer ones share the last.
    let series_of =
        |kind: &str| kinds.iter().position(|k| *k == kind).map_or(0, |i| i.min(theme::SERIES - 1));
    let series = (0..kinds.len().min(theme::SERIES)).map(|i| {
        let points = tensors.iter().filter(|t| series_of(&t.kind) == i).filter_map(|t| {
            let value = of(t)?;
            Some((t.block.map_or(-1.0, |il| il as f64), value, format!("{}\n{y} {}", t.name, number(value))))
        });
        let rest = kinds.len() > theme::SERIES && i == theme::SERIES - 1;
        let name = if rest { "others".into() } else { kinds[i].replace('_', " ") };
        Series { name, kind: Kind::Points, points: points.collect() }
    });
    Xy {
        id: format!("{id}-{name}"),
        title: title.into(),
        caption: "A mark is a tensor that writes the residual stream; what belongs to no block stands at −1."
            .into(),
        x: "block".into(),
        y: y.into(),
        whole: true,
        from_zero: true,
        series: series.collect(),
        ..Xy::default()
    }
    .draw()
}
