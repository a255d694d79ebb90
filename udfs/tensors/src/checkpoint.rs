//! Checkpoints: a safetensors file, a sharded one with its index, a folder, or a pattern.
//!
//! Files are read at positions, not mapped: a file that another program truncates is an error then, not a signal that ends the host,
//! and the memory held is what a tile needs.

use crate::dtype::{self, Dtype};
use mergeql_udfs::{Code, Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The greatest header that is read, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// A tensor has no more axes than this.
const MAX_RANK: usize = 32;

#[derive(Debug)]
struct Data {
    path: PathBuf,
    file: File,
    /// Where the bytes of the tensors begin.
    start: u64,
}

#[derive(Debug, Clone)]
enum Store {
    File(Arc<Data>),
    Memory(Arc<Vec<f32>>),
    Made(Arc<dyn Elements>),
}

/// Elements that are computed from other tensors when they are read.
pub trait Elements: std::fmt::Debug + Send + Sync {
    /// Those of a range.
    ///
    /// # Errors
    /// As [`Tensor::read`] of what they are computed from.
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The bytes from a place on, of elements that are no floats.
    ///
    /// # Errors
    /// As [`Tensor::raw`] of what they are computed from; `unsupported` for floats, which are read.
    fn raw(&self, _from: u64, _out: &mut [u8]) -> Result<()> {
        Err(Error::new(Code::Unsupported, "computed elements have no bytes of their own"))
    }

    /// A tensor that they are computed from, whose file errors name.
    fn source(&self) -> Option<&Tensor>;
}

/// Room for the elements of a stretch, kept between reads.
#[derive(Debug, Default)]
pub struct Buffer {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

/// Where a tensor is, and what it is.
#[derive(Debug, Clone)]
pub struct Tensor {
    store: Store,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the end of the header.
    pub bytes: Range<u64>,
    name: Arc<str>,
    /// Whether NaN and infinity are let through.
    pub lenient: bool,
    /// The type that elements are rounded to when they are read.
    rounded: Option<Dtype>,
}

/// The tensors of one model.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// What it was opened by.
    pub path: PathBuf,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// What else its contribution is named by: of an adapter, how its factors are scaled.
    pub metadata: String,
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("`{}`: {error}", path.display()))
}

fn broken(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("`{}` is no sound safetensors file: {what}", path.display()))
        .with_help("write it anew, or download it again")
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (out, at) = (&mut out[n..], at + n as u64),
        }
    }
    Ok(())
}

impl Tensor {
    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A tensor that is held in memory.
    pub fn memory(name: &str, shape: &[usize], values: Vec<f32>) -> Tensor {
        let bytes = 0..4 * values.len() as u64;
        Tensor {
            store: Store::Memory(Arc::new(values)),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes,
            name: name.into(),
            lenient: true,
            rounded: None,
        }
    }

    /// A tensor whose elements are computed when they are read.
    pub fn made(name: &str, dtype: Dtype, shape: &[usize], elements: Arc<dyn Elements>) -> Tensor {
        let size = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8;
        // What they are computed from says whether it may be NaN or infinite.
        Tensor {
            store: Store::Made(elements),
            dtype,
            shape: shape.to_vec(),
            bytes: 0..size,
            name: name.into(),
            lenient: true,
            rounded: None,
        }
    }

    /// The same tensor under another name.
    pub fn renamed(&self, name: &str) -> Tensor {
        Tensor { name: name.into(), ..self.clone() }
    }

    /// The file that it is in.
    pub fn file(&self) -> &Path {
        match &self.store {
            Store::File(data) => &data.path,
            Store::Memory(_) => Path::new(""),
            Store::Made(elements) => elements.source().map_or(Path::new(""), Tensor::file),
        }
    }

    /// Where its bytes begin in that file.
    pub fn offset(&self) -> u64 {
        match &self.store {
            Store::File(data) => data.start + self.bytes.start,
            Store::Memory(_) | Store::Made(_) => 0,
        }
    }

    /// The bytes of a stretch, counted from its own first.
    ///
    /// # Errors
    /// `io` where the file cannot be read, or ends early.
    pub fn raw(&self, from: u64, out: &mut [u8]) -> Result<()> {
        match &self.store {
            Store::File(data) => read_at(&data.file, out, data.start + self.bytes.start + from).map_err(|e| failed(&data.path, e)),
            Store::Memory(values) => {
                let bytes = values[from as usize / 4..].iter().flat_map(|v| v.to_le_bytes());
                out.iter_mut().zip(bytes).for_each(|(o, b)| *o = b);
                Ok(())
            }
            Store::Made(elements) if self.dtype == Dtype::F32 => {
                let start = from as usize / 4;
                let mut values = vec![0.0; out.len() / 4];
                elements.read(start..start + values.len(), &mut values)?;
                out.copy_from_slice(bytemuck::cast_slice(&values));
                Ok(())
            }
            Store::Made(elements) => elements.raw(from, out),
        }
    }

