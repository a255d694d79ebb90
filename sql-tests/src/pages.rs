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
