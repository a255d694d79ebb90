//! The hash of many hashes: a Merkle tree (Merkle 1987, A digital signature based on a conventional encryption function), whose nodes are
//! marked, so that none reads as a leaf.

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of some parts after a mark that says what they are.
pub fn marked(mark: u8, parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    hash.update([mark]);
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// The root over leaves as a set: in order, each once. An odd one goes up as it is; of none, zeros.
pub fn root(mut leaves: Vec<Hash>) -> Hash {
    leaves.sort_unstable();
    leaves.dedup();
    while leaves.len() > 1 {
        leaves = leaves.chunks(2).map(|pair| if let [a, b] = pair { marked(1, &[a, b]) } else { pair[0] }).collect();
    }
    leaves.first().copied().unwrap_or_default()
}

/// As lower-case hexadecimal digits.
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_of_the_set_of_leaves() {
        let leaf = |n: u8| marked(0, &[&[n]]);
        let usual = root(vec![leaf(1), leaf(2), leaf(3)]);
        assert_eq!(usual, root(vec![leaf(3), leaf(1), leaf(2), leaf(1)]));
        assert_ne!(usual, root(vec![leaf(1), leaf(2)]));
        assert_eq!(root(vec![leaf(1)]), leaf(1));
        assert_eq!(hex(&root(Vec::new())), "0".repeat(64));
    }
}
