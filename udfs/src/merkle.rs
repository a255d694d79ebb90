//! The hash of many hashes: a Merkle tree (Merkle 1987, A digital signature based on a conventional encryption function), whose nodes are
//! marked, so that none reads as a leaf.

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// What SHA-256 starts from (FIPS 180-4, 5.3.3).
const START: [u32; 8] = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The hash of some parts after a mark that says what they are.
// Inlined, so that the lengths of parts are known where they are fixed.
#[inline(always)]
pub fn marked(mark: u8, parts: &[&[u8]]) -> Hash {
    let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    // What with its padding fills two blocks at most needs no buffer that is kept between parts.
    if length > 2 * 64 - 9 {
        let mut hash = Sha256::new();
        hash.update([mark]);
        parts.iter().for_each(|part| hash.update(part));
        return hash.finalize().into();
    }
    let mut blocks = [[0u8; 64]; 2];
    let bytes = blocks.as_flattened_mut();
    bytes[0] = mark;
    let mut at = 1;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    bytes[at] = 0x80;
    let used = if length <= 64 - 9 { 1 } else { 2 };
    bytes[64 * used - 8..64 * used].copy_from_slice(&(8 * length as u64).to_be_bytes());
    let mut state = START;
    compress256(&mut state, &blocks[..used]);
    let mut hash = [0; 32];
    hash.chunks_exact_mut(4).zip(state).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_be_bytes()));
    hash
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
    fn short_hashes_are_those_of_sha256() {
        let data = [7u8; 200];
        for n in 0..data.len() {
            let (head, tail) = data[..n].split_at(n / 3);
            let expected: Hash = Sha256::new().chain_update([3]).chain_update(&data[..n]).finalize().into();
            assert_eq!(marked(3, &[head, tail]), expected, "{n} bytes");
        }
    }

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
