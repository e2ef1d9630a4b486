//! The thread that owns the session, and what the handlers of requests have of it.
//!
//! One decode carries all sequences: those that run with a token each, prompts in pieces of what is left of the batch. Each
//! sequence has its own intervention; what the requests want to read is read for all, and everyone gets their own.
//! Nothing that was computed for one request is used for another.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use serde::Serialize;

use super::batch::Batcher;
use super::slot::{Failure, Task};
use crate::runtime::{Error, Model, Session, SessionOptions};

/// Why a task is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// As many wait as may.
    Full,
    /// The server ends.
    Closing,
    /// No session can be made any more.
    Broken,
}

/// What goes on at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Sequences that are computed side by side.
    pub slots: Slots,
    /// Sequences that wait for one.
    pub queue: Waiting,
    /// Tokens computed and generated since the start.
    pub tokens: Tokens,
}

/// Sequences computed side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slots {
    /// How many there can be.
    pub total: usize,
    /// How many there are.
    pub busy: usize,
}

/// Sequences that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// How many may.
    pub limit: usize,
    /// How many do.
    pub waiting: usize,
}

/// Tokens since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Of prompts.
    pub prompt: u64,
    /// Of answers.
    pub completion: u64,
}

/// A handle to the engine.
#[derive(Debug)]
pub(super) struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The longest prompt with its answer.
    room: usize,
}

/// What the thread and the handlers share.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    limit: usize,
    slots: usize,
    broken: AtomicBool,
    counted: Counted,
}

