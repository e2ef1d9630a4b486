//! How the prompt sets lie in the stream.

use super::super::page::{Part, Section, Table};
use super::super::plot::{Kind, Plot, Series, Xy, number};
use super::{finding, percent, short, table};
use crate::analysis::{Analysis, BlockAnalysis, Points, Scatter};

/// What was analysed.
pub struct Of<'a> {
    pub model: &'a str,
    /// Harmful and harmless prompts.
    pub n: [usize; 2],
    pub position: i32,
}

/// `block` is the direction's, where there is one.
pub fn section(id: String, of: &Of<'_>, block: Option<usize>, analysis: &Analysis) -> Section {
    let blocks = &analysis.blocks;
    let best = blocks.iter().max_by(|a, b| {
        // NaN is last.
        let key = |b: &BlockAnalysis| if b.signal_to_noise.is_nan() { -1.0 } else { b.signal_to_noise };
        key(a).total_cmp(&key(b))
    });
    let start = block.or(best.map(|b| b.block)).unwrap_or(0).min(blocks.len().saturating_sub(1));
    let scatters = analysis.scatter.iter().zip(blocks).map(|(points, block)| scatter(&id, points, block));
    let ablated = analysis.scatter.iter().any(|s| s.ablated.is_some());
    Section {
        title: "The prompts in the residual stream".into(),
        lead: format!(
            "{} harmful and {} harmless prompts of {}, at position {} and the output of each block, on the two directions in \
             which they vary most (principal components of both sets together){}.",
            of.n[0],
            of.n[1],
            short(of.model),
            number(f64::from(of.position)),
            if ablated {
                ". Hollow marks are the harmful prompts again with the direction erased: where the edit works, they lie \
                 among the harmless ones along the first component"
            } else {
                ""
            }
        ),
        parts: vec![
            Part::Slider { label: "Block".into(), plots: scatters.collect(), start },
            Part::Plots(plots(&id, block, blocks)),
            Part::Table(values(&id, blocks)),
        ],
        findings: (4..).zip(findings(best, analysis)).map(|(rank, text)| finding(rank, text)).collect(),
        figures: Vec::new(),
        id,
    }
}

/// What the verdict may say.
fn findings(best: Option<&BlockAnalysis>, analysis: &Analysis) -> Vec<String> {
    let blocks = &analysis.blocks;
    let mut findings = Vec::new();
    if let Some(best) = best {
        findings.push(format!(
            "The two prompt sets lie farthest apart at the output of block {}: their means differ by {} times the spread \
             within a set, and the difference tells a harmful prompt from a harmless one {} of the time.",
            best.block,
            number(best.signal_to_noise),
            percent(best.difference_auc)
        ));
    }
    let near = match analysis.coincide_from {
        Some(block) => {
            format!("from block {block} on the largest variation of all prompts is that difference")
        }
        None => "nowhere to the last block is the largest variation of all prompts that difference".into(),
    };
    findings.push(format!(
        "By |cos| ≥ {} between the first principal component and the difference in means, {near}.",
        number(analysis.coincide_at)
    ));
    if let (Some(first), Some(last)) = (blocks.first(), blocks.last()) {
        findings.push(format!(
            "The difference in means grows from a length of {} at block {} to {} at block {}.",
            number(first.difference_norm),
            first.block,
            number(last.difference_norm),
            last.block
        ));
    }
    findings
}

