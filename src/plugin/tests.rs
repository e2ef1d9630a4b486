//! The state machine, on graphs that are made up node by node.
#![allow(unsafe_code)]

use super::linked::Linked;
use super::slot::{Node, Reach, Slot, Work};
use super::state::{Glance, Plan, Start};
use super::{Error, Phase, trampoline};
use crate::intervention::{Intervention, Positions, Projection};
use crate::runtime::stream::{Place, numbered};
use crate::runtime::{HookError, Probe};
use crate::unwind::tests::{WORDS, armed};
use std::sync::Arc;

/// A node with rows of 2; `panics` is what its rows are reached with.
struct Made {
    name: &'static str,
    rows: Vec<f32>,
    panics: bool,
}

struct Fake;

fn made<'a>(t: Node) -> &'a mut Made {
    // SAFETY: `run` passes the address of one that it owns, and touches it only before and after.
    unsafe { &mut *t.cast::<Made>() }
}

impl Reach for Fake {
    type Follow = usize;

    unsafe fn glance(&self, t: Node) -> Glance {
        let start = match made(t).name {
            "embd" => Start::Yes,
            "scaled" => Start::Perhaps,
            _ => Start::No,
        };
        Glance { start, block_output: numbered(made(t).name.as_bytes(), b"l_out-") }
    }

    unsafe fn place(&self, blocks: &mut usize, t: Node) -> Result<Place, Error> {
        let block_output = numbered(made(t).name.as_bytes(), b"l_out-");
        let place = Place { on_stream: true, writes: true, block: *blocks, block_output, ..Place::default() };
        *blocks += usize::from(block_output.is_some());
        Ok(place)
    }

    unsafe fn name(&self, t: Node) -> String {
        made(t).name.into()
    }

    unsafe fn edit(&self, t: Node, _: &mut Vec<f32>, work: &mut Work<'_>) -> Result<(), Error> {
        assert!(!made(t).panics, "not today");
        work(2, &mut made(t).rows).map(|_| ())
    }
}

/// A slot for models of 2 blocks, 2 wide, in which the first element is erased.
fn slot() -> Slot<Fake> {
    let slot = Slot::new(Fake, 2, 2);
    slot.state().plan = plan(Intervention::ablate(&[[1.0, 0.0]]).unwrap());
    slot
}

fn plan(intervention: Intervention) -> Arc<Plan> {
    Arc::new(Plan { intervention, probes: Vec::new() })
}

/// Runs nodes of 3 rows as the scheduler does, `!` behind a name for one that panics, `:N` for one of N rows; gives the
/// first elements of the first rows.
fn run(slot: &Slot<Fake>, nodes: &[&'static str]) -> Vec<f32> {
    let one = |node: &&'static str| {
        let (name, rows) = node.split_once(':').unwrap_or((node, "3"));
        let rows = [5.0, 1.0].repeat(rows.parse().unwrap());
        let mut node = Made { name: name.trim_end_matches('!'), rows, panics: name.ends_with('!') };
        let t: Node = (&raw mut node).cast();
        // SAFETY: the node lives, and nobody else has it.
        unsafe {
            if slot.call(t, true) {
                assert!(slot.call(t, false), "a graph is never stopped");
            }
        }
        node.rows.first().copied().unwrap_or_default()
    };
    nodes.iter().map(one).collect()
}

const WHOLE: [&str; 4] = ["embd", "middle", "l_out-0", "l_out-1"];

#[test]
fn a_whole_graph_is_steered_and_what_comes_behind_it_is_not() {
    let slot = slot();
    for graphs in 1..3 {
        assert_eq!(run(&slot, &WHOLE), [0.0; 4]);
        assert_eq!(run(&slot, &["norm", "result"]), [5.0; 2]);
        assert!(slot.state().verdict().is_ok());
        assert_eq!(slot.state().steered, graphs);
    }
}

#[test]
fn a_panic_stays_within_and_is_told_once() {
    let slot = slot();
    assert_eq!(run(&slot, &["embd", "middle!", "l_out-0", "l_out-1"]), [0.0, 5.0, 5.0, 5.0]);
    let error = slot.state().verdict().unwrap_err();
    assert!(matches!(&error, Error::Hook(HookError::Panic(words)) if words == "not today"), "{error}");
    assert!(slot.state().verdict().is_ok());
    assert_eq!(run(&slot, &WHOLE), [0.0; 4]);
    assert!(slot.state().verdict().is_ok());
}

