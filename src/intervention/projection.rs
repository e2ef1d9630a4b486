//! Taking a direction out of the stream in part: some blocks, some positions, one side, or down to a value other than 0.

use std::ops::Range;

use super::{ABLATED, Error, Left, Positions, Write, dot};
use crate::direction::Direction;

/// Which values of r·x − c are moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Side {
    /// All.
    #[default]
    Both,
    /// Those above 0: a ceiling.
    Above,
    /// Those below 0: a floor.
    Below,
}

/// x ← x − α r (r·x − c) after every write to the stream in some blocks, where r·x − c is on the given side.
///
/// With α = 1, c = 0, both sides, all blocks and positions it is the directional ablation of Arditi et al. 2024. Another
/// c, such as the mean of r·x over ordinary prompts, makes it affine: the projection term of Marshall, Scherlis and
/// Belrose 2024, "Refusal in LLMs is an Affine Function" (arXiv:2411.09003). One side alone with α = 1 clamps r·x at c: the
/// activation capping of Lu et al. 2026, "The Assistant Axis" (arXiv:2601.10387, a floor in a range of blocks).
///
/// ```
/// use ggsteer::intervention::{Intervention, Positions, Projection, Side};
///
/// // A ceiling of 2 along the direction, in blocks 3 to 5, while the model answers.
/// let ceiling = Projection::new(&[3.0, 4.0])?.center(2.0).side(Side::Above);
/// let ceiling = ceiling.blocks(3..6).positions(Positions::Generated);
/// let steering = Intervention { project: vec![ceiling], ..Intervention::default() };
/// # assert_eq!(steering.widths().collect::<Vec<_>>(), [2]);
/// # Ok::<(), ggsteer::intervention::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    unit: Vec<f32>,
    center: f32,
    strength: f32,
    side: Side,
    blocks: Range<usize>,
    positions: Positions,
}

impl Projection {
    /// Takes out all that lies along `direction` (`n_embd`, any length), everywhere.
    ///
    /// # Errors
    /// Non-finite elements, a zero vector.
    pub fn new(direction: &[f32]) -> Result<Self, Error> {
        let basis = super::Basis::new(&[direction])?;
        let unit = basis.vectors.into_iter().next().unwrap_or_default();
        let (side, positions) = (Side::default(), Positions::default());
        Ok(Self { unit, center: 0.0, strength: 1.0, side, blocks: 0..usize::MAX, positions })
    }

    /// c, the value that r·x is moved to, along the unit vector. One that is not finite fails where it is used.
    #[must_use]
    pub fn center(mut self, center: f32) -> Self {
        self.center = center;
        self
    }

    /// α, the part of the way that r·x is moved: 1 all of it, 0 none. One that is not finite fails where it is used.
    #[must_use]
    pub fn strength(mut self, strength: f32) -> Self {
        self.strength = strength;
        self
    }

    /// Which side is moved.
    #[must_use]
    pub fn side(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// 0-based blocks at whose writes it acts; the embedding counts as the first write of block 0.
    #[must_use]
    pub fn blocks(mut self, blocks: Range<usize>) -> Self {
        self.blocks = blocks;
        self
    }

    /// Where in the sequence it acts.
    #[must_use]
    pub fn positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// r, the unit vector (`n_embd`).
    #[must_use]
    pub fn unit(&self) -> &[f32] {
        &self.unit
    }

    /// The first block that it acts in.
    #[must_use]
    pub fn first_block(&self) -> usize {
        self.blocks.start
    }

    /// Whether it tells prompts from what is generated.
    pub(super) fn tells_positions(&self) -> bool {
        self.positions != Positions::All
    }

    /// The same along another direction.
    ///
    /// # Errors
    /// As [`Projection::new`].
    pub fn along(&self, direction: &[f32]) -> Result<Self, Error> {
        Ok(Self { unit: Self::new(direction)?.unit, ..self.clone() })
    }

    /// `norm` is ‖x‖ where the outcome is to be checked.
    pub(super) fn apply(&self, x: &mut [f32], at: Write, norm: Option<f64>) -> Result<(), Left> {
        if !self.blocks.contains(&at.block) || !self.positions.include(at.prompt) {
            return Ok(());
        }
        let center = f64::from(self.center);
        let away = dot(&self.unit, x) - center;
        // A NaN is on neither side, and is to be found out.
        let stays = match self.side {
            Side::Both => false,
            Side::Above => away <= 0.0,
            Side::Below => away >= 0.0,
        };
        if stays {
            return Ok(());
        }
        let step = (f64::from(self.strength) * away) as f32;
        x.iter_mut().zip(&self.unit).for_each(|(x, r)| *x -= step * r);
        let Some(norm) = norm else { return Ok(()) };
        let left = (1.0 - f64::from(self.strength)) * away;
        let component = (dot(&self.unit, x) - center - left).abs();
        let done = component <= ABLATED * (norm + center.abs() + left.abs());
        if done { Ok(()) } else { Err(Left { component, norm }) }
    }
}

impl TryFrom<&Direction> for Projection {
    type Error = Error;