    /// The elements of a range: those in memory, or read into the buffer.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn view<'a>(&'a self, range: Range<usize>, buffer: &'a mut Buffer) -> Result<&'a [f32]> {
        if let (Store::Memory(values), None) = (&self.store, self.rounded) {
            return Ok(&values[range]);
        }
        let n = range.len();
        if buffer.values.len() < n {
            buffer.values.resize(n, 0.0);
        }
        self.read(range, &mut buffer.values[..n], &mut buffer.bytes)?;
        Ok(&buffer.values[..n])
    }

    /// The type that its elements are rounded to when they are read, where it is another than its own.
    pub fn read_as(&self) -> Option<Dtype> {
        self.rounded
    }

    /// Whether these are doubles in a file, and doubles are wanted.
    pub fn stays(&self, wanted: Dtype) -> bool {
        matches!(self.store, Store::File(_)) && (self.dtype, wanted, self.rounded) == (Dtype::F64, Dtype::F64, None)
    }

    /// The same tensor, its elements rounded to a type when they are read.
    pub fn rounded(&self, dtype: Dtype) -> Tensor {
        let narrower = dtype != self.dtype && !matches!(dtype, Dtype::F32 | Dtype::F64) && dtype::is_float(self.dtype);
        Tensor { rounded: narrower.then_some(dtype), ..self.clone() }
    }

    /// The same tensor, with its elements in memory.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn loaded(&self) -> Result<Tensor> {
        match &self.store {
            Store::Memory(_) => Ok(self.clone()),
            Store::File(_) | Store::Made(_) => Ok(Tensor { lenient: true, ..Tensor::memory(&self.name, &self.shape, self.all()?) }),
        }
    }

    /// Elements as f32.
    ///
    /// # Errors
    /// `io`; `type_mismatch` for elements that are no floats; `invalid_argument` for one that is not finite.
    pub fn read(&self, range: Range<usize>, out: &mut [f32], bytes: &mut Vec<u8>) -> Result<()> {
        self.read_as_stored(range, out, bytes)?;
        if let Some(dtype) = self.rounded {
            bytes.clear();
            dtype::encode(dtype, out, bytes)?;
            dtype::decode(dtype, bytes, out)?;
        }
        Ok(())
    }

    fn read_as_stored(&self, range: Range<usize>, out: &mut [f32], bytes: &mut Vec<u8>) -> Result<()> {
        if let Store::Memory(values) = &self.store {
            out.copy_from_slice(&values[range]);
            return Ok(());
        }
        if let Store::Made(elements) = &self.store {
            return elements.read(range, out);
        }
        let width = dtype::width(self.dtype).unwrap_or(1);
        if self.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            // As they are in the file.
            let out: &mut [u8] = bytemuck::cast_slice_mut(out);
            self.raw((range.start * width) as u64, out)?;
            return match self.first_not_finite(out) {
                Some(at) => Err(self.not_finite(range.start + at)),
                None => Ok(()),
            };
        }
        if bytes.len() < range.len() * width {
            bytes.resize(range.len() * width, 0);
        }
        let bytes = &mut bytes[..range.len() * width];
        self.raw((range.start * width) as u64, bytes)?;
        dtype::decode(self.dtype, bytes, out)
            .map_err(|e| Error { message: format!("tensor `{}`: {}", self.name, e.message), ..e })?;
        match self.first_not_finite(bytes) {
            Some(at) => Err(self.not_finite(range.start + at)),
            None => Ok(()),
        }
    }

    /// The first element of some bytes of it that is NaN or infinite, unless they are let through.
    pub fn first_not_finite(&self, bytes: &[u8]) -> Option<usize> {
        if self.lenient { None } else { dtype::not_finite(self.dtype, bytes) }
    }

    /// What is wrong with an element that is NaN or infinite.
    pub fn not_finite(&self, at: usize) -> Error {
        // Arithmetic is in f32.
        let what = if self.dtype == Dtype::F64 { "NaN, infinity or more than f32 can hold" } else { "NaN or infinity" };
        Error::invalid_argument(format!("tensor `{}` of `{}` holds {what} at element {at}", self.name, self.file().display()))
            .with_help("mend the model, or let it through a merge WITH (nan = 'propagate')")
    }

    /// The first element, if there is one and it is a float.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn first(&self) -> Result<Option<f32>> {
        if self.is_empty() || !dtype::is_float(self.dtype) {
            return Ok(None);
        }
        let mut out = [0.0];
        self.read(0..1, &mut out, &mut Vec::new())?;
        Ok(Some(out[0]))
    }

    /// All elements as f32.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn all(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.len()];
        self.read(0..self.len(), &mut out, &mut Vec::new())?;
        Ok(out)
    }
}