#[test]
fn a_panic_in_the_callback_of_linked_contexts_stops_no_graph() {
    let slot = Slot::new(Linked, 1, 2);
    for ask in [true, false] {
        let data = (&raw const slot).cast_mut().cast();
        // SAFETY: the slot lives, and the node is not looked at.
        let answer = armed(|| unsafe { trampoline(std::ptr::null_mut(), ask, data) });
        assert_eq!(answer, !ask);
        let error = slot.state().verdict().unwrap_err();
        assert!(matches!(&error, Error::Hook(HookError::Panic(words)) if words == WORDS), "{error}");
    }
}

#[test]
fn graphs_that_end_or_begin_otherwise_are_found_out() {
    let verdict = |nodes: &[&'static str]| {
        let slot = slot();
        run(&slot, nodes);
        let verdict = slot.state().verdict();
        verdict.map_err(|e| e.to_string()).err().unwrap_or_default()
    };
    let ended = |block| {
        format!("a batch ended before block {block}: its decode failed, or the context is of another model")
    };
    assert_eq!(verdict(&["embd"]), ended(0));
    assert_eq!(verdict(&["embd", "l_out-0", "embd", "l_out-0", "l_out-1"]), ended(1));
    let no_embedding = HookError::NoEmbedding.to_string();
    assert_eq!(verdict(&["l_out-0"]), no_embedding);
    assert_eq!(verdict(&["embd", "l_out-0", "l_out-1", "l_out-0"]), no_embedding);
    assert_eq!(verdict(&["embd", "l_out-1"]), HookError::BlockNotSeen { block: 0 }.to_string());
    assert_eq!(verdict(&["embd", "l_out-0", "l_out-0"]), HookError::BlockNotSeen { block: 1 }.to_string());
    // A scaled embedding begins a graph, or goes on with one, once.
    assert_eq!(verdict(&["scaled", "l_out-0", "l_out-1", "scaled", "l_out-0", "l_out-1"]), "");
    assert_eq!(
        verdict(&["embd", "scaled", "l_out-0", "l_out-1", "embd", "scaled", "l_out-0", "l_out-1"]),
        ""
    );
    assert_eq!(verdict(&["scaled", "scaled", "l_out-0", "l_out-1"]), ended(0));
    // The last block may have cut rows, once.
    assert_eq!(verdict(&["embd", "l_out-0", "middle:1", "l_out-1:1"]), "");
    assert_eq!(verdict(&["embd", "l_out-0", "l_out-1:0"]), "");
    assert!(verdict(&["embd", "l_out-0", "middle:1", "l_out-1:2"]).contains("found 2"));
    assert!(verdict(&["embd", "l_out-0:4"]).contains("found 4"));
}

#[test]
fn what_changes_within_a_graph_is_for_the_next() {
    let slot = slot();
    run(&slot, &WHOLE[..2]);
    slot.state().attached = false;
    assert_eq!(run(&slot, &WHOLE[2..]), [0.0; 2]);
    assert_eq!(run(&slot, &WHOLE[..2]), [5.0; 2]);
    slot.state().attached = true;
    assert_eq!(run(&slot, &WHOLE[2..]), [5.0; 2]);
    assert_eq!(run(&slot, &WHOLE), [0.0; 4]);

    let generated = Projection::new(&[1.0, 0.0]).unwrap().positions(Positions::Generated);
    let generated = Intervention { project: vec![generated], ..Intervention::default() };
    slot.state().plan = plan(generated);
    slot.state().phase = Some(Phase::Prompt);
    run(&slot, &WHOLE[..2]);
    slot.state().phase = Some(Phase::Generated);
    assert_eq!(run(&slot, &WHOLE[2..]), [5.0; 2], "still the prompt's");
    assert_eq!(run(&slot, &WHOLE), [0.0; 4]);
    assert!(slot.state().verdict().is_ok());
}

#[test]
fn readings_that_nobody_takes_end_in_an_error() {
    let slot = Slot::new(Fake, 2, 2);
    let probe = Probe { block: 0, vector: vec![1.0, 0.0] };
    slot.state().plan = Arc::new(Plan { probes: vec![(7, probe)], ..Plan::default() });
    let large = ["embd", "l_out-0:3000000", "l_out-1"];
    run(&slot, &large);
    assert!(slot.state().verdict().is_ok());
    run(&slot, &large);
    assert!(matches!(slot.state().verdict(), Err(Error::Unread { .. })));
    let taken = slot.state().take_readings();
    assert_eq!((taken.len(), taken[0].probe, taken[0].values.len()), (1, 7, 3_000_000));
    run(&slot, &large);
    assert!(slot.state().verdict().is_ok());
}
