//! Measures a direction on two prompt sets, chooses it on two others, and asks a question without and with it erased:
//! `find_and_erase MODEL.gguf TRAIN_A TRAIN_B VALIDATION_A VALIDATION_B QUESTION`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use ggsteer::activations::{Contrast, measure, shared_positions};
use ggsteer::direction::Provenance;
use ggsteer::evaluate::refusals::Markers;
use ggsteer::intervention::Intervention;
use ggsteer::prompts::PromptSet;
use ggsteer::runtime::sampling::Sampler;
use ggsteer::runtime::{GenerateOptions, Job, Model, ModelOptions, Prompt, Session, SessionOptions};
use ggsteer::select::race::Race;
use ggsteer::select::{Checkpoint, Request, Rules, select};

/// The answers without and with the direction erased.
///
/// # Errors
/// The library's: each names the file and what is wrong with it.
pub fn run(model: &str, sets: [&str; 4], question: &str, n_threads: usize) -> Result<[String; 2]> {
    let model = Model::load(Path::new(model), &ModelOptions::default())?;
    let mut session = Session::new(&model, SessionOptions { n_threads, ..SessionOptions::default() })?;
    let mut prompts: Vec<Vec<Prompt>> = Vec::new();
    for spec in sets {
        let set = PromptSet::load(spec)?;
        prompts.push(set.prompts.iter().map(|text| model.prompt(text)).collect::<Result<_, _>>()?);
    }

    let n_pos = shared_positions(prompts[0].iter().chain(&prompts[1]));
    let contrast = Contrast {
        harmful: measure(&mut session, &prompts[0], n_pos, None, None, &mut || ())?,
        harmless: measure(&mut session, &prompts[1], n_pos, None, None, &mut || ())?,
        source: Provenance { architecture: Some(model.architecture()), ..Provenance::default() },
    };
    let request = Request {
        contrast: &contrast,
        prompts: [&prompts[2], &prompts[3]],
        refusal_tokens: None,
        markers: &Markers::default(),
        rules: Rules::default(),
        erased: &[],
        race: Some(Race::default()),
        seed: 0,
    };
    let choice = select(&mut session, &request, &mut Checkpoint::none(), &mut ())?;
    let direction = choice.direction(&contrast)?;

    let erased = Some(Arc::new(Intervention::ablate(&[&direction.vector])?));
    let prompt = model.prompt(question)?;
    let jobs = [None, erased].map(|intervention| Job { tokens: &prompt.tokens, n_out: 1, intervention });
    let options = GenerateOptions { max_tokens: 64, sampler: Sampler::greedy() };
    let answers = session.generate(&jobs, &options, &mut |_, _| (), &mut |_, _| ())?;
    Ok([answers[0].text.clone(), answers[1].text.clone()])
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, a, b, c, d, question] = &words[..] else {
        bail!("usage: find_and_erase MODEL.gguf TRAIN_A TRAIN_B VALIDATION_A VALIDATION_B QUESTION");
    };
    let [plain, erased] = run(model, [a, b, c, d], question, 0)?;
    println!("as it is:  {plain}\nerased:    {erased}");
    Ok(())
}
