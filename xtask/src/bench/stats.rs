//! Values of a measurement and what they come to.

use serde::Serialize;

use super::{Measure, Target};

/// The values of one measurement, in the order of the rounds.
pub struct Series {
    /// What was measured.
    pub name: &'static str,
    /// The unit of the values.
    pub unit: &'static str,
    /// What their median should be.
    pub target: Option<Target>,
    /// One value per round.
    pub values: Vec<f64>,
}

impl Series {
    /// No values yet.
    pub fn new(measure: &Measure) -> Self {
        Self { name: measure.name, unit: measure.unit, target: measure.at_most.map(Target::AtMost), values: Vec::new() }
    }
}

/// What values come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Half of the values are below.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Summary {
    /// What these values come to; `None` without values or with one that is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        (least.is_finite() && most.is_finite()).then_some(Self { median, least, most })
    }
}

/// The rounds' ratios of two series; a round that lacks one of them, or divides by zero, has none.
pub fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).filter(|ratio| ratio.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        for (values, wanted) in [
            (vec![3.0, 1.0, 2.0], Some((2.0, 1.0, 3.0))),
            (vec![4.0, 1.0], Some((2.5, 1.0, 4.0))),
            (vec![7.0], Some((7.0, 7.0, 7.0))),
            (vec![], None),
            (vec![1.0, f64::NAN], None),
            (vec![1.0, f64::INFINITY], None),
        ] {
            let wanted = wanted.map(|(median, least, most)| Summary { median, least, most });
            assert_eq!(Summary::of(&values), wanted, "{values:?}");
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
        assert_eq!(ratios(&[2.0, 9.0], &[0.0, 3.0]), [3.0]);
        assert_eq!(ratios(&[2.0], &[]), Vec::<f64>::new());
    }
}
