//! Search: candidates, who judges them, and what a journal knows.

use crate::adapters::rule;
use crate::cases::{model, resolve};
use mergeql_tensors::method::Value;
use mergeql_tensors::plan::{Options, Plan, Request};
use mergeql_tensors::sealed::Sealed;
use mergeql_tensors::search::{self, Found, Search, Verdict};
use std::collections::BTreeMap;
use std::path::Path;

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn ask(strategy: &str, models: &[&str], settings: &[(&str, Value)]) -> Request {
    Request {
        models: models.iter().map(|name| model(name)).collect(),
        base: Some(model("base")),
        rules: rule(strategy, settings),
        options: Options::default(),
    }
}

fn weights(algorithm: &str, models: &[&str]) -> Request {
    let settings = [
        ("inner", text("task_arithmetic")),
        ("search", text("weight 0..1")),
        ("command", text("true")),
        ("generations", Value::Number(25.0)),
        ("population", Value::Number(12.0)),
        ("seed", Value::Number(3.0)),
    ];
    ask(algorithm, models, &settings)
}

/// How near a merge is to task arithmetic with the weights 0.25 and 0.75 of m0 and m1.
fn judge(wanted: &BTreeMap<String, Vec<f32>>, request: &Request) -> f64 {
    let got = resolve(request.clone()).expect("a merge");
    let miss = |name: &String| got[name].iter().zip(&wanted[name]).map(|(g, w)| f64::from(g - w).powi(2)).sum::<f64>();
    -wanted.keys().map(miss).sum::<f64>().sqrt()
}

fn run(request: &Request, journal: &Path, mut judge: impl FnMut(&Request) -> f64) -> Found {
    let search = Search::of(request).expect("a search").expect("one");
    let sealed = Sealed::new(Plan::new(search.middle()).expect("a plan")).expect("a set");
    search.run(&sealed.models, sealed.base.as_ref(), journal, |request| Ok(Verdict::Worth(judge(request)))).expect("an answer")
}

fn found_weights(found: &Found) -> Vec<f64> {
    let Some(Value::List(values)) = found.request.rules[0].params.get("weight") else { panic!("no weights") };
    values.iter().map(|v| if let Value::Number(v) = v { *v } else { panic!("no number") }).collect()
}

#[test]
fn the_best_weights_are_found_whatever_the_order_of_the_models() {
    let folder = tempfile::tempdir().expect("a folder");
    let wanted = ask("task_arithmetic", &["m0", "m1"], &[("weight", Value::List(vec![Value::Number(0.25), Value::Number(0.75)]))]);
    let wanted = resolve(wanted).expect("a merge");
    for (algorithm, near) in [("evolutionary", 0.01), ("genetic", 0.1)] {
        let there = run(&weights(algorithm, &["m0", "m1"]), &folder.path().join("a"), |r| judge(&wanted, r));
        let back = run(&weights(algorithm, &["m1", "m0"]), &folder.path().join("b"), |r| judge(&wanted, r));
        let (mut one, other) = (found_weights(&there), found_weights(&back));
        assert!((one[0] - 0.25).abs() < near && (one[1] - 0.75).abs() < near, "{algorithm}: {one:?}");
        one.reverse();
        assert_eq!(one, other, "{algorithm}");
        assert_eq!((there.fitness, there.candidates), (back.fitness, back.candidates));
    }
}

/// In the middle of these bounds there is no merge, and elsewhere there is.
#[test]
fn bounds_around_nothing_are_searched() {
    let mut request = weights("evolutionary", &["m0", "m1"]);
    let params = &mut request.rules[0].params;
    params.insert("inner".into(), text("linear"));
    params.insert("search".into(), text("weight -1..1"));
    request.base = None;
    let search = Search::of(&request).expect("a search").expect("one");
    assert!(Plan::new(search.middle()).is_err());
    assert!(search.examples().any(|request| Plan::new(request).is_ok()));
}

