//! Sizes as people write them.

/// A size in bytes: `2GB`, `512 MiB`, `1000000`.
///
/// ```
/// assert_eq!(mergeql_udfs::parse_size("1.5 GB"), Some(1_500_000_000));
/// assert_eq!(mergeql_udfs::parse_size("much"), None);
/// ```
pub fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit: f64 = match text[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        _ => return None,
    };
    let bytes = number * unit;
    (1.0..1e18).contains(&bytes).then_some(bytes as usize)
}
