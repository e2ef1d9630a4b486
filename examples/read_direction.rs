//! What a direction file says of itself, and how two directions lie to each other: `read_direction A.gguf [B.gguf]`.

use std::path::Path;

use anyhow::Result;
use ggsteer::direction::Direction;
use ggsteer::intervention::cosine;

/// A line on each, and one on both.
///
/// # Errors
/// The library's: each names the file and what is wrong with it.
pub fn run(paths: &[&Path]) -> Result<Vec<String>> {
    let directions: Vec<Direction> =
        paths.iter().map(|path| Direction::load(path, None)).collect::<Result<_, _>>()?;
    let mut lines: Vec<String> = (directions.iter())
        .map(|d| {
            let position = d.meta.position.map_or("unknown".into(), |p| p.to_string());
            format!(
                "output of block {}, position {position}, length {:.2}, {} wide",
                d.block,
                d.norm(),
                d.vector.len()
            )
        })
        .collect();
    if let [first, second] = &directions[..] {
        lines.push(format!("cosine {:.4}", cosine(&first.vector, &second.vector)));
    }
    Ok(lines)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let paths: Vec<&Path> = words.iter().map(Path::new).collect();
    for line in run(&paths)? {
        println!("{line}");
    }
    Ok(())
}
