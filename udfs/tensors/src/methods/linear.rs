//! The weighted mean (Wortsman et al. 2022, Model soups, arXiv:2203.05482).

use crate::method::{Base, Job, Kernel, Kind, Method, WEIGHT, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "linear",
    aliases: &[("weight_average", &[]), ("soup", &[])],
    title: "the mean of the models by their weights",
    paper: "Wortsman et al. 2022, arXiv:2203.05482",
    base: Base::None,
    reads_once: true,
    params: &[WEIGHT, param("normalize", Kind::Flag, "true", "whether the weights are divided by their sum")],
    check: |job| if job.flag("normalize") { job.check_shares() } else { Ok(()) },
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let factors = if job.flag("normalize") { job.shares("weight")? } else { job.of_models("weight") };
    Ok(job.combine(factors, false))
}
