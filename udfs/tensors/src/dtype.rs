//! Numbers as checkpoints store them: read into f32, and rounded once on the way out (to nearest, ties to even).

use crate::simd::vectors;
use half::f16;
use half::slice::HalfFloatSliceExt;
use mergeql_udfs::{Error, Result};
pub use safetensors::Dtype;

/// Bytes of one element; `None` for types of less than a byte.
pub fn width(dtype: Dtype) -> Option<usize> {
    dtype.bitsize().is_multiple_of(8).then(|| dtype.bitsize() / 8)
}

/// Whether tensors of this type are merged by arithmetic; others must agree.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// The name in a statement and in a listing: `bf16`.
pub fn name(dtype: Dtype) -> String {
    dtype.to_string().to_ascii_lowercase()
}

/// The name in a config of a model: `bfloat16`.
pub fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "float64",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F8_E4M3 => "float8_e4m3fn",
        Dtype::F8_E5M2 => "float8_e5m2",
        _ => "float32",
    }
}

/// The type of this name: `bf16`, `bfloat16`, `BF16`.
///
/// # Errors
/// `invalid_argument` for a name that is none of a float.
pub fn parse(text: &str) -> Result<Dtype> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "f64" | "float64" => Dtype::F64,
        "f32" | "float32" => Dtype::F32,
        "f16" | "float16" => Dtype::F16,
        "bf16" | "bfloat16" => Dtype::BF16,
        "f8_e4m3" | "f8_e4m3fn" | "float8_e4m3fn" => Dtype::F8_E4M3,
        "f8_e5m2" | "float8_e5m2" => Dtype::F8_E5M2,
        _ => {
            return Err(Error::invalid_argument(format!("`{text}` is no type of floats"))
                .with_help("f32, f16, bf16, f64, f8_e4m3 or f8_e5m2"));
        }
    })
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|c| c.try_into().expect("invariant: chunks of N bytes"))
}

/// Reads little-endian elements.
///
/// # Errors
/// `type_mismatch` for a type that is no float.
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match dtype {
        Dtype::F32 => out.iter_mut().zip(chunks(bytes)).for_each(|(o, b)| *o = f32::from_le_bytes(b)),
        Dtype::F64 => out.iter_mut().zip(chunks(bytes)).for_each(|(o, b)| *o = f64::from_le_bytes(b) as f32),
        Dtype::BF16 => from_bf16(bytes, out),
        Dtype::F16 => {
            let halves: Vec<f16> = chunks(bytes).map(f16::from_le_bytes).collect();
            halves.convert_to_f32_slice(out);
        }
        Dtype::F8_E5M2 => out.iter_mut().zip(bytes).for_each(|(o, b)| *o = f16::from_bits(u16::from(*b) << 8).to_f32()),
        Dtype::F8_E4M3 => out.iter_mut().zip(bytes).for_each(|(o, b)| *o = from_e4m3(*b)),
        other => return Err(Error::type_mismatch(format!("{} is no type of floats", name(other)))),
    }
    Ok(())
}