#[test]
fn a_search_that_was_stopped_asks_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("journal");
    let value = |r: &Request| -found_weights(&Found { request: r.clone(), fitness: 0.0, candidates: 0, resumed: 0 })[0].abs();
    for algorithm in ["evolutionary", "genetic"] {
        let request = weights(algorithm, &["m0", "m1"]);
        let whole = run(&request, &folder.path().join("whole"), value);
        let search = Search::of(&request).expect("a search").expect("one");
        let sealed = Sealed::new(Plan::new(search.middle()).expect("a plan")).expect("a set");
        let mut asked = 0;
        let stopped = search.run(&sealed.models, sealed.base.as_ref(), &journal, |request| {
            asked += 1;
            if asked > 40 { Err(mergeql_udfs::Error::invalid_argument("stopped")) } else { Ok(Verdict::Worth(value(request))) }
        });
        assert_eq!(stopped.expect_err("an error").message, "stopped");
        // As a crash leaves it: with half a line.
        let known = std::fs::read(&journal).expect("a journal");
        std::fs::write(&journal, &known[..known.len() - 10]).expect("a journal");
        let mut again = 0;
        let found = run(&request, &journal, |request| {
            again += 1;
            value(request)
        });
        assert_eq!((found.fitness, found.candidates), (whole.fitness, whole.candidates), "{algorithm}");
        assert_eq!(found.resumed, 39);
        assert_eq!(again, found.candidates - 39, "{algorithm}");
        // A journal of another search is worth nothing.
        let mut other = request.clone();
        other.rules[0].params.insert("seed".into(), Value::Number(4.0));
        assert_eq!(run(&other, &journal, value).resumed, 0);
    }
}

#[test]
fn what_is_wrong_with_a_search() {
    let full = |changed: &[(&str, Option<Value>)]| {
        let mut request = weights("evolutionary", &["m0", "m1"]);
        for (name, value) in changed {
            match value {
                Some(value) => drop(request.rules[0].params.insert((*name).to_owned(), value.clone())),
                None => drop(request.rules[0].params.remove(*name)),
            }
        }
        Search::of(&request).map(|_| ()).expect_err("an error")
    };
    for (changed, said) in [
        (vec![("command", None)], "someone who says"),
        (vec![("fitness", Some(text("SELECT 1")))], "has two who say"),
        (vec![("command", None), ("fitness", Some(text("SELECT 1")))], "names no candidate"),
        (vec![("population", Some(Value::Number(1.0)))], "2 at least"),
        (vec![("search", Some(Value::List(vec![text("weight"), text("weight 0..2")])))], "searched twice"),
        (vec![("inner", Some(text("ties"))), ("search", Some(text("density -1..2")))], "from 0 to 1, not -1"),
        (vec![("inner", None)], "`inner`"),
        (vec![("inner", Some(text("tees")))], "no strategy of tensors `tees`"),
        (vec![("inner", Some(text("lora_svd")))], "cannot be searched"),
        (vec![("search", Some(text("densty")))], "no number `densty`"),
        (vec![("search", Some(text("weight 1..0")))], "no bounds"),
        (vec![("weight", Some(Value::Number(1.0)))], "has a value"),
        (vec![("generations", Some(text("many")))], "whole number"),
    ] {
        let error = full(&changed);
        assert!(error.message.contains(said), "{said}: {error}");
    }
    // Parameters that do not go together are worth nothing; where none do, that is said.
    let folder = tempfile::tempdir().expect("a folder");
    let run = |verdict: fn(usize) -> Verdict| {
        let mut number = 0;
        let search = Search::of(&weights("genetic", &["m0", "m1"])).expect("a search").expect("one");
        let sealed = Sealed::new(Plan::new(search.middle()).expect("a plan")).expect("a set");
        search.run(&sealed.models, sealed.base.as_ref(), &folder.path().join("j"), |_| {
            number += 1;
            Ok(verdict(number))
        })
    };
    fn useless() -> Verdict {
        Verdict::Useless(mergeql_udfs::Error::invalid_argument("they clash"))
    }
    let found = run(|number| if number == 7 { Verdict::Worth(-5.0) } else { useless() });
    assert_eq!(found.expect("an answer").fitness, -5.0);
    std::fs::remove_file(folder.path().join("j")).expect("a journal");
    let error = run(|_| useless()).expect_err("nothing");
    assert!(error.message.contains("they clash"), "{error}");
    // One search at a time in one place.
    let other = std::fs::File::open(folder.path().join("j")).expect("a journal");
    other.lock().expect("a lock");
    let error = run(|_| Verdict::Worth(0.0)).expect_err("a lock");
    assert!(error.message.contains("another search runs here"), "{error}");
    let candidate = Path::new("a b/it's");
    assert_eq!(search::command("echo noise; echo {} >&2; echo 1.5", candidate).expect("a number"), 1.5);
    assert_eq!(search::command("test \"$MERGEQL_CANDIDATE\" = {} && echo 2", candidate).expect("a number"), 2.0);
    let error = search::command("echo no number", candidate).expect_err("no number");
    assert!(error.message.contains("printed `no number`"), "{error}");
    let error = search::command("echo because >&2; exit 3", candidate).expect_err("a failure");
    assert!(error.message.contains("because"), "{error}");
}
