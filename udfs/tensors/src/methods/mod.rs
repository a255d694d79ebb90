//! Every method, each in a file of its own with the paper that defines it.

mod adarank;
mod arcee_fusion;
mod breadcrumbs;
mod coefficients;
pub(crate) mod consensus_ta;
mod dare;
pub(crate) mod della;
mod dual_projection;
pub(crate) mod emr;
mod federated;
mod fisher;
mod iso;
mod karcher;
mod knots;
mod led;
mod linear;
pub(crate) mod magmax;
mod model_stock;
mod multislerp;
pub(crate) mod nearswap;
pub(crate) mod negmerge;
mod nuslerp;
mod opcm;
mod passthrough;
pub(crate) mod ram;
mod regmean;
pub(crate) mod robust;
mod safemerge;
pub(crate) mod sce;
mod slerp;
mod star;
mod surgery;
mod task_arithmetic;
pub mod task_vectors;
mod ties;
mod tsv_m;
pub(crate) mod weight_scope;
mod wudi;

pub(crate) use knots::merge as knots;

use crate::method::{Method, Params, Value};
use mergeql_udfs::{Code, Error, Result};

/// All of them, in the order of the manual.
pub static ALL: &[Method] = &[
    linear::METHOD,
    slerp::METHOD,
    nuslerp::METHOD,
    multislerp::METHOD,
    karcher::METHOD,
    task_arithmetic::METHOD,
    ties::METHOD,
    ties::UNLEARN,
    dare::LINEAR,
    dare::TIES,
    della::METHOD,
    della::LINEAR,
    breadcrumbs::METHOD,
    breadcrumbs::TIES,
    sce::METHOD,
    model_stock::METHOD,
    ram::METHOD,
    ram::PLUS,
    nearswap::METHOD,
    arcee_fusion::METHOD,
    passthrough::METHOD,
    fisher::METHOD,
    regmean::METHOD,
    coefficients::ADA,
    coefficients::DAM,
    emr::METHOD,
    emr::TASK,
    star::METHOD,
    knots::METHOD,
    adarank::METHOD,
    tsv_m::METHOD,
    iso::C,
    iso::CTS,
    wudi::METHOD,
    consensus_ta::METHOD,
    magmax::METHOD,
    negmerge::METHOD,
    weight_scope::METHOD,
    surgery::METHOD,
    safemerge::METHOD,
    led::METHOD,
    dual_projection::METHOD,
    opcm::METHOD,
    federated::AVG,
    federated::PROX,
    federated::ADAM,
    federated::YOGI,
    federated::NOVA,
    robust::MEDIAN,
    robust::TRIMMED,
    robust::KRUM,
    robust::GEOMETRIC,
];

/// The method of this name, and the parameters that the name stands for.
///
/// # Errors
/// `unknown_strategy`.
pub fn find(name: &str) -> Result<(&'static Method, Params)> {
    for method in ALL {
        if method.name == name {
            return Ok((method, Params::new()));
        }
        if let Some((_, preset)) = method.aliases.iter().find(|(alias, _)| *alias == name) {
            let preset = preset.iter().map(|(name, text)| ((*name).to_owned(), Value::Text((*text).to_owned()))).collect();
            return Ok((method, preset));
        }
    }
    let names = ALL.iter().flat_map(|m| std::iter::once(m.name).chain(m.aliases.iter().map(|(a, _)| *a)));
    let near = names.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let help = match near.filter(|n| strsim::jaro_winkler(n, name) > 0.75) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", ALL.iter().map(|m| m.name).collect::<Vec<_>>().join(", ")),
    };
    Err(Error::new(Code::UnknownStrategy, format!("there is no strategy of tensors `{name}`")).with_help(help))
}
