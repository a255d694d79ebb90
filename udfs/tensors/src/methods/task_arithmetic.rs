//! Task arithmetic (Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089).

use super::task_vectors::{All, INT8_MASK, NORMALIZE, Sum, kernel};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, WEIGHT, each, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "task_arithmetic",
    title: "the base plus the weighted sum of what each model changed",
    paper: "Ilharco et al. 2023, arXiv:2212.04089",
    reads_once: true,
    params: &[
        WEIGHT,
        LAMBDA,
        NORMALIZE,
        INT8_MASK,
        param("rescale", Kind::Flag, "false", "taken from configs of mergekit, and without effect: nothing is thinned out here"),
        each("density", Kind::Share, "", "taken, and without effect: nothing is thinned out here"),
    ],
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    kernel(job, All, Sum::of(job, false, false), 1)
}
