//! Who may connect.

use crate::error::{MergeError, Result};
use crate::text_files::io;
use mergeql_udfs::Code;
use std::collections::BTreeMap;
use std::path::Path;

/// Users with their passwords, and tokens. With neither, everyone is let in.
#[derive(Clone, Default)]
pub struct Credentials {
    users: BTreeMap<String, String>,
    tokens: Vec<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("users", &self.users.keys()).field("tokens", &self.tokens.len()).finish()
    }
}

impl Credentials {
    /// Reads a file of users (`name:password`, a line each) and a file of tokens (a line each). Empty lines and lines that begin with
    /// `#` are left out.
    ///
    /// # Errors
    /// `io` if a file cannot be read, `invalid_argument` if it holds no users, no tokens, or a line that is neither.
    pub fn read(users: Option<&Path>, tokens: Option<&Path>) -> Result<Credentials> {
        let mut credentials = Credentials::default();
        if let Some(path) = users {
            for (number, line) in lines(path)? {
                let user = line.split_once(':').filter(|(name, password)| !name.is_empty() && !password.is_empty());
                let (name, password) = user.ok_or_else(|| {
                    MergeError::new(Code::InvalidArgument, format!("{}: line {number} is not `name:password`", path.display()))
                })?;
                credentials.users.insert(name.to_owned(), password.to_owned());
            }
            if credentials.users.is_empty() {
                return Err(MergeError::new(Code::InvalidArgument, format!("{} holds no users", path.display())));
            }
        }
        if let Some(path) = tokens {
            credentials.tokens = lines(path)?.into_iter().map(|(_, line)| line.trim().to_owned()).collect();
            if credentials.tokens.is_empty() {
                return Err(MergeError::new(Code::InvalidArgument, format!("{} holds no tokens", path.display())));
            }
        }
        Ok(credentials)
    }

    /// Whether a client has to say who it is.
    pub fn is_some(&self) -> bool {
        self.has_users() || !self.tokens.is_empty()
    }

    /// Whether there are passwords.
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    pub(crate) fn password(&self, user: &str) -> Option<&str> {
        self.users.get(user).map(String::as_str)
    }

    pub(crate) fn allows_user(&self, user: &str, password: &str) -> bool {
        // An unknown user takes as long as a wrong password.
        let known = self.users.get(user);
        let same = same(known.map_or("", String::as_str), password);
        known.is_some() && same
    }

    pub(crate) fn allows_token(&self, token: &str) -> bool {
        self.tokens.iter().fold(false, |found, known| found | same(known, token))
    }

    /// The first token, which a client or a worker shows to others.
    pub fn token(&self) -> Option<&str> {
        self.tokens.first().map(String::as_str)
    }
}

fn lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let text = std::fs::read_to_string(path).map_err(|e| MergeError::from(io(path, e)))?;
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim_end_matches('\r').to_owned()));
    Ok(lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')).collect())
}

/// Compares without telling by its time where they differ.
fn same(a: &str, b: &str) -> bool {
    use subtle::ConstantTimeEq;
    a.as_bytes().ct_eq(b.as_bytes()).into()
}
