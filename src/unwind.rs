//! Panics stay on this side of C: whatever C calls does its work in [`caught`].
//!
//! A panic that reached a function of C's would end the program at once, with outputs half written. The tests know every
//! such function from the sources, and throw in each.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` gives, or the words of its panic. What it has borrowed must make sense half changed.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(test)]
        tests::throw();
        work()
    }));
    outcome.map_err(|panic| match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(panic) => {
            if let Some(words) = panic.downcast_ref::<&str>() {
                return (*words).to_owned();
            }
            // Whatever else was thrown may panic again as it is dropped.
            std::mem::forget(panic);
            "no message".into()
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs;
    use std::path::Path;

    /// What is thrown, and what is told of it.
    pub(crate) const WORDS: &str = "thrown by a test";

    thread_local! {
        static ARMED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn throw() {
        assert!(!ARMED.replace(false), "{WORDS}");
    }

    /// Runs `call`, on this thread, with a panic in the first [`caught`] that it comes to; it must come to one.
    pub(crate) fn armed<T>(call: impl FnOnce() -> T) -> T {
        ARMED.set(true);
        let result = call();
        assert!(!ARMED.replace(false), "it catches nothing");
        result
    }

    #[test]
    fn every_kind_of_panic_is_told() {
        struct Again;
        impl Drop for Again {
            fn drop(&mut self) {
                panic!("while it is dropped");
            }
        }
        assert_eq!(caught(|| 7), Ok(7));
        assert_eq!(armed(|| caught(|| 7)), Err(WORDS.into()));
        assert_eq!(caught(|| panic!("as it is")), Err::<(), _>("as it is".into()));
        assert_eq!(caught(|| std::panic::panic_any(Again)), Err::<(), _>("no message".into()));
    }

    /// Functions with C's calling convention in a source: name and body.
    fn functions(source: &str) -> Vec<(&str, &str)> {
        let heads = source.split("extern \"C\" fn ").skip(1);
        heads
            .filter_map(|rest| {
                let name = rest.split(['(', '<']).next().filter(|name| !name.is_empty())?;
                Some((name, rest.split_once("{\n")?.1.split("\n}").next()?))
            })
            .collect()
    }

    fn sources(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "of the sources alone")]
    fn every_function_that_c_calls_catches_panics_and_is_tried() {
        // Without work to do: a constant. And what stands for C itself.
        const NEVER: [&str; 2] = ["ggsteer_version", "decode"];
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let all: Vec<_> = files.iter().flat_map(|file| functions(file)).collect();
        assert!(all.len() > 20, "{all:?}");
        for (name, body) in all.into_iter().filter(|(name, _)| !NEVER.contains(name)) {
            let catches = ["caught(", "guarded(", "code(", "slot.call("].iter().any(|c| body.contains(c));
            assert!(catches, "{name} catches nothing");
            let tried = files.iter().flat_map(|file| file.split("armed(").skip(1)).any(|call| {
                let call = call.split(';').next().unwrap_or_default();
                call.contains(&format!("{name}("))
            });
            assert!(tried, "{name} is called by no test that throws in it");
        }
    }
}