/// The first tensor that a file ends before, for people.
fn beyond(metadata: &Metadata, size: u64) -> String {
    let tensors = metadata.tensors();
    let lacking = tensors.iter().filter(|(_, info)| info.data_offsets.1 as u64 > size);
    let first = lacking.min_by_key(|(_, info)| info.data_offsets);
    first.map(|(name, _)| format!(": the end of `{name}` is missing")).unwrap_or_default()
}

/// The first tensor, by its place, that makes a header wrong, and what is wrong with it.
fn culprit(header: &[u8]) -> Option<(String, String)> {
    let header: serde_json::Map<String, Json> = serde_json::from_slice(header).ok()?;
    let mut tensors = Vec::new();
    for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        match serde_json::from_value::<TensorInfo>(info) {
            Ok(info) => tensors.push((name, info)),
            Err(e) => return Some((name, format!("is not described: {e}"))),
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (name, TensorInfo { dtype, shape, data_offsets: (from, to) }) in tensors {
        let elements = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.bitsize())).map(|bits| bits / 8);
        let what = if bytes.is_none() || to.checked_sub(from) != bytes {
            format!("of the shape {shape:?} and the type {} does not take the bytes {from} to {to}", dtype::name(dtype))
        } else if from != end {
            let before = if from < end { "into the one before it" } else { "after a gap" };
            format!("begins at byte {from}, {before}, which ends at {end}")
        } else {
            end = to;
            continue;
        };
        return Some((name, what));
    }
    None
}

/// The names of a header, each of which is there once.
struct Names;

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(header: D) -> std::result::Result<Names, D::Error> {
        struct Once;
        impl<'de> serde::de::Visitor<'de> for Once {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    if let Some(name) = seen.replace(name) {
                        return Err(serde::de::Error::custom(format!("tensor `{name}` is there twice")));
                    }
                }
                Ok(Names)
            }
        }
        header.deserialize_map(Once)
    }
}

/// The tensors of one file, from its header alone.
fn open_file(path: &Path, into: &mut BTreeMap<String, Tensor>) -> Result<()> {
    let file = File::open(path).map_err(|e| failed(path, e))?;
    let size = file.metadata().map_err(|e| failed(path, e))?.len();
    let mut length = [0; 8];
    if size < 8 {
        return Err(broken(path, format!("it has {size} bytes, and a header takes 8 at least")));
    }
    read_at(&file, &mut length, 0).map_err(|e| failed(path, e))?;
    let others = [
        (&b"GGUF"[..], "a GGUF file"),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes its checkpoints"),
        (b"\x80\x02", "a pickle of Python"),
    ];
    let header = u64::from_le_bytes(length);
    if header > MAX_HEADER || header > size - 8 {
        // A length may begin with the same bytes, and then is one that can be.
        if let Some((_, what)) = others.iter().find(|(magic, _)| length.starts_with(magic)) {
            return Err(Error::new(Code::Unsupported, format!("`{}` is {what}: only safetensors files are read", path.display()))
                .with_help("convert it to safetensors"));
        }
        return Err(broken(path, format!("its header claims {header} bytes, {} are there", size - 8)));
    }
    let mut bytes = vec![0; 8 + header as usize];
    read_at(&file, &mut bytes, 0).map_err(|e| failed(path, e))?;
    serde_json::from_slice::<Names>(&bytes[8..]).map_err(|e| broken(path, e))?;
    // Offsets that overlap, leave gaps or contradict a shape are refused here.
    let metadata: Metadata = serde_json::from_slice(&bytes[8..]).map_err(|e| match culprit(&bytes[8..]) {
        Some((name, what)) => broken(path, format!("tensor `{name}` {what}")),
        None => broken(path, e),
    })?;
    if metadata.data_len() as u64 != size - 8 - header {
        return Err(broken(
            path,
            format!(
                "its tensors take {} bytes, {} are there{}",
                metadata.data_len(),
                size - 8 - header,
                beyond(&metadata, size - 8 - header)
            ),
        ));
    }
    let data = Arc::new(Data { path: path.to_owned(), file, start: 8 + header });
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        if info.shape.len() > MAX_RANK {
            return Err(broken(path, format!("tensor `{name}` has {} axes", info.shape.len())));
        }
        let tensor = Tensor {
            store: Store::File(data.clone()),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: from as u64..to as u64,
            name: name.as_str().into(),
            lenient: false,
            rounded: None,
        };
        if into.insert(name.clone(), tensor).is_some() {
            return Err(failed(path, format!("tensor `{name}` is in another file beside it, too"))
                .with_help("a folder is one model: name the files themselves, or a pattern, to merge several"));
        }
    }
    Ok(())
}

