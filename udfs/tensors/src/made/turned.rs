//! A matrix turned onto another by an orthogonal one, which is found when it is first needed.

use crate::align::procrustes;
use crate::checkpoint::{Buffer, Elements, Tensor};
use crate::linalg::{self, Mat};
use mergeql_udfs::Result;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
struct Turned {
    tensor: Tensor,
    onto: Tensor,
    /// Which of the rotations that are kept is its own.
    number: u64,
    /// Whoever comes first finds the rotation, and the others wait.
    finding: Mutex<()>,
}

/// How many rotations are kept: tensors are merged one after the other, a few at a time, and what was dropped is found again.
const KEPT: usize = 8;

/// The rotations that were found last.
static FOUND: Mutex<VecDeque<(u64, Arc<Mat<f64>>)>> = Mutex::new(VecDeque::new());

/// The matrix A R, where R is orthogonal and brings it nearest to `onto`, a matrix of the same shape. R is found in f64, of which it
/// takes as many numbers as the columns squared.
pub fn turned(tensor: &Tensor, onto: &Tensor) -> Tensor {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let elements = Turned { tensor: tensor.clone(), onto: onto.clone(), number, finding: Mutex::new(()) };
    Tensor::made(tensor.name(), tensor.dtype, &tensor.shape, Arc::new(elements))
}

impl Turned {
    fn kept(&self) -> Option<Arc<Mat<f64>>> {
        let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        found.iter().find(|(number, _)| *number == self.number).map(|(_, rotation)| rotation.clone())
    }

    fn rotation(&self) -> Result<Arc<Mat<f64>>> {
        if let Some(kept) = self.kept() {
            return Ok(kept);
        }
        let _finding = self.finding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = self.kept() {
            return Ok(kept);
        }
        let rotation = Arc::new(procrustes(&linalg::matrix(&self.tensor)?, &linalg::matrix(&self.onto)?)?);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        found.push_back((self.number, rotation.clone()));
        if found.len() > KEPT {
            found.pop_front();
        }
        Ok(rotation)
    }
}

impl Drop for Turned {
    fn drop(&mut self) {
        FOUND.lock().unwrap_or_else(PoisonError::into_inner).retain(|(number, _)| *number != self.number);
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
