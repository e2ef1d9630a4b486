//! Random directions in place of measured ones: what an intervention of the same size does that means
//! nothing.

#![forbid(unsafe_code)]

use crate::intervention::{Addition, Basis, Error, Intervention, dot};
use crate::random::SplitMix64;

/// `intervention` with every direction replaced by a random one: as many erased, the same length added at the
/// same place.
///
/// # Errors
/// As [`Basis::new`]; not met with in practice.
pub fn control(intervention: &Intervention, seed: u64) -> Result<Intervention, Error> {
    let mut random = SplitMix64(seed);
    let erased: Vec<Vec<f32>> =
        intervention.ablate.vectors().iter().map(|v| direction(v.len(), &mut random)).collect();
    let add = intervention.add.iter().map(|addition| {
        let vector = direction(addition.vector.len(), &mut random);
        let scale = (dot(&addition.vector, &addition.vector) / dot(&vector, &vector)).sqrt() as f32;
        let vector = vector.iter().map(|x| x * scale).collect();
        Addition { vector, ..*addition }
    });
    let add = add.collect();
    let project = intervention.project.iter().map(|p| p.along(&direction(p.unit().len(), &mut random)));
    Ok(Intervention { ablate: Basis::new(&erased)?, project: project.collect::<Result<_, _>>()?, add })
}

/// `n_embd` numbers, spread evenly over directions.
fn direction(n_embd: usize, random: &mut SplitMix64) -> Vec<f32> {
    // Sums of uniform numbers are near enough to Gaussian for an even spread over the sphere.
    (0..n_embd).map(|_| (0..12).map(|_| random.unit() - 0.5).sum::<f64>() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::{Positions, Projection};

    fn length(v: &[f32]) -> f64 {
        dot(v, v).sqrt()
    }

    #[test]
    fn it_has_the_size_and_the_place_and_another_direction() {
        let v: Vec<f32> = (0..256).map(|i| (i % 7) as f32 - 3.0).collect();
        let w: Vec<f32> = (0..256).map(|i| (i % 5) as f32).collect();
        let added = Intervention::add(3, &v, 0.7, Positions::Prompt).unwrap();
        let random = control(&added, 1).unwrap();
        let (ours, theirs) = (&added.add[0], &random.add[0]);
        assert!((length(&ours.vector) / length(&theirs.vector) - 1.0).abs() < 1e-6);
        assert_eq!((theirs.block, theirs.positions), (3, Positions::Prompt));
        let cosine = dot(&ours.vector, &theirs.vector) / (length(&ours.vector) * length(&theirs.vector));
        assert!(cosine.abs() < 0.25, "{cosine}");
        assert!(random.ablate.is_empty());

        let erased = Intervention::ablate(&[&v, &w]).unwrap();
        assert_eq!(control(&erased, 1).unwrap().ablate.vectors().len(), 2);
        assert_eq!(control(&erased, 1), control(&erased, 1));
        assert_ne!(control(&erased, 1), control(&erased, 2));

        let capped = Projection::new(&v).unwrap().center(2.0).blocks(3..5);
        let random = control(&Intervention { project: vec![capped.clone()], ..Intervention::default() }, 1);
        let random = random.unwrap().project.remove(0);
        assert!(dot(random.unit(), capped.unit()).abs() < 0.25);
        assert_eq!(random.along(&v), Ok(capped), "the same but for the direction");
    }
}
