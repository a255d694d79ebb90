//! A page about how some models differ from their base: conflicts by layer and kind of tensor, cosines between task vectors, each model's share, and
//! lengths. One file of HTML and SVG, without scripts.

use crate::lora;
use crate::plan::Model;
use crate::stats;
use mergeql_udfs::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Digits are replaced by `*`: the kind of a tensor; the first number is its layer.
fn kind(name: &str) -> (Option<usize>, String) {
    let mut layer = None;
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse::<usize>() {
            Ok(number) => {
                layer.get_or_insert(number);
                "*"
            }
            Err(_) => part,
        })
        .collect();
    (layer, parts.join("."))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// From white to a strong blue.
fn color(share: f64) -> String {
    let share = share.clamp(0.0, 1.0);
    let mix = |from: f64, to: f64| (from + (to - from) * share).round();
    format!("rgb({},{},{})", mix(255.0, 30.0), mix(255.0, 80.0), mix(255.0, 170.0))
}

const CELL: usize = 26;

/// A grid of shares with names of rows and columns; a cell without a number stays empty.
fn heatmap(rows: &[String], columns: &[String], value: impl Fn(usize, usize) -> Option<f64>, scale: impl Fn(f64) -> f64) -> String {
    let left = 12 + 7 * rows.iter().map(|r| r.chars().count()).max().unwrap_or(0);
    // Names that are wider than their columns stand aslant.
    let longest = columns.iter().map(|c| c.chars().count()).max().unwrap_or(0);
    let aslant = longest > CELL / 7;
    let (top, beside) = if aslant { (24 + 6 * longest, 10 + 4 * longest) } else { (24, 10) };
    let (width, height) = (left + CELL * columns.len() + beside, top + CELL * rows.len() + 6);
    let mut svg = format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" role=\"img\">");
    for (c, name) in columns.iter().enumerate() {
        let (x, y) = (left + c * CELL + CELL / 2, top - 8);
        let place = match aslant {
            true => format!("text-anchor=\"start\" transform=\"rotate(-60 {x} {y})\""),
            false => "text-anchor=\"middle\"".to_owned(),
        };
        let _ = write!(svg, "<text x=\"{x}\" y=\"{y}\" {place}>{}</text>", escaped(name));
    }
    for (r, name) in rows.iter().enumerate() {
        let y = top + r * CELL;
        let _ = write!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", left - 6, y + 17, escaped(name));
        for (c, column) in columns.iter().enumerate() {
            if let Some(v) = value(r, c) {
                let x = left + c * CELL;
                let text = if scale(v) > 0.55 { "#fff" } else { "#222" };
                let _ = write!(
                    svg,
                    "<g><title>{}, {}: {v:.4}</title><rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{}\" stroke=\"#ddd\"/>\
                     <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" style=\"fill:{text};font-size:9px\">{v:.2}</text></g>",
                    escaped(name),
                    escaped(column),
                    color(scale(v)),
                    x + CELL / 2,
                    y + 16
                );
            }
        }
    }
    svg + "</svg>"
}

fn bars(names: &[String], values: &[f64], unit: &str) -> String {
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let left = 12 + 7 * names.iter().map(|r| r.chars().count()).max().unwrap_or(0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" role=\"img\">",
        left + 420,
        22 * names.len() + 6
    );
    for (i, (name, value)) in names.iter().zip(values).enumerate() {
        let (y, width) = (i * 22, 300.0 * value / most);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{left}\" y=\"{}\" width=\"{width:.1}\" height=\"16\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{value:.4}{unit}</text>",
            left - 6,
            y + 15,
            escaped(name),
            y + 3,
            color(0.7),
            left as f64 + width + 6.0,
            y + 15
        );
    }
    svg + "</svg>"
}

