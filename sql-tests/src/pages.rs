//! The blocks of a page of the manual, which tests run.

/// A block of code, and what the page says comes out of it.
#[derive(Debug, PartialEq)]
pub struct Block {
    /// The language: `sql`, `python` ...
    pub language: String,
    /// The code.
    pub code: String,
    /// The `text` block that follows at once.
    pub expected: Option<String>,
}

/// The blocks of a page in order.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<(&str, String)> = None;
    let mut adjacent = false;
    for line in page.lines() {
        match (&mut open, line) {
            (None, line) => match line.strip_prefix("```") {
                Some(language) => open = Some((language, String::new())),
                None => adjacent &= line.trim().is_empty(),
            },
            (Some(_), "```") => match open.take() {
                Some(("text", text)) => {
                    if let (true, Some(last)) = (adjacent, blocks.last_mut()) {
                        last.expected = Some(text);
                    }
                    adjacent = false;
                }
                Some((language, code)) => {
                    blocks.push(Block { language: language.to_owned(), code, expected: None });
                    adjacent = true;
                }
                None => {}
            },
            (Some((_, text)), line) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    blocks
}

/// Runs JavaScript of a page in Node.js, where its packages are; gives back what it prints.
///
/// # Errors
/// What Node.js says when it fails.
pub fn run_js(script: &str) -> Result<String, String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: run `cargo xtask test`"));
    let output = std::process::Command::new(variable("MERGEQL_NODE")?)
        .args(["--disable-warning=ExperimentalWarning", "-e", script])
        .current_dir(variable("MERGEQL_NODE_MODULES")?)
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
