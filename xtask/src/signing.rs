//! A repository of the extension, signed with one's own key, that DuckDB 2.0 installs from: so that nobody must allow unsigned extensions.
//!
//! DuckDB's documentation, "Publishing an Extension Repository": a file ends in 256 bytes of an RSA signature (PKCS #1 v1.5 over SHA-256) of the
//! hash over the hashes of its parts of 1 MiB; `.well-known/duckdb-extension-repo.json` names the public keys.

use crate::duckdb::run_with;
use std::path::{Path, PathBuf};
use std::process::Command;

/// DuckDB releases that read repositories of others; each has a folder of its own.
const RELEASES: [&str; 2] = ["2.0.0", "2.0.1"];
const SIGNATURE: usize = 256;
const PART: usize = 1 << 20;

/// OpenSSL makes keys and signatures: keys often lie where only it reaches them.
fn openssl(arguments: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new("openssl").args(arguments).output().map_err(|e| format!("openssl: {e}"))?;
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A key of one's own.
pub fn make_key(path: &Path) -> Result<(), String> {
    openssl(&["genrsa", "-out", &path.display().to_string(), "2048"]).map(drop)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    std::fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

/// The extension, signed, as a repository beside it; gives back its folder.
pub fn repository(extension: &Path, key: &str, platform: &str) -> Result<PathBuf, String> {
    let folder = extension.with_file_name("duckdb-repository");
    let mut bytes = std::fs::read(extension).map_err(|e| format!("{}: {e}", extension.display()))?;
    bytes.truncate(bytes.len().saturating_sub(SIGNATURE));
    let scratch = extension.with_file_name("duckdb-repository.digest");
    let digest = |bytes: &[u8]| -> Result<Vec<u8>, String> {
        write(&scratch, bytes)?;
        openssl(&["dgst", "-sha256", "-binary", &scratch.display().to_string()])
    };
    let parts = bytes.chunks(PART).map(digest).collect::<Result<Vec<_>, _>>()?.concat();
    let whole = digest(&parts)?;
    write(&scratch, &whole)?;
    let signature =
        openssl(&["pkeyutl", "-sign", "-in", &scratch.display().to_string(), "-inkey", key, "-pkeyopt", "digest:sha256"])?;
    std::fs::remove_file(&scratch).ok();
    if signature.len() != SIGNATURE {
        return Err(format!(
            "the signature has {} bytes: DuckDB takes keys of 2048 bits, openssl genrsa -out KEY 2048",
            signature.len()
        ));
    }
    bytes.extend(signature);
    for release in RELEASES {
        let place = folder.join(format!("v{release}")).join(platform);
        std::fs::create_dir_all(&place).map_err(|e| e.to_string())?;
        let file = place.join("mergeql.duckdb_extension");
        write(&file, &bytes)?;
        run_with("gzip", &["-9", "-f", &file.display().to_string()], &[])?;
    }
    let public = String::from_utf8_lossy(&openssl(&["rsa", "-in", key, "-pubout"])?).replace('\n', "\\n");
    let known = folder.join(".well-known");
    std::fs::create_dir_all(&known).map_err(|e| e.to_string())?;
    let about = format!("{{\"version\": 1, \"signature_keys\": [\"{public}\"]}}\n");
    write(&known.join("duckdb-extension-repo.json"), about.as_bytes())?;
    Ok(folder)
}