/// The index that a path stands for, if it does.
fn index_of(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.join("model.safetensors.index.json")).filter(|index| index.is_file());
    }
    path.to_string_lossy().ends_with(".index.json").then(|| path.to_owned())
}

/// The file of each tensor, as an index lists them.
fn weight_map(index: &Path) -> Result<serde_json::Map<String, Json>> {
    let text = std::fs::read_to_string(index).map_err(|e| failed(index, e))?;
    let mut json: Json = serde_json::from_str(&text).map_err(|e| broken(index, e))?;
    match json.get_mut("weight_map").map(Json::take) {
        Some(Json::Object(map)) => Ok(map),
        _ => Err(broken(index, "it has no weight_map")),
    }
}

/// The files that an index lists, in order.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let map = weight_map(index)?;
    let mut names: Vec<&str> = map.values().filter_map(Json::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let folder = index.parent().unwrap_or(Path::new("."));
    let inside = |name: &&str| Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if let Some(name) = names.iter().find(|name| !inside(name)) {
        return Err(broken(index, format!("`{name}` is no file beside it")));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if let Some(index) = index_of(path) {
        return shards(&index);
    }
    if path.is_dir() {
        for single in ["model.safetensors", "adapter_model.safetensors"] {
            if path.join(single).is_file() {
                return Ok(vec![path.join(single)]);
            }
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(|e| failed(path, e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(failed(path, "there is no safetensors file in this folder"));
        }
        return Ok(files);
    }
    Ok(vec![path.to_owned()])
}

/// Of an adapter's config, as PEFT writes it, what says by how much its factors count.
fn scaling(folder: &Path) -> Result<String> {
    let path = folder.join("adapter_config.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(String::new()) };
    let config: Json = serde_json::from_str(&text).map_err(|e| failed(&path, e))?;
    let fields = ["lora_alpha", "r", "use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out"];
    let mut kept: Json = fields
        .iter()
        .filter(|f| !config[**f].is_null())
        .map(|f| ((*f).to_owned(), config[*f].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    kept.sort_all_objects();
    Ok(kept.to_string())
}

impl Checkpoint {
    /// Whether these are the same tensors of the same files.
    pub(crate) fn is_same(&self, other: &Checkpoint) -> bool {
        let place = |t: &Tensor| (t.file().to_owned(), t.offset());
        self.path == other.path
            && self.tensors.len() == other.tensors.len()
            && self.tensors.iter().zip(&other.tensors).all(|((a, t), (b, u))| a == b && place(t) == place(u))
    }

    /// Opens a file, a folder or an index; only headers are read.
    ///
    /// # Errors
    /// `io` for a file that is missing, or whose header lies.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(failed(path, "there is no such file")
                .with_help("a model is a safetensors file, a folder with one, or the index of a sharded one"));
        }
        let mut tensors = BTreeMap::new();
        for file in files_of(path)? {
            // A pipe would be waited for, and is not read at places.
            if file.exists() && !file.is_file() {
                return Err(failed(&file, "it is no regular file"));
            }
            open_file(&file, &mut tensors)?;
        }
        if let Some(index) = index_of(path)
            && let Some((name, file)) = weight_map(&index)?.iter().find(|(name, _)| !tensors.contains_key(*name))
        {
            return Err(broken(&index, format!("it has tensor `{name}` in {file}, where it is not")));
        }
        let mut checkpoint = Checkpoint { path: path.to_owned(), tensors, metadata: String::new() };
        if crate::lora::is_adapter(&checkpoint) {
            checkpoint.metadata = scaling(checkpoint.folder())?;
        }
        Ok(checkpoint)
    }

    /// The same checkpoint, with NaN and infinity let through or not.
    pub fn lenient(mut self, lenient: bool) -> Checkpoint {
        self.tensors.values_mut().for_each(|t| t.lenient = lenient);
        self
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The folder that it stands in, for the files beside it.
    pub fn folder(&self) -> &Path {
        let folder = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
        folder.filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}

/// The paths that a pattern stands for, in order; a path without `*`, `?` and `[` stands for itself.
///
/// # Errors
/// `io` for a pattern that is none, or that matches nothing.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    if !pattern.contains(['*', '?', '[']) || Path::new(pattern).exists() {
        return Ok(vec![pattern.into()]);
    }
    let paths = glob::glob(pattern).map_err(|e| failed(Path::new(pattern), e))?;
    let mut found: Vec<PathBuf> = paths.filter_map(|p| p.ok()).collect();
    found.sort();
    if found.is_empty() {
        return Err(failed(Path::new(pattern), "no file is called like this"));
    }
    Ok(found)
}
