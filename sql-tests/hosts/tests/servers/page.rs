//! The page about how models differ, as a browser shows it.

use crate::variable;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

const WIDTH: u32 = 1200;

fn browser(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
    command.arg(format!("--user-data-dir={}", folder.join("profile").display())).args(arguments).current_dir(folder);
    let output = command.output().expect("`.ci/run` installs Debian's chromium");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// How often each color is in a picture.
fn colors(path: &Path) -> BTreeMap<[u8; 3], usize> {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.width, WIDTH);
    let mut found = BTreeMap::new();
    for pixel in pixels[..info.buffer_size()].chunks(info.color_type.samples()) {
        *found.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
    }
    found
}

#[test]
fn a_browser_shows_the_page() {
    let (folder, placed) = mergeql_host_tests::models();
    let models = ["models/m0.safetensors", "models/m1.safetensors", "models/m2.safetensors"].map(placed);
    let mut command = Command::new(variable("MERGEQL_PROGRAM"));
    command.arg("tensor-report").args(&models).args(["--base", "base.safetensors", "--out", "report.html"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = format!("file://{}", folder.path().join("report.html").display());
    // What the browser makes of the text: four pictures, no cell of which the parser lost, and nothing that is loaded from elsewhere.
    let dom = String::from_utf8(browser(folder.path(), &["--dump-dom", &page]).stdout).unwrap();
    assert_eq!(dom.matches("<svg").count(), 4);
    assert_eq!(dom.matches("<title>").count(), 1 + 3 + 9, "the page, a cell for each tensor, and the cosines of three models");
    assert!(!dom.contains("<script") && !dom.contains("src=") && !dom.contains("parsererror"));
    // What one sees: white paper, black letters, the blue of full cells for the cosines of models with themselves.
    browser(folder.path(), &[&format!("--window-size={WIDTH},1400"), "--screenshot=shown.png", &page]);
    let colors = colors(&folder.path().join("shown.png"));
    let all: usize = colors.values().sum();
    let of = |color: [u8; 3]| colors.get(&color).copied().unwrap_or(0);
    assert!((all / 2..all * 99 / 100).contains(&of([255, 255, 255])), "{} of {all} are white", of([255, 255, 255]));
    assert!(of([30, 80, 170]) > 3 * 300, "three full cells: {}", of([30, 80, 170]));
    let dark: usize = colors.iter().filter(|(c, _)| c.iter().all(|v| *v < 80)).map(|(_, n)| n).sum();
    assert!(dark > 2000, "{dark} are dark");
}
