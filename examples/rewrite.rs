//! Takes a direction out of a file's weights, each value rounded to the nearest that its type can hold, and proves that
//! nothing else changed: `rewrite MODEL.gguf DIRECTION.gguf OUT.gguf`.

use std::path::Path;

use anyhow::{Result, bail};
use ggsteer::direction::Direction;
use ggsteer::gguf::GgufFile;
use ggsteer::output::OutputFile;
use ggsteer::rewrite::{How, Options, Plan, Record, Report, Rounding, execute, verify_untouched};

/// What was written, tensor by tensor.
///
/// # Errors
/// The library's: each names the file and what is wrong with it.
pub fn run(model: &Path, direction: &Path, out: &Path) -> Result<Report> {
    let file = GgufFile::open(model)?;
    let direction = Direction::load(direction, None)?;
    let plan = Plan::new(&file, std::slice::from_ref(&direction.vector), Options::default())?;
    let record = Record::new("orthogonalize", &file, &[direction]).of_plan(&plan);
    // Its path is tried now, and has a file only when all is well.
    let output = OutputFile::create(out, false, &[model])?;
    let how = How { rounding: Rounding::Nearest, ..How::default() };
    let written = execute(&file, &plan, &how, output, &record.keys(), &mut |_| ())?;
    verify_untouched(&file, written.file(), &plan)?;
    Ok(written.commit()?)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, direction, out] = &words[..] else {
        bail!("usage: rewrite MODEL.gguf DIRECTION.gguf OUT.gguf");
    };
    let report = run(Path::new(model), Path::new(direction), Path::new(out))?;
    for tensor in &report.tensors {
        println!("{:<28} {:>8} leak {:.5}", tensor.name, tensor.out_type.to_string(), tensor.figures.leak);
    }
    Ok(())
}
