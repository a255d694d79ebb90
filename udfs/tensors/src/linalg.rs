//! Matrices in f64, on one thread: the same sums in the same order on every machine with the same vector width.

use crate::checkpoint::Tensor;
use crate::method::Job;
pub use faer::Mat;
use faer::MatRef;
use faer::linalg::solvers::Solve;
use mergeql_udfs::{Error, Result};

/// A tensor of two axes.
///
/// # Errors
/// As [`Tensor::read`].
pub fn matrix(tensor: &Tensor) -> Result<Mat<f64>> {
    let values = tensor.all()?;
    let columns = tensor.shape.get(1).copied().unwrap_or(1);
    Ok(Mat::from_fn(tensor.shape[0], columns, |r, c| f64::from(values[r * columns + c])))
}

/// The task vectors of a job, as matrices, each made when it is asked for.
///
/// # Errors
/// As [`Tensor::read`].
pub fn tasks<'j>(job: &'j Job<'_>) -> Result<impl Iterator<Item = Result<Mat<f64>>> + 'j> {
    let base = matrix(job.base()?)?;
    Ok(job.models.iter().map(move |m| Ok(matrix(&m.tensor)? - &base)))
}

/// Its elements, row by row.
pub fn elements(matrix: MatRef<'_, f64>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|r| (0..matrix.ncols()).map(move |c| matrix[(r, c)] as f32)).collect()
}

/// The base plus a matrix.
///
/// # Errors
/// As [`Tensor::read`].
pub fn onto_base(job: &Job<'_>, delta: &Mat<f64>) -> Result<Vec<f32>> {
    Ok(elements((matrix(job.base()?)? + delta).as_ref()))
}

/// A singular value decomposition.
pub struct Svd {
    /// The left vectors.
    pub u: Mat<f64>,
    /// The singular values, greatest first.
    pub s: Vec<f64>,
    /// The right vectors.
    pub v: Mat<f64>,
}

/// The thin decomposition u s v^T: as many vectors as there are singular values.
///
/// # Errors
/// `invalid_argument` where it doesn't converge, as with numbers that are not finite.
pub fn svd(matrix: &Mat<f64>) -> Result<Svd> {
    let found = matrix.thin_svd().map_err(|_| {
        Error::invalid_argument("the singular values of a tensor could not be found")
            .with_help("one of the models holds NaN or infinity there, or numbers whose squares are too great for a double")
    })?;
    let s = found.S().column_vector();
    Ok(Svd { u: found.U().to_owned(), s: (0..s.nrows()).map(|i| s[i]).collect(), v: found.V().to_owned() })
}

impl Svd {
    /// The matrix of these left and right vectors, with other singular values.
    pub fn with(&self, s: &[f64]) -> Mat<f64> {
        let scaled = Mat::from_fn(self.u.nrows(), s.len(), |r, c| self.u[(r, c)] * s[c]);
        scaled * self.v.get(.., ..s.len()).transpose()
    }
}

/// The orthogonal matrix nearest to this one: u v^T.
///
/// # Errors
/// As [`svd`].
pub fn nearest_orthogonal(matrix: &Mat<f64>) -> Result<Mat<f64>> {
    let Svd { u, v, .. } = svd(matrix)?;
    Ok(u * v.transpose())
}

/// X of a X = b; `None` where a has no inverse, as far as numbers can tell: its pivots fall to what rounding leaves.
pub fn solve(a: Mat<f64>, b: Mat<f64>) -> Option<Mat<f64>> {
    let factors = a.partial_piv_lu();
    let pivots = factors.U().diagonal();
    let sizes = || (0..a.nrows()).map(|i| pivots[i].abs());
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    // A number that is not finite fails below.
    if least <= 16.0 * a.nrows() as f64 * f64::EPSILON * most {
        return None;
    }
    let solved = factors.solve(b);
    (0..solved.ncols()).all(|c| (0..solved.nrows()).all(|r| solved[(r, c)].is_finite())).then_some(solved)
}

/// The Frobenius norm.
pub fn norm(matrix: &Mat<f64>) -> f64 {
    inner(matrix, matrix).sqrt()
}

/// The sum of products of elements at the same place.
pub fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    (0..a.ncols()).map(|c| (0..a.nrows()).map(|r| a[(r, c)] * b[(r, c)]).sum::<f64>()).sum()
}

/// The matrices side by side.
pub fn beside(parts: &[Mat<f64>]) -> Mat<f64> {
    let columns: Vec<(usize, usize)> = parts.iter().enumerate().flat_map(|(i, m)| (0..m.ncols()).map(move |c| (i, c))).collect();
    Mat::from_fn(parts.first().map_or(0, Mat::nrows), columns.len(), |r, c| parts[columns[c].0][(r, columns[c].1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of fewer products than it has columns has no inverse, which shows in its pivots alone: nothing in it is zero.
    #[test]
    fn matrices_without_full_rank_are_not_solved() {
        let vector = |k: usize| (0..14).map(move |i| ((i * i * (k + 3) + 7 * k + i) % 11) as f64 - 5.0);
        let gram = |rank: usize| {
            let vectors: Vec<Vec<f64>> = (0..rank).map(|k| vector(k).collect()).collect();
            Mat::from_fn(14, 14, |r, c| vectors.iter().map(|v| v[r] * v[c]).sum())
        };
        let ones = || Mat::from_fn(14, 1, |_, _| 1.0);
        assert!(solve(gram(5), ones()).is_none());
        let mut full = gram(5);
        (0..14).for_each(|i| full[(i, i)] += 1.0);
        assert!(solve(full, ones()).is_some());
        assert!(solve(Mat::zeros(14, 14), ones()).is_none());
    }
}
