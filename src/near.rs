//! Names that come near a mistaken one.

use std::path::Path;

/// The name that comes nearest to `word`, if one comes near enough to have been meant; case does not count.
#[must_use]
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let likeness = |name: &str| strsim::jaro_winkler(&word, &name.to_lowercase());
    let near = names.into_iter().map(|name| (name, likeness(name))).filter(|(_, likeness)| *likeness >= 0.8);
    near.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name)
}

/// `; did you mean NAME?` to end an error with, or nothing where no name comes near.
#[must_use]
pub fn did_you_mean<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, names).map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// The same for a file that is not there, by what lies in its folder; says so where the folder is missing.
#[must_use]
pub fn did_you_mean_file(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("; there is no folder {}", folder.display());
    };
    let names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let word = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let near = nearest(&word, names.iter().map(String::as_str));
    near.map(|name| format!("; did you mean {}?", path.with_file_name(name).display())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let names = ["threads", "batch", "chat-template", "gpu-layers"];
        assert_eq!(nearest("treads", names), Some("threads"));
        assert_eq!(nearest("Chat_Template", names), Some("chat-template"));
        assert_eq!(nearest("gpulayers", names), Some("gpu-layers"));
        assert_eq!(nearest("window", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(did_you_mean("bach", names), "; did you mean batch?");
        assert_eq!(did_you_mean("window", names), "");
    }

    #[test]
    fn a_missing_file_is_compared_with_its_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model-q4_k_m.gguf"), b"").unwrap();
        let words = did_you_mean_file(&folder.path().join("model-q4km.gguf"));
        assert!(words.ends_with("model-q4_k_m.gguf?"), "{words}");
        assert_eq!(did_you_mean_file(&folder.path().join("xyz")), "");
        let words = did_you_mean_file(&folder.path().join("nowhere/model.gguf"));
        assert!(words.starts_with("; there is no folder "), "{words}");
    }
}