/// The page.
///
/// # Errors
/// As reading; `invalid_argument` where the models and the base have no tensors of floats in common.
pub fn html(models: &[Model], base: &Model) -> Result<String> {
    let names: Vec<String> = models.iter().map(|m| m.name.clone()).collect();
    let models = &lora::beside(models.to_vec(), Some(base), &mut Vec::new())?;
    let found = stats::conflicts(models, base)?;
    if found.is_empty() || models.is_empty() {
        return Err(Error::invalid_argument("the models and the base have no tensors in common")
            .with_help("name fine-tuned models, and what they started from"));
    }
    let n = models.len();
    // Over all tensors: products of task vectors from their cosines and lengths.
    let mut products = vec![0.0; n * n];
    for (_, conflict) in &found {
        for (at, (product, cosine)) in products.iter_mut().zip(&conflict.cosines).enumerate() {
            *product += cosine * conflict.norms[at / n] * conflict.norms[at % n];
        }
    }
    let lengths: Vec<f64> = (0..n).map(|i| products[i * n + i].sqrt()).collect();
    let total: f64 = lengths.iter().map(|l| l * l).sum();
    let shares: Vec<f64> = lengths.iter().map(|l| if total > 0.0 { l * l / total } else { 0.0 }).collect();
    let cosine = |r: usize, c: usize| {
        let both = lengths[r] * lengths[c];
        Some(if both > 0.0 { (products[r * n + c] / both).clamp(-1.0, 1.0) } else { 0.0 })
    };
    // Conflicts by kind and layer; a tensor outside of the layers is in a column of its own.
    let mut cells: BTreeMap<(String, Option<usize>), (f64, f64)> = BTreeMap::new();
    for (name, conflict) in &found {
        let (layer, kind) = kind(name);
        let cell = cells.entry((kind, layer)).or_default();
        *cell = (cell.0 + conflict.sign_conflict, cell.1 + 1.0);
    }
    let kinds: Vec<String> = cells.keys().map(|(kind, _)| kind.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let layers: Vec<Option<usize>> = cells.keys().map(|(_, layer)| *layer).collect::<BTreeSet<_>>().into_iter().collect();
    let columns: Vec<String> = layers.iter().map(|l| l.map_or("-".to_owned(), |l| l.to_string())).collect();
    let conflict = |r: usize, c: usize| cells.get(&(kinds[r].clone(), layers[c])).map(|(sum, count)| sum / count);
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>How these models differ</title><style>\
         body{font:14px/1.5 system-ui,sans-serif;margin:2em;color:#222}svg text{font:12px system-ui,sans-serif}\
         table{border-collapse:collapse}td,th{padding:2px 10px;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
         </style></head><body>\n<h1>How these models differ</h1>\n",
    );
    let _ = writeln!(page, "<p>{} models against {}: {} tensors.</p>", n, escaped(&base.name), found.len());
    let _ = writeln!(
        page,
        "<h2>Conflicts by kind and layer</h2><p>Of the entries that two models or more changed, the share changed in opposite directions.</p>"
    );
    page += &heatmap(&kinds, &columns, conflict, |v| v);
    let _ = writeln!(page, "\n<h2>Cosines between task vectors</h2>");
    page += &heatmap(&names, &names, cosine, f64::abs);
    let _ = writeln!(page, "\n<h2>Share of the squared lengths</h2>");
    page += &bars(&names, &shares, "");
    let _ = writeln!(page, "\n<h2>Lengths of the task vectors</h2>");
    page += &bars(&names, &lengths, "");
    let _ = writeln!(
        page,
        "\n<h2>Tensors</h2><table><tr><th>tensor</th><th>sign conflict</th><th>redundancy</th><th>length of each model's change</th></tr>"
    );
    for (name, conflict) in &found {
        let norms: Vec<String> = conflict.norms.iter().map(|v| format!("{v:.4}")).collect();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{}</td></tr>",
            escaped(name),
            conflict.sign_conflict,
            conflict.redundancy,
            norms.join(", ")
        );
    }
    Ok(page + "</table></body></html>\n")
}
