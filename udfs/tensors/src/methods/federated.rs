//! Federated aggregation: what a server makes of the models that its clients trained.

use crate::method::{Base, Job, Kernel, Kind, Method, Param, each, param};
use mergeql_udfs::{Error, Result};

const SAMPLES: Param = each("num_samples", Kind::Number, "1", "how many examples each client trained on");

/// Examples are counted: none is below zero, and there are some.
fn samples(job: &Job<'_>) -> Result<()> {
    if let Some(n) = job.of_models("num_samples").iter().find(|n| **n < 0.0) {
        return Err(
            Error::invalid_argument(format!("a client trained on {n} examples")).with_help("write num_samples of 0 or more")
        );
    }
    job.shares("num_samples").map(|_| ())
}

/// FedAvg (McMahan et al. 2017, arXiv:1602.05629).
pub const AVG: Method = Method {
    name: "fedavg",
    title: "the mean of the clients by their examples",
    paper: "McMahan et al. 2017, arXiv:1602.05629",
    base: Base::None,
    reads_once: true,
    synonyms: &[("weight", "num_samples")],
    params: &[SAMPLES],
    check: samples,
    prepare: |job| Ok(job.combine(job.shares("num_samples")?, false)),
    ..Method::COMMON
};

/// FedProx (Li et al. 2020, arXiv:1812.06127): its proximal term acts where clients train, so the server does as in FedAvg.
pub const PROX: Method = Method {
    name: "fedprox",
    title: "fedavg: the proximal term acts where clients train, not on the server",
    paper: "Li et al. 2020, arXiv:1812.06127",
    params: &[SAMPLES, param("mu", Kind::Number, "0", "the clients' proximal term; without effect on the server")],
    ..AVG
};

const ADAPTIVE: &[Param] = &[
    SAMPLES,
    param("eta", Kind::Number, "0.01", "the server's rate"),
    param("beta1", Kind::Share, "0.9", "how much of the first moment stays"),
    param("beta2", Kind::Share, "0.99", "how much of the second moment stays"),
    param("tau", Kind::Number, "0.001", "added to the root of the second moment"),
    param("v0", Kind::Number, "0", "the second moment before this step"),
];

/// FedAdam (Reddi et al. 2021, arXiv:2003.00295), one step from the base, without bias correction.
pub const ADAM: Method = Method {
    name: "fedadam",
    title: "one step of Adam on the server, from the base along the clients' mean change",
    paper: "Reddi et al. 2021, arXiv:2003.00295",
    base: Base::Required,
    params: ADAPTIVE,
    check: |job| {
        samples(job)?;
        let (tau, v0) = (job.number("tau"), job.number("v0"));
        if tau > 0.0 && v0 >= 0.0 {
            return Ok(());
        }
        Err(Error::invalid_argument(format!("a step with tau = {tau} and v0 = {v0}"))
            .with_help("what is divided by is the root of the second moment plus tau: tau is above 0, and v0 not below it"))
    },
    prepare: |job| adaptive(job, |v0, square, beta2| beta2 * v0 + (1.0 - beta2) * square),
    ..AVG
};

/// FedYogi (Reddi et al. 2021, arXiv:2003.00295), one step from the base.
pub const YOGI: Method = Method {
    name: "fedyogi",
    title: "one step of Yogi on the server, from the base along the clients' mean change",
    prepare: |job| {
        adaptive(job, |v0, square, beta2| {
            let sign = if v0 > square {
                1.0
            } else if v0 < square {
                -1.0
            } else {
                0.0
            };
            v0 - (1.0 - beta2) * square * sign
        })
    },
    ..ADAM
};

fn adaptive<'a>(job: &'a Job<'a>, second: fn(f64, f64, f64) -> f64) -> Result<Kernel<'a>> {
    let shares = job.shares("num_samples")?;
    let number = |name| job.number(name);
    let (eta, beta1, beta2, tau, v0) = (number("eta"), number("beta1"), number("beta2"), number("tau"), number("v0"));
    Ok(Kernel::Tiles {
        granule: 1,
        run: Box::new(move |tile, out| {
            for (at, o) in out.iter_mut().enumerate() {
                let base = f64::from(tile.base[at]);
                let change: f64 = tile.models.iter().zip(&shares).map(|(m, share)| share * (f64::from(m[at]) - base)).sum();
                let v = second(v0, change * change, beta2);
                *o = (base + eta * (1.0 - beta1) * change / (v.sqrt() + tau)) as f32;
            }
            Ok(())
        }),
    })
}

/// FedNova (Wang et al. 2020, Tackling the objective inconsistency problem, arXiv:2007.07481).
pub const NOVA: Method = Method {
    name: "fednova",
    title: "the clients' changes per local step, by their examples, times the mean number of steps",
    paper: "Wang et al. 2020, arXiv:2007.07481",
    base: Base::Required,
    params: &[SAMPLES, each("steps", Kind::Number, "!", "how many local steps each client took")],
    check: |job| {
        if job.of_models("steps").iter().any(|s| *s <= 0.0) {
            return Err(Error::invalid_argument("every client takes at least one step").with_help("write steps above 0"));
        }
        samples(job)
    },
    prepare: |job| {
        let (shares, steps) = (job.shares("num_samples")?, job.of_models("steps"));
        let mean: f64 = shares.iter().zip(&steps).map(|(p, s)| p * s).sum();
        Ok(job.combine(shares.iter().zip(&steps).map(|(p, s)| mean * p / s).collect(), true))
    },
    ..AVG
};
