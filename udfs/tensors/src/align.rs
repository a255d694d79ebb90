//! Models of other families: names brought into one namespace, and matrices turned onto each other.

use crate::linalg::{self, Mat};
use mergeql_udfs::{Error, Result};

/// The orthogonal matrix R that brings A R nearest to B (Schönemann 1966, A generalized solution of the orthogonal Procrustes problem): U V^T of
/// A^T B.
///
/// # Errors
/// `type_mismatch` for other shapes.
///
/// ```
/// use mergeql_tensors::linalg::Mat;
/// let a = Mat::from_fn(2, 2, |r, c| [[1.0, 0.0], [0.0, 1.0]][r][c]);
/// let b = Mat::from_fn(2, 2, |r, c| [[0.0, 1.0], [-1.0, 0.0]][r][c]);
/// assert_eq!(mergeql_tensors::align::procrustes(&a, &b).unwrap(), b);
/// ```
pub fn procrustes(a: &Mat<f64>, b: &Mat<f64>) -> Result<Mat<f64>> {
    if a.nrows() != b.nrows() || a.ncols() != b.ncols() {
        return Err(Error::type_mismatch(format!(
            "matrices of {} x {} and {} x {} cannot be aligned",
            a.nrows(),
            a.ncols(),
            b.nrows(),
            b.ncols()
        )));
    }
    linalg::nearest_orthogonal(&(a.transpose() * b))
}