/// Figures by block; a rule at the direction's.
fn plots(id: &str, block: Option<usize>, blocks: &[BlockAnalysis]) -> Vec<Plot> {
    let lines = |name: &str, title: &str, caption: &str, y: &str, range, series: &[Line]| {
        let series = series.iter().map(|(name, value)| Series {
            name: (*name).into(),
            kind: Kind::Lines,
            points: blocks
                .iter()
                .map(|b| {
                    (b.block as f64, value(b), format!("block {}\n{name} {}", b.block, number(value(b))))
                })
                .collect(),
        });
        Xy {
            id: format!("{id}-{name}"),
            title: title.into(),
            caption: caption.into(),
            x: "block (its output)".into(),
            y: y.into(),
            whole: true,
            y_range: range,
            from_zero: true,
            mark_x: block.map(|il| il as f64),
            series: series.collect(),
        }
        .draw()
    };
    vec![
        lines(
            "separation",
            "Separation by block",
            "How often a harmful prompt lies beyond a harmless one (AUC): along the first component, which knows no labels, \
             and along the difference in means, each half of the prompts by the difference of the other. 0.5 is chance.",
            "AUC",
            Some((0.0, 1.02)),
            &[("along PC1", |b| b.pc1_auc), ("along the difference", |b| b.difference_auc)],
        ),
        lines(
            "cosine",
            "PC1 and the difference in means",
            "|cos| between the two, and the share of all variance along PC1. Where the cosine is near 1, the contrast is the \
             largest variation there is.",
            "|cos|, share",
            Some((0.0, 1.02)),
            &[("|cos|", |b| b.pc1_cosine), ("variance along PC1", |b| b.pc1_variance)],
        ),
        lines(
            "norms",
            "Norms by block",
            "Lengths of the two sets' means and of their difference.",
            "length",
            None,
            &[
                ("harmful mean", |b| b.harmful_norm),
                ("harmless mean", |b| b.harmless_norm),
                ("difference", |b| b.difference_norm),
            ],
        ),
        lines(
            "noise",
            "Signal to noise by block",
            "Length of the difference in means over the spread of the sets about their own means along it.",
            "signal to noise",
            None,
            &[("signal to noise", |b| b.signal_to_noise)],
        ),
    ]
}

fn values(id: &str, blocks: &[BlockAnalysis]) -> Table {
    let rows = blocks.iter().map(|b| {
        vec![
            b.block.to_string(),
            percent(b.pc1_variance),
            number(b.pc1_auc),
            number(b.pc1_cosine),
            number(b.difference_auc),
            number(b.harmful_norm),
            number(b.harmless_norm),
            number(b.difference_norm),
            number(b.signal_to_noise),
        ]
    });
    let header = [
        "block",
        "PC1 variance",
        "PC1 AUC",
        "|cos|",
        "difference AUC",
        "harmful norm",
        "harmless norm",
        "difference norm",
        "signal to noise",
    ];
    let mut values = table(format!("{id}-blocks"), "Values by block", &header, 0, rows);
    values.folded = true;
    values
}

type Line = (&'static str, fn(&BlockAnalysis) -> f64);

fn scatter(id: &str, scatter: &Scatter, block: &BlockAnalysis) -> Plot {
    let series = |name: &str, kind, points: &Points| Series {
        name: name.into(),
        kind,
        points: (points.pc1.iter().zip(&points.pc2))
            .map(|(x, y)| (*x, *y, format!("{name}\nPC1 {}, PC2 {}", number(*x), number(*y))))
            .collect(),
    };
    let mut all = vec![
        series("harmful", Kind::Points, &scatter.harmful),
        series("harmless", Kind::Points, &scatter.harmless),
    ];
    all.extend(
        scatter.ablated.as_ref().map(|points| series("harmful, direction erased", Kind::Hollow, points)),
    );
    Xy {
        // Ordered as the blocks are, also by name.
        id: format!("{id}-scatter-{:03}", scatter.block),
        title: format!("Block {}", scatter.block),
        caption: format!(
            "Each mark is a prompt. PC1 holds {} of the variance and PC2 {}; along PC1 a harmful prompt lies beyond a \
             harmless one {} of the time, and its |cos| with the difference in means is {}.",
            percent(block.pc1_variance),
            percent(scatter.pc2_variance),
            percent(block.pc1_auc),
            number(block.pc1_cosine)
        ),
        x: "first principal component".into(),
        y: "second principal component".into(),
        series: all,
        ..Xy::default()
    }
    .draw()
}
