//! A matrix turned onto another by an orthogonal one, which is found when it is first needed.

use crate::align::procrustes;
use crate::checkpoint::{Buffer, Elements, Tensor};
use crate::linalg::{self, Mat};
use mergeql_udfs::Result;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

#[derive(Debug)]
struct Turned {
    tensor: Tensor,
    onto: Tensor,
    rotation: OnceLock<Mat<f64>>,
}

/// The matrix A R, where R is orthogonal and brings it nearest to `onto`, a matrix of the same shape. R is found in f64, of which it
/// takes as many numbers as the columns squared.
pub fn turned(tensor: &Tensor, onto: &Tensor) -> Tensor {
    let elements = Turned { tensor: tensor.clone(), onto: onto.clone(), rotation: OnceLock::new() };
    Tensor::made(tensor.name(), tensor.dtype, &tensor.shape, Arc::new(elements))
}

impl Turned {
    fn rotation(&self) -> Result<&Mat<f64>> {
        if let Some(found) = self.rotation.get() {
            return Ok(found);
        }
        let found = procrustes(&linalg::matrix(&self.tensor)?, &linalg::matrix(&self.onto)?)?;
        Ok(self.rotation.get_or_init(|| found))
    }
}

impl Elements for Turned {
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let (rotation, columns) = (self.rotation()?, self.tensor.shape[1]);
        let (first, last) = (range.start / columns, (range.end - 1) / columns);
        let mut buffer = Buffer::default();
        let rows = self.tensor.view(first * columns..(last + 1) * columns, &mut buffer)?;
        for (at, o) in range.clone().zip(out) {
            let row = &rows[(at / columns - first) * columns..][..columns];
            // Down a column of the rotation, which lies together.
            *o = row.iter().zip(rotation.col(at % columns).iter()).map(|(a, r)| f64::from(*a) * r).sum::<f64>() as f32;
        }
        Ok(())
    }

    fn source(&self) -> Option<&Tensor> {
        Some(&self.tensor)
    }
}