    fn try_from(direction: &Direction) -> Result<Self, Error> {
        Self::new(&direction.vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::{Basis, Intervention};
    use proptest::prelude::*;

    const AT: Write = Write { block: 2, output: true, prompt: true };

    fn moved(projection: &Projection, x: &[f32], at: Write) -> Vec<f32> {
        let mut y = x.to_vec();
        Intervention { project: vec![projection.clone()], ..Intervention::default() }
            .apply(&mut y, at)
            .unwrap();
        y
    }

    proptest! {
        #[test]
        fn what_is_beyond_the_centre_goes_there_and_nothing_else_moves(
            r in prop::collection::vec(-3f32..3.0, 19),
            x in prop::collection::vec(-9f32..9.0, 19),
            center in -5f32..5.0,
            strength in 0f32..1.5,
        ) {
            prop_assume!(r.iter().any(|x| x.abs() > 0.1));
            for side in [Side::Both, Side::Above, Side::Below] {
                let p = Projection::new(&r).unwrap().center(center).strength(strength).side(side);
                let away = dot(p.unit(), &x) - f64::from(center);
                let acts = side == Side::Both || (away > 0.0) == (side == Side::Above);
                let y = moved(&p, &x, AT);
                // The formula, in f64.
                for ((y, x), r) in y.iter().zip(&x).zip(p.unit()) {
                    let step = if acts { f64::from(strength) * away * f64::from(*r) } else { 0.0 };
                    prop_assert!((f64::from(*y) - (f64::from(*x) - step)).abs() < 1e-5);
                }
                prop_assert!(acts || y == x);
            }
            let whole = Projection::new(&r).unwrap();
            let mut ablated = x.clone();
            Basis::new(&[&r]).unwrap().ablate(&mut ablated);
            prop_assert_eq!(moved(&whole, &x, AT), ablated, "an ablation to the last bit");
        }
    }

    #[test]
    fn acts_in_its_blocks_and_at_its_positions() {
        let p = Projection::new(&[1.0, 0.0]).unwrap().blocks(2..4).positions(Positions::Generated);
        let x = [3.0, 4.0];
        let acts = |block, prompt| moved(&p, &x, Write { block, output: false, prompt })[0] == 0.0;
        assert_eq!([1, 2, 3, 4].map(|block| acts(block, false)), [false, true, true, false]);
        assert!(!acts(2, true));
        assert_eq!(p.along(&[0.0, 5.0]).unwrap(), Projection { unit: vec![0.0, 1.0], ..p.clone() });
    }

    #[test]
    fn what_is_no_number_is_found_out_on_either_side() {
        for side in [Side::Both, Side::Above, Side::Below] {
            let p = Projection::new(&[1.0, 1.0]).unwrap().side(side);
            assert!(p.apply(&mut [f32::NAN, 1.0], AT, Some(f64::NAN)).is_err());
        }
        for odd in [f32::NAN, f32::INFINITY] {
            let p = Projection::new(&[1.0]).unwrap();
            assert!(p.clone().center(odd).apply(&mut [1.0], AT, Some(1.0)).is_err());
            assert!(p.strength(odd).apply(&mut [1.0], AT, Some(1.0)).is_err());
        }
    }
}
