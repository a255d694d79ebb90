//! Embeddings of other tokens: rows that are means of rows of other tensors.

use crate::checkpoint::{Buffer, Elements, Tensor};
use crate::dtype::Dtype;
use mergeql_udfs::Result;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

#[derive(Debug)]
struct Rows {
    width: usize,
    tensors: Vec<Tensor>,
    rows: Vec<Row>,
    /// The mean of all rows that are no padding, once it was needed.
    mean: OnceLock<Vec<f32>>,
}

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// The mean of rows of tensors: which tensor, and which row. Of none, zeros.
    Mean(Vec<(u32, u32)>),
    /// The mean of all rows that are no padding.
    Padding,
}

/// A tensor whose rows are means of rows of others. All have rows as long.
pub fn rows(name: &str, tensors: Vec<Tensor>, rows: Vec<Row>) -> Tensor {
    let (dtype, mut shape) = tensors.first().map_or((Dtype::F32, vec![0]), |t| (t.dtype, t.shape.clone()));
    shape[0] = rows.len();
    let width = shape[1..].iter().product();
    Tensor::made(name, dtype, &shape, Arc::new(Rows { width, tensors, rows, mean: OnceLock::new() }))
}

impl Rows {
    /// A stretch of a row that is no padding.
    fn part(&self, sources: &[(u32, u32)], columns: Range<usize>, out: &mut [f32], buffer: &mut Buffer) -> Result<()> {
        out.fill(0.0);
        for (tensor, row) in sources {
            let start = *row as usize * self.width;
            let part = self.tensors[*tensor as usize].view(start + columns.start..start + columns.end, buffer)?;
            out.iter_mut().zip(part).for_each(|(o, p)| *o += p);
        }
        if sources.len() > 1 {
            out.iter_mut().for_each(|o| *o /= sources.len() as f32);
        }
        Ok(())
    }

    fn mean(&self, buffer: &mut Buffer) -> Result<&[f32]> {
        if let Some(mean) = self.mean.get() {
            return Ok(mean);
        }
        let (mut sums, mut count, mut part) = (vec![0.0f64; self.width], 0.0, vec![0.0; self.width]);
        for row in &self.rows {
            if let Row::Mean(sources) = row {
                self.part(sources, 0..self.width, &mut part, buffer)?;
                sums.iter_mut().zip(&part).for_each(|(s, p)| *s += f64::from(*p));
                count += 1.0;
            }
        }
        let mean = sums.into_iter().map(|s| if count > 0.0 { (s / count) as f32 } else { 0.0 }).collect();
        Ok(self.mean.get_or_init(|| mean))
    }
}

impl Elements for Rows {
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = self.width;
        let mut buffer = Buffer::default();
        let mut at = range.start;
        while at < range.end {
            let (row, column) = (at / width, at % width);
            let n = (width - column).min(range.end - at);
            let into = &mut out[at - range.start..][..n];
            match &self.rows[row] {
                Row::Mean(sources) => self.part(sources, column..column + n, into, &mut buffer)?,
                Row::Padding => into.copy_from_slice(&self.mean(&mut buffer)?[column..column + n]),
            }
            at += n;
        }
        Ok(())
    }

    fn source(&self) -> Option<&Tensor> {
        self.tensors.first()
    }
}
