//! One steering, several contexts and threads.

use std::sync::atomic::{AtomicBool, Ordering};

use ggsteer::intervention::Intervention;
use ggsteer::plugin::Steering;
use ggsteer::runtime::Probe;

use crate::exact::tokens;
use crate::rust::{Host, decode, exact, logits};
use crate::support::tiny::{Arch, unit};

#[test]
fn contexts_of_one_steering_decode_on_two_threads_at_once() {
    let host = Host::new(Arch::Llama);
    let r = unit(64, 5);
    let erase = || Intervention::ablate(&[&r]).unwrap();
    let (alone, mut context) = host.steered(64);
    alone.set(erase()).unwrap();
    let expected = logits(&mut context);

    let steering = Steering::new(&host.model);
    steering.set(erase()).unwrap();
    // The same parameters, and a copy of them.
    let params = steering.attach(exact(64)).unwrap();
    let mut contexts = [host.context(params.clone()), host.context(params)];
    std::thread::scope(|scope| {
        for context in &mut contexts {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(logits(context), expected)));
        }
    });
    steering.check().unwrap();
    assert_eq!(steering.n_steered(), 40);
    // And in turns on one thread, which was neither's.
    for context in &mut contexts {
        assert_eq!(logits(context), expected);
    }
    steering.check().unwrap();
}

#[test]
fn what_changes_while_a_context_decodes_is_for_whole_graphs() {
    let host = Host::new(Arch::Llama);
    let r = unit(64, 6);
    let plain = logits(&mut host.context(exact(64)));
    let (steering, mut context) = host.steered(64);
    steering.set(Intervention::ablate(&[&r]).unwrap()).unwrap();
    let erased = logits(&mut context);
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                steering.detach();
                steering.reattach();
            }
        });
        for i in 0..100 {
            let found = logits(&mut context);
            assert!(found == plain || found == erased, "run {i} is neither");
        }
        ends.store(true, Ordering::Relaxed);
    });
    steering.check().unwrap();
}

#[test]
fn more_threads_than_are_remembered_are_served() {
    let host = Host::new(Arch::Llama);
    let (steering, mut context) = host.steered(64);
    steering.read(vec![Probe { block: 2, vector: unit(64, 7) }]).unwrap();
    let tokens = tokens(40);
    for i in 0..150 {
        let context = &mut context;
        let token = [tokens[i % 40]];
        // Each in a thread of its own, as a server's requests.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                context.clear_kv_cache();
                decode(context, &token, 0);
            });
        });
    }
    assert_eq!(steering.readings().unwrap().len(), 150);
}