/// The first element that is NaN or infinite, of a type of floats.
pub fn not_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    vectors! {
    fn block['a, const N: usize, F: Fn([u8; N]) -> bool](bytes: &'a [u8], bad: &'a F, _width: [(); N]) -> Option<usize> {
        bytes.chunks(4096).position(|block| chunks(block).fold(false, |any, b| any | bad(b)))
    }
    }
    // An exponent of all ones; whole blocks are looked through with vectors before the place is sought.
    fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
        let at = block(bytes, &bad, [(); N])?;
        chunks(&bytes[at * 4096..]).position(bad).map(|inside| at * (4096 / N) + inside)
    }
    match dtype {
        Dtype::F32 => find(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        // What f32 cannot hold is infinite to all that follows.
        Dtype::F64 => find(bytes, |b| !(f64::from_le_bytes(b) as f32).is_finite()),
        Dtype::BF16 => find(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::F16 => find(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Dtype::F8_E5M2 => find(bytes, |[b]: [u8; 1]| b & 0x7c == 0x7c),
        Dtype::F8_E4M3 => find(bytes, |[b]: [u8; 1]| b & 0x7f == 0x7f),
        _ => None,
    }
}

/// Writes little-endian elements, each rounded once.
///
/// # Errors
/// `type_mismatch` for a type that is no float.
pub fn encode(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    match dtype {
        Dtype::F32 if cfg!(target_endian = "little") => out.extend_from_slice(bytemuck::cast_slice(values)),
        Dtype::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Dtype::F64 => values.iter().for_each(|v| out.extend(f64::from(*v).to_le_bytes())),
        Dtype::BF16 => {
            let from = out.len();
            out.resize(from + 2 * values.len(), 0);
            all_to_bf16(values, &mut out[from..]);
        }
        Dtype::F16 => values.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
        Dtype::F8_E5M2 => out.extend(values.iter().map(|v| to_f8(*v, 2))),
        Dtype::F8_E4M3 => out.extend(values.iter().map(|v| to_f8(*v, 3))),
        other => return Err(Error::type_mismatch(format!("{} is no type of floats", name(other)))),
    }
    Ok(())
}

vectors! {
/// The upper half of f32.
fn from_bf16['a](bytes: &'a [u8], out: &'a mut [f32]) {
    out.iter_mut().zip(chunks(bytes)).for_each(|(o, b)| *o = f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
}

fn all_to_bf16['a](values: &'a [f32], out: &'a mut [u8]) {
    out.chunks_exact_mut(2).zip(values).for_each(|(o, v)| o.copy_from_slice(&to_bf16(*v).to_le_bytes()));
}
}

/// The upper half, rounded to nearest with ties to even; NaN stays NaN. Without branches, so that it runs on vectors.
#[inline(always)]
fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

/// Four bits of exponent with bias 7, three of mantissa, no infinities (Micikevicius et al. 2022, FP8 formats for deep learning).
fn from_e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(b >> 3 & 15), f32::from(b & 7));
    let size = match exponent {
        15 if b & 7 == 7 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if b & 0x80 == 0 { size } else { -size }
}

/// The nearest of the 127 magnitudes, ties to the even code; beyond the greatest, NaN where there is no infinity.
fn to_f8(v: f32, mantissa_bits: u32) -> u8 {
    let decode = |code: u8| if mantissa_bits == 3 { from_e4m3(code) } else { f16::from_bits(u16::from(code) << 8).to_f32() };
    let (sign, size, top) = (if v.is_sign_negative() { 0x80 } else { 0 }, v.abs(), if mantissa_bits == 3 { 0x7e } else { 0x7b });
    if v.is_nan() {
        return sign | 0x7f;
    }
    // The first code whose value is not below.
    let (mut low, mut high) = (0u8, top + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if decode(middle) < size { low = middle + 1 } else { high = middle }
    }
    let above = if low > top { f64::from(decode(top)) + f64::from(decode(top) - decode(top - 1)) } else { f64::from(decode(low)) };
    let code = match low {
        0 => 0,
        _ => {
            let below = f64::from(decode(low - 1));
            let (down, up) = (f64::from(size) - below, above - f64::from(size));
            if down < up || (down == up && (low - 1) % 2 == 0) { low - 1 } else { low }
        }
    };
    // One past the greatest is infinity in e5m2 and NaN in e4m3.
    sign | if code > top && mantissa_bits == 2 {
        0x7c
    } else if code > top {
        0x7f
    } else {
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_narrow_float_comes_back_as_it_was() {
        for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::BF16, Dtype::F16] {
            let size = width(dtype).expect("whole bytes");
            for code in 0..(1u32 << (8 * size)) {
                let bytes = &code.to_le_bytes()[..size];
                let mut value = [0f32];
                decode(dtype, bytes, &mut value).expect("a float");
                let mut back = Vec::new();
                encode(dtype, &value, &mut back).expect("a float");
                assert!(value[0].is_nan() || back == bytes, "{dtype:?} {code:#x} {value:?} {back:?}");
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_with_ties_to_even() {
        let round = |dtype, v: f32| {
            let (mut bytes, mut back) = (Vec::new(), [0f32]);
            encode(dtype, &[v], &mut bytes).expect("a float");
            decode(dtype, &bytes, &mut back).expect("a float");
            back[0]
        };
        assert_eq!(round(Dtype::BF16, 1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(round(Dtype::BF16, 1.0 + 3.0 / 256.0), 1.0 + 1.0 / 64.0);
        assert_eq!(round(Dtype::F8_E4M3, 1.0625), 1.0);
        assert_eq!(round(Dtype::F8_E4M3, 1.1875), 1.25);
        assert_eq!(round(Dtype::F8_E4M3, 460.0), 448.0);
        assert!(round(Dtype::F8_E4M3, 1e9).is_nan() && round(Dtype::F8_E5M2, 1e9).is_infinite());
    }
}
