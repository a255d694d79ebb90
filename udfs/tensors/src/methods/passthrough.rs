//! One model as it is, perhaps scaled. As mergekit documents it.

use crate::method::{Base, Job, Kernel, Kind, Method, each};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "passthrough",
    title: "the tensor of one model, scaled",
    paper: "mergekit",
    base: Base::None,
    models: (1, 1),
    reads_once: true,
    params: &[each("scale", Kind::Number, "1", "what its elements are multiplied by")],
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    Ok(job.combine(job.of_models("scale"), false))
}
