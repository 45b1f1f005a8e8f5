//! How well a network does on a set of images.

use crate::data::{Dataset, Loader};
use crate::device::Device;
use crate::graph::{Mode, Program, StateReport};
use crate::models::{BuildOptions, Model};
use crate::tensor::{DType, HostTensor, StateDict};
use crate::{Error, Result};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean cross-entropy, without smoothing.
    pub loss: f64,
    /// Images whose largest logit is that of their label.
    pub correct: usize,
    /// Images.
    pub images: usize,
    /// Images with a logit that is NaN or infinite; none of them counts as recognised.
    pub non_finite: usize,
}

impl Evaluation {
    /// The share of the images that are recognised.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images as f64
    }
}

/// A network compiled for evaluation: running statistics, batches of fixed size.
#[derive(Debug)]
pub struct Evaluator {
    model: Model,
    program: Program,
    batch: usize,
    classes: usize,
    /// The first image of the last run whose logits were not all finite.
    non_finite: Option<HostTensor>,
}

impl Evaluator {
    /// `model` for images of `shape` C, H, W in batches of `batch`; it has no weights yet.
    pub fn new(
        model: &Model,
        shape: [usize; 3],
        classes: usize,
        batch: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let graph = model.build(Mode::Infer, batch, shape, classes, BuildOptions::default())?;
        let program = Program::compile(&graph, device, dtype, None)?;
        Ok(Self { model: model.clone(), program, batch, classes, non_finite: None })
    }

    /// Takes parameters and buffers; fails where they are not the network's.
    pub fn load(&mut self, state: &StateDict) -> Result<StateReport> {
        self.program.load(state)
    }

    /// Loss and accuracy on all of `data`, summed in f64 from the logits; the padding of the last batch does not count.
    /// Fails where `data` does not have the network's classes.
    pub fn run(&mut self, data: &Dataset) -> Result<Evaluation> {
        if data.classes() != self.classes {
            let problem = format!("{} in the network, {} in the data", self.classes, data.classes());
            return Err(Error::invalid("classes", problem));
        }
        let (mut loss, mut correct, mut non_finite) = (0.0, 0, 0);
        self.non_finite = None;
        for batch in Loader::test(data, self.batch)?.in_order() {
            self.program.set_input("input", &batch.input)?;
            self.program.run()?;
            let logits: Vec<f64> = self.program.output("logits")?.to_real();
            let rows = logits.chunks_exact(self.classes).zip(&batch.labels).take(batch.valid).enumerate();
            for (i, (row, &label)) in rows {
                loss += cross_entropy(row, label as usize);
                if row.iter().all(|v| v.is_finite()) {
                    correct += usize::from(first_largest(row) == Some(label as usize));
                } else {
                    non_finite += 1;
                    self.non_finite.get_or_insert_with(|| batch.image(i));
                }
            }
        }
        Ok(Evaluation { loss: loss / data.len() as f64, correct, images: data.len(), non_finite })
    }

    /// For the weights `state`, where the numbers stop being finite for the first image whose logits were not in the
    /// last run: see [`Model::first_non_finite`]. `None` where there was no such image.
    pub fn first_non_finite(&self, state: &StateDict) -> Result<Option<String>> {
        match &self.non_finite {
            Some(image) => self.model.first_non_finite(state, image, self.program.dtype()),
            None => Ok(None),
        }
    }
}

/// `-log softmax(row)[label]`.
fn cross_entropy(row: &[f64], label: usize) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|v| (v - largest).exp()).sum::<f64>().ln() - row[label]
}

/// The index of the first of the largest numbers; `None` where one is not a number.
fn first_largest(row: &[f64]) -> Option<usize> {
    if row.iter().any(|v| v.is_nan()) {
        return None;
    }
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_the_formulas_also_far_out() {
        let row = [1.0, 2.0, 0.5];
        let expected = (1f64.exp() + 2f64.exp() + 0.5f64.exp()).ln() - 2.0;
        assert!((cross_entropy(&row, 1) - expected).abs() < 1e-15);
        assert!((cross_entropy(&[1e5, 0.0], 1) - 1e5).abs() < 1e-9);
    }

    /// As torch: a logit of minus infinity is a class of probability 0, and what has no answer is NaN.
    #[test]
    fn the_loss_of_what_is_not_finite_is_torchs() {
        let infinity = f64::INFINITY;
        assert!((cross_entropy(&[1.0, -infinity, 2.0], 0) - 1.313_261_687_518).abs() < 1e-9);
        assert_eq!(cross_entropy(&[1.0, -infinity, -infinity], 0), 0.0);
        assert_eq!(cross_entropy(&[-infinity, 1.0, 2.0], 0), infinity);
        for row in
            [[-infinity; 3], [1.0, infinity, 2.0], [infinity, 1.0, 2.0], [f64::NAN, 0.0, 1.0], [0.0, 1.0, f64::NAN]]
        {
            assert!(cross_entropy(&row, 0).is_nan(), "{row:?}");
        }
    }

    #[test]
    fn the_first_of_equal_logits_wins_and_a_nan_never_does() {
        assert_eq!(first_largest(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(first_largest(&[f64::NAN, 3.0]), None);
        assert_eq!(first_largest(&[f64::NEG_INFINITY; 2]), Some(0));
    }
}
