//! A matrix plus a product of small ones: what an adapter stands for.

use crate::checkpoint::{Buffer, Elements, Tensor};
use crate::dtype::Dtype;
use mergeql_udfs::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// A change of low rank: scale · up · down.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// [rows, rank]
    pub up: Tensor,
    /// [rank, columns]
    pub down: Tensor,
    /// What their product is multiplied by.
    pub scale: f64,
    /// Whether it is the transpose of the product that is added, as in layers that keep their weights [in, out].
    pub transposed: bool,
}

impl LowRank {
    /// The shape of the change, where its factors fit each other.
    fn shape(&self) -> Option<[usize; 2]> {
        match (&self.up.shape[..], &self.down.shape[..]) {
            ([rows, r], [s, columns]) if r == s => Some(if self.transposed { [*columns, *rows] } else { [*rows, *columns] }),
            _ => None,
        }
    }

    /// The number of columns, if it is a change of a tensor.
    ///
    /// # Errors
    /// `type_mismatch`.
    pub fn fits(&self, name: &str, shape: &[usize]) -> Result<usize> {
        match self.shape() {
            Some(own) if own == shape => Ok(own[1]),
            _ => Err(Error::type_mismatch(format!(
                "tensor `{name}` is {shape:?}, and its change is {:?} times {:?}{}",
                self.up.shape,
                self.down.shape,
                if self.transposed { ", transposed" } else { "" }
            ))
            .with_help("a change goes with the model that it was made for")),
        }
    }
}

#[derive(Debug)]
struct Plus {
    base: Option<Tensor>,
    change: LowRank,
    columns: usize,
}

/// The tensor with the change added, summed over the rank in f64 and rounded once.
///
/// # Errors
/// `type_mismatch` where the shapes don't fit.
pub fn plus(base: &Tensor, change: LowRank) -> Result<Tensor> {
    let columns = change.fits(base.name(), &base.shape)?;
    let plus = Plus { base: Some(base.clone()), change, columns };
    Ok(Tensor::made(base.name(), base.dtype, &base.shape, Arc::new(plus)))
}

/// The change itself, of a tensor of this name and shape.
///
/// # Errors
/// As [`plus`].
pub fn product(name: &str, shape: &[usize], change: LowRank) -> Result<Tensor> {
    let columns = change.fits(name, shape)?;
    Ok(Tensor::made(name, Dtype::F32, shape, Arc::new(Plus { base: None, change, columns })))
}

impl Elements for Plus {
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let LowRank { up, down, scale, transposed } = &self.change;
        let rank = down.shape[0];
        // What has a row for each row of the result, and what goes along its columns.
        let (by_row, along) = if *transposed { (down, up) } else { (up, down) };
        let mut buffers = [Buffer::default(), Buffer::default(), Buffer::default()];
        let [rows_buffer, along_buffer, base_buffer] = &mut buffers;
        let along = along.view(0..along.len(), along_buffer)?;
        let by_row = if *transposed {
            by_row.view(0..by_row.len(), rows_buffer)?
        } else {
            let (first, last) = (range.start / self.columns, (range.end - 1) / self.columns);
            by_row.view(first * rank..(last + 1) * rank, rows_buffer)?
        };
        let first = range.start / self.columns;
        let height = down.shape[1];
        let mut sums = vec![0.0f64; self.columns];
        let base = self.base.as_ref().map(|base| base.view(range.clone(), base_buffer)).transpose()?;
        let mut at = range.start;
        while at < range.end {
            let (row, column) = (at / self.columns, at % self.columns);
            let n = (self.columns - column).min(range.end - at);
            let sums = &mut sums[..n];
            sums.fill(0.0);
            for k in 0..rank {
                if *transposed {
                    let factor = f64::from(by_row[k * height + row]);
                    sums.iter_mut().enumerate().for_each(|(c, s)| *s += factor * f64::from(along[(column + c) * rank + k]));
                } else {
                    let factor = f64::from(by_row[(row - first) * rank + k]);
                    let part = &along[k * self.columns + column..][..n];
                    sums.iter_mut().zip(part).for_each(|(s, a)| *s += factor * f64::from(*a));
                }
            }
            let from = at - range.start;
            let out = &mut out[from..from + n];
            match base {
                Some(base) => {
                    out.iter_mut().zip(&base[from..]).zip(&*sums).for_each(|((o, b), s)| *o = (f64::from(*b) + scale * s) as f32);
                }
                None => out.iter_mut().zip(&*sums).for_each(|(o, s)| *o = (scale * s) as f32),
            }
            at += n;
        }
        Ok(())
    }

    fn source(&self) -> Option<&Tensor> {
        self.base.as_ref().or(Some(&self.change.up))
    }
}
