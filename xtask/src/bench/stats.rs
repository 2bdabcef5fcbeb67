//! Values of a measurement and what they come to.

use std::collections::BTreeMap;

use serde::Serialize;

/// The values of one measurement, by round.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What was measured.
    pub name: String,
    /// The unit of the values.
    pub unit: String,
    /// One value per round; a round in which it failed has none.
    pub values: BTreeMap<usize, f64>,
}

/// Takes a value into the series of its name, which is made when it is the first.
pub fn add(all: &mut Vec<Series>, name: String, unit: String, round: usize, value: f64) {
    match all.iter_mut().find(|series| series.name == name) {
        Some(series) => {
            series.values.insert(round, value);
        }
        None => all.push(Series { name, unit, values: BTreeMap::from([(round, value)]) }),
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
pub fn ratios(of: &BTreeMap<usize, f64>, to: &BTreeMap<usize, f64>) -> BTreeMap<usize, f64> {
    of.iter()
        .filter_map(|(round, of)| Some((*round, of / to.get(round)?)))
        .filter(|(_, ratio)| ratio.is_finite())
        .collect()
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
        let rounds = |values: &[(usize, f64)]| values.iter().copied().collect::<BTreeMap<_, _>>();
        assert_eq!(
            ratios(&rounds(&[(1, 2.0), (2, 9.0)]), &rounds(&[(1, 1.0), (2, 3.0)])),
            rounds(&[(1, 2.0), (2, 3.0)])
        );
        assert_eq!(ratios(&rounds(&[(1, 2.0), (2, 9.0)]), &rounds(&[(1, 0.0), (2, 3.0)])), rounds(&[(2, 3.0)]));
        assert_eq!(ratios(&rounds(&[(1, 2.0), (3, 8.0)]), &rounds(&[(2, 1.0), (3, 4.0)])), rounds(&[(3, 2.0)]));
    }

    #[test]
    fn values_go_to_the_series_of_their_name() {
        let mut all = Vec::new();
        for (name, round, value) in [("a", 1, 1.0), ("b", 1, 5.0), ("a", 2, 2.0)] {
            add(&mut all, name.to_owned(), "ms".to_owned(), round, value);
        }
        let of = |name: &str, values: &[(usize, f64)]| Series {
            name: name.to_owned(),
            unit: "ms".to_owned(),
            values: values.iter().copied().collect(),
        };
        assert_eq!(all, [of("a", &[(1, 1.0), (2, 2.0)]), of("b", &[(1, 5.0)])]);
    }
}