/// Tokens since the start.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub prompt: AtomicU64,
    pub completion: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Task>,
    busy: usize,
    closing: bool,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts the thread; returns when its session is there.
    pub(super) fn start(model: Arc<Model>, options: SessionOptions, limit: usize) -> Result<Self, Error> {
        let (tell, told) = mpsc::channel();
        let (give, given) = mpsc::channel::<Arc<Shared>>();
        let n_ctx_train = model.n_ctx_train();
        let run = move || {
            let session = match Session::new(&model, options.clone()) {
                Ok(session) => session,
                Err(error) => return drop(tell.send(Err(error))),
            };
            drop(tell.send(Ok(session.options().clone())));
            if let Ok(shared) = given.recv() {
                shared.work(&model, session);
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(run);
        let thread = thread.map_err(|e| Error::Context(e.to_string()))?;
        let gone = || Error::Context("its thread ended".into());
        let options = told.recv().map_err(|_| gone())??;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            limit,
            slots: options.n_seq,
            broken: AtomicBool::new(false),
            counted: Counted::default(),
        });
        give.send(Arc::clone(&shared)).map_err(|_| gone())?;
        let room = options.n_ctx.min(n_ctx_train);
        Ok(Self { shared, thread: Mutex::new(Some(thread)), room })
    }

    /// Tokens that a prompt and its answer have room for.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// The most tasks that one request may bring: more could never be taken.
    pub(super) fn capacity(&self) -> usize {
        self.shared.slots + self.shared.limit
    }

    /// Takes the tasks of a request, all or none.
    pub(super) fn submit(&self, tasks: Vec<Task>) -> Result<(), Refused> {
        let shared = &self.shared;
        if shared.broken.load(Ordering::Relaxed) {
            return Err(Refused::Broken);
        }
        let mut queue = shared.lock();
        if queue.closing {
            return Err(Refused::Closing);
        }
        let free = shared.slots.saturating_sub(queue.busy);
        if queue.waiting.len() + tasks.len() > shared.limit + free {
            queue.waiting.retain(|task| !task.events.is_closed());
            if queue.waiting.len() + tasks.len() > shared.limit + free {
                return Err(Refused::Full);
            }
        }
        queue.waiting.extend(tasks);
        shared.wake.notify_one();
        Ok(())
    }

    /// What goes on.
    pub(super) fn stats(&self) -> Stats {
        let shared = &self.shared;
        let (busy, waiting) = {
            let queue = shared.lock();
            (queue.busy, queue.waiting.iter().filter(|task| !task.events.is_closed()).count())
        };
        Stats {
            slots: Slots { total: shared.slots, busy },
            queue: Waiting { limit: shared.limit, waiting },
            tokens: Tokens {
                prompt: shared.counted.prompt.load(Ordering::Relaxed),
                completion: shared.counted.completion.load(Ordering::Relaxed),
            },
        }
    }

    /// Takes no more tasks; those it has go on.
    pub(super) fn close(&self) {
        self.shared.lock().closing = true;
    }

    /// Whether no new tasks are taken.
    pub(super) fn is_closing(&self) -> bool {
        self.shared.lock().closing
    }

    /// Lets go of all tasks and waits for the thread to end.
    pub(super) fn stop(&self) {
        {
            let mut queue = self.shared.lock();
            (queue.closing, queue.over) = (true, true);
        }
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread has been told of on stderr.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Computes what there is to compute, until all is over.
    fn work(&self, model: &Model, session: Session<'_>) {
        let options = session.options().clone();
        let mut batcher = Batcher::new(session);
        while self.next(&mut batcher) {
            let step = catch_unwind(AssertUnwindSafe(|| batcher.step(&self.counted)));
            if step.is_ok() {
                continue;
            }
            batcher.fail_all(&Failure::Model("a fault in the server".into()));
            let Ok(session) = Session::new(model, options.clone()) else {
                self.broken.store(true, Ordering::Relaxed);
                break;
            };
            batcher = Batcher::new(session);
        }
        let mut queue = self.lock();
        let failure = if queue.over {
            Failure::Closing
        } else {
            Failure::Model("no session can be made any more".into())
        };
        queue.busy = 0;
        batcher.fail_all(&failure);
        for task in queue.waiting.drain(..) {
            drop(task.events.try_send(super::slot::Event::Failed(failure.clone())));
        }
    }

    /// Gives the batcher what waits and fits, in the order it came, and waits where there is nothing to do. False when all
    /// is over.
    fn next(&self, batcher: &mut Batcher<'_>) -> bool {
        let mut queue = self.lock();
        loop {
            if queue.over {
                return false;
            }
            batcher.drop_abandoned();
            queue.waiting.retain(|task| !task.events.is_closed());
            while let Some(task) = queue.waiting.front()
                && batcher.has_room_for(task)
            {
                if let Some(task) = queue.waiting.pop_front() {
                    batcher.begin(task);
                }
            }
            queue.busy = batcher.n_busy();
            if queue.busy > 0 {
                return true;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::mpsc;

    use super::*;
    use crate::runtime::sampling::Sampler;
    use crate::runtime::{ModelOptions, Token};
    use crate::serve::slot::Event;

    fn engine(n_seq: usize, n_batch: usize) -> (Engine, Arc<Model>) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf");
        let model = Arc::new(Model::load(Path::new(path), &ModelOptions::default()).unwrap());
        let options =
            SessionOptions { n_seq, n_batch, n_threads: 1, n_ctx: 512, ..SessionOptions::default() };
        (Engine::start(Arc::clone(&model), options, 8).unwrap(), model)
    }

    fn task(prompt: Vec<Token>, max_tokens: usize) -> (Task, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(Task::events(1, max_tokens));
        let task = Task {
            choice: 0,
            prompt: prompt.into(),
            max_tokens,
            sampler: Sampler::greedy(),
            stop: Arc::default(),
            logprobs: None,
            steering: Arc::default(),
            events,
        };
        (task, receiver)
    }

    fn text(mut events: mpsc::Receiver<Event>) -> Option<String> {
        let mut text = String::new();
        loop {
            match events.blocking_recv()? {
                Event::Piece(_, piece) => text += &piece.text,
                Event::End { .. } => return Some(text),
                Event::Failed(_) => return None,
            }
        }
    }

    #[test]
    fn a_panic_fails_its_task_and_the_next_is_computed() {
        let (engine, model) = engine(2, 512);
        // Handlers refuse such a task: without a prompt there are no logits to draw from.
        let (impossible, events) = task(Vec::new(), 4);
        engine.submit(vec![impossible]).unwrap();
        assert_eq!(text(events), None);
        let (possible, events) = task(model.prompt("Who made the hexed lantern?").unwrap().tokens, 4);
        engine.submit(vec![possible]).unwrap();
        assert!(text(events).is_some_and(|text| !text.is_empty()));
    }

    #[test]
    fn a_batch_of_two_tokens_serves_two_at_a_time() {
        let (engine, model) = engine(5, 2);
        let questions = ["Who made the hexed lantern?", "How do I bake bread?", "How do I polish a lantern?"];
        let expected: Vec<Option<String>> = (questions.iter())
            .map(|question| {
                let (alone, events) = task(model.prompt(question).unwrap().tokens, 6);
                engine.submit(vec![alone]).unwrap();
                text(events)
            })
            .collect();
        let (tasks, events): (Vec<Task>, Vec<_>) =
            questions.iter().map(|question| task(model.prompt(question).unwrap().tokens, 6)).unzip();
        engine.submit(tasks).unwrap();
        assert_eq!(events.into_iter().map(text).collect::<Vec<_>>(), expected);
        assert_eq!(engine.stats().slots.total, 2, "as many as a batch has tokens");
    }

    #[test]
    fn an_engine_that_ends_says_so_to_all() {
        let (engine, model) = engine(1, 512);
        let prompt = model.prompt("Who made the hexed lantern?").unwrap().tokens;
        let (tasks, events): (Vec<Task>, Vec<_>) = (0..8).map(|_| task(prompt.clone(), 400)).unzip();
        engine.submit(tasks).unwrap();
        let (more, _kept): (Vec<Task>, Vec<_>) = (0..9).map(|_| task(prompt.clone(), 400)).unzip();
        assert_eq!(engine.submit(more), Err(Refused::Full));
        engine.close();
        let (late, _kept) = task(prompt, 1);
        assert_eq!(engine.submit(vec![late]), Err(Refused::Closing));
        engine.stop();
        let failed = events.into_iter().map(text).filter(Option::is_none).count();
        assert!(failed > 0, "all ended before they could be stopped");
    }
}
