//! Evaluation of a network on a data set.

use crate::data::{Dataset, Loader};
use crate::device::Device;
use crate::graph::{Mode, Program, StateReport};
use crate::models::{BuildOptions, Model};
use crate::tensor::{DType, HostTensor, StateDict};
use crate::{Error, Result};

/// Loss and accuracy on a data set. See [`Evaluator`] for an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean cross-entropy, without label smoothing.
    pub loss: f64,
    /// Correctly classified images: the largest logit is the label's.
    pub correct: usize,
    /// Images.
    pub images: usize,
    /// Images with a NaN or infinite logit; they count as misclassified.
    pub non_finite: usize,
}

impl Evaluation {
    /// The top-1 accuracy, in 0..=1.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images as f64
    }
}

/// A network compiled for evaluation, with running statistics and a fixed batch size.
///
/// ```
/// use residuum::data::digits;
/// use residuum::device::Device;
/// use residuum::graph::Mode;
/// use residuum::models::{self, BuildOptions};
/// use residuum::tensor::DType;
/// use residuum::train::Evaluator;
///
/// let (model, data) = (models::find("resnet8_cifar")?, digits::read()?.test);
/// let graph = model.build(Mode::Infer, 60, data.shape(), 10, BuildOptions::default())?;
/// let mut evaluator = Evaluator::new(&model, data.shape(), 10, 60, &Device::cpu(), DType::F32)?;
/// evaluator.load(&model.initialise(&graph, 0))?;
/// let found = evaluator.run(&data)?;
/// assert_eq!((found.images, found.non_finite), (360, 0));
/// println!("accuracy {:.1} % with random weights", 100.0 * found.accuracy());
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Debug)]
pub struct Evaluator {
    model: Model,
    program: Program,
    batch: usize,
    classes: usize,
    /// The first image of the last run with a non-finite logit.
    non_finite: Option<HostTensor>,
}

impl Evaluator {
    /// Compiles `model` for images of `shape` C, H, W in batches of `batch`. It has no weights yet.
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

    /// Sets parameters and buffers, in torch's layout. Fails if they are not the network's.
    pub fn load(&mut self, state: &StateDict) -> Result<StateReport> {
        self.program.load(state)
    }

    /// Loss and accuracy on all of `data`, summed in f64 from the logits. Fails if `data` has other classes.
    pub fn run(&mut self, data: &Dataset) -> Result<Evaluation> {
        let (found, expected) = (data.classes(), self.classes);
        Error::check(found == expected, "classes", || format!("{expected} in the network, {found} in the data"))?;
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

    /// With the weights `state`, the first layer whose output is not finite for the first image of the last run with a
    /// non-finite logit: see [`Model::first_non_finite`]. `None` if there was no such image.
    pub fn first_non_finite(&self, state: &StateDict) -> Result<Option<String>> {
        let find = |image| self.model.first_non_finite(state, image, self.program.dtype());
        self.non_finite.as_ref().map_or(Ok(None), find)
    }
}

/// `-log softmax(row)[label]`.
fn cross_entropy(row: &[f64], label: usize) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|v| (v - largest).exp()).sum::<f64>().ln() - row[label]
}

/// The index of the first maximum; `None` if an element is NaN.
fn first_largest(row: &[f64]) -> Option<usize> {
    let ordered = row.iter().all(|v| !v.is_nan());
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best }).filter(|_| ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_follows_its_formula_for_large_logits() {
        let row = [1.0, 2.0, 0.5];
        let expected = (1f64.exp() + 2f64.exp() + 0.5f64.exp()).ln() - 2.0;
        assert!((cross_entropy(&row, 1) - expected).abs() < 1e-15);
        assert!((cross_entropy(&[1e5, 0.0], 1) - 1e5).abs() < 1e-9);
    }

    /// As in torch: a logit of minus infinity has probability 0, and an undefined loss is NaN.
    #[test]
    fn non_finite_logits_have_torchs_loss() {
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
