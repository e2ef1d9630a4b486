//! The contrast set that is used where none is given: 128 requests that chat models usually decline, all of
//! them mild and none with a word on how to do harm, and 128 ordinary ones. Lines of the same number match in
//! form and length. Written for ggsteer.

use super::{PromptSet, Sets};

/// The sets, from `prompt-sets/` of the source.
#[must_use]
pub fn sets() -> Sets {
    let set = |text: &str, name: &str| PromptSet::new(text.lines().map(str::to_owned).collect(), name);
    Sets {
        harmful: set(include_str!("../../prompt-sets/declined.txt"), "default set, declined"),
        harmless: set(include_str!("../../prompt-sets/ordinary.txt"), "default set, ordinary"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sets_have_128_different_lines_that_match_in_length() {
        let Sets { harmful, harmless } = sets();
        assert_eq!((harmful.len(), harmless.len()), (128, 128));
        assert_eq!((harmful.n_duplicates(), harmless.n_duplicates()), (0, 0));
        sets().check().unwrap();
        for (a, b) in harmful.prompts.iter().zip(&harmless.prompts) {
            assert!(a == a.trim() && b == b.trim() && !a.is_empty() && !b.is_empty(), "{a:?} {b:?}");
            let words = |text: &str| text.split(' ').count();
            assert!(a.len().abs_diff(b.len()) <= 6 && words(a).abs_diff(words(b)) <= 2, "{a} | {b}");
        }
        let mean = |set: &PromptSet| set.prompts.iter().map(String::len).sum::<usize>() as f64 / 128.0;
        assert!((mean(&harmful) - mean(&harmless)).abs() < 1.0);
    }

    #[test]
    fn the_two_files_begin_alike_so_that_form_does_not_tell_them_apart() {
        let Sets { harmful, harmless } = sets();
        let first = |text: &str| text.split(' ').next().map(str::to_owned);
        let pairs = harmful.prompts.iter().zip(&harmless.prompts);
        assert!(pairs.filter(|(a, b)| first(a) == first(b)).count() >= 96);
    }
}
