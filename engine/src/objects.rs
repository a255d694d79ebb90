//! Objects in S3, and in stores that speak its protocol, as sources and targets beside files: `s3://bucket/key`.
//!
//! Where the store is and who asks is said by the environment, as its other clients take it (`AWS_ENDPOINT_URL`, `AWS_REGION`,
//! `AWS_ACCESS_KEY_ID`, ...). Workers have an environment of their own.

use crate::error::{MergeError, Result};
use crate::sources::{Format, is_pattern};
use arrow::datatypes::Schema;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::read_footer_length;
use arrow::ipc::root_as_footer;
use datafusion::common::DataFusionError;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use mergeql_udfs::{Code, Error};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig};
use parquet::file::metadata::ParquetMetaData;
use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use url::Url;

/// Bytes of one piece of an upload; what is no bigger goes in one request, which the store refuses where the object must be new and is
/// not.
const PIECE: usize = 16 << 20;

/// One object, or the beginning of the names of several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    bucket: String,
    key: String,
}

impl Object {
    /// The object that a text names, if it names one rather than a file.
    ///
    /// # Errors
    /// `unsupported` for stores that are not S3, `invalid_argument` for a text without a bucket.
    pub fn parse(text: &str) -> Result<Option<Object>> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        if !matches!(scheme, "s3" | "s3a") {
            return Err(MergeError::new(Code::Unsupported, format!("`{scheme}://` names no store that is known here"))
                .help("objects are named s3://bucket/key; AWS_ENDPOINT_URL says where another store that speaks S3 is"));
        }
        match rest.split_once('/') {
            Some((bucket, key)) if is_bucket(bucket) => Ok(Some(Object { bucket: bucket.to_owned(), key: key.to_owned() })),
            _ => Err(MergeError::new(Code::InvalidArgument, format!("`{text}` names no object"))
                .help("objects are named s3://bucket/key")),
        }
    }

    /// `s3://bucket/key`
    pub fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    /// The format that the ending of its name says.
    pub fn format(&self) -> Option<Format> {
        Format::of_path(Path::new(&self.key))
    }

    fn key(&self) -> mergeql_udfs::Result<Key> {
        Key::parse(&self.key).map_err(|e| Error::new(Code::InvalidArgument, format!("{}: {e}", self.name())))
    }

    fn failed(&self, error: object_store::Error) -> Error {
        match error {
            object_store::Error::NotFound { source, .. } if source.to_string().contains("NoSuchBucket") => {
                Error::new(Code::Io, format!("{}: there is no bucket `{}`", self.name(), self.bucket))
                    .with_help("AWS_REGION says where it is, AWS_ENDPOINT_URL in which store if it is not Amazon's")
            }
            object_store::Error::NotFound { .. } => Error::new(Code::Io, format!("{}: there is no such object", self.name())),
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => self.there_already(),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::new(Code::Io, format!("{}: the store does not let you", self.name()))
                    .with_help("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say who asks, AWS_REGION where the bucket is")
            }
            other => Error::new(Code::Io, format!("{}: {}", self.name(), without_password(&other.to_string()))).with_help(
                "AWS_ENDPOINT_URL says which store is asked if it is not Amazon's, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY who asks",
            ),
        }
    }

    fn there_already(&self) -> Error {
        Error::new(Code::Io, format!("`{}` is there already", self.name())).with_help("write INTO OR REPLACE to replace it")
    }

    /// The objects that a name stands for: itself, those in a folder (one level, of known endings), those that a pattern matches;
    /// sorted, so that their order never matters.
    ///
    /// # Errors
    /// `io` if there is none, or the store says no.
    pub async fn expand(&self) -> Result<Vec<Object>> {
        let store = store(&self.bucket)?;
        let folder = |key: &str| key.is_empty() || key.ends_with('/');
        // Its own name first, as of files: a key may hold what patterns are made of.
        if !folder(&self.key) {
            match store.head(&self.key()?).await {
                Ok(_) => return Ok(vec![self.clone()]),
                Err(_) if is_pattern(&self.key) => {}
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(error).into()),
            }
        }
        let (prefix, pattern) = match is_pattern(&self.key) {
            true => {
                let fixed = self.key.find(['*', '?', '[']).unwrap_or_default();
                let prefix = self.key[..fixed].rfind('/').map_or("", |slash| &self.key[..slash]);
                let pattern = glob::Pattern::new(&self.key).map_err(|e| {
                    MergeError::new(Code::InvalidArgument, format!("the pattern `{}` is not valid: {e}", self.name()))
                })?;
                (prefix, Some(pattern))
            }
            false => (self.key.trim_end_matches('/'), None),
        };
        let alike = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        let prefix = Key::parse(prefix).map_err(|e| MergeError::new(Code::InvalidArgument, format!("{}: {e}", self.name())))?;
        let level = prefix.parts().count() + 1;
        let mut found = Vec::new();
        let mut listed = store.list(Some(&prefix));
        while let Some(object) = listed.try_next().await.map_err(|e| self.failed(e))? {
            let object = Object { bucket: self.bucket.clone(), key: object.location.to_string() };
            let wanted = match &pattern {
                Some(pattern) => pattern.matches_with(&object.key, alike),
                None => Key::from(object.key.as_str()).parts().count() == level && object.format().is_some(),
            };
            if wanted {
                found.push(object);
            }
        }
        found.sort();
        match found.is_empty() {
            true if folder(&self.key) || pattern.is_some() => {
                Err(Error::new(Code::Io, format!("`{}` names no objects", self.name())).into())
            }
            true => Err(Error::new(Code::Io, format!("{}: there is no such object", self.name())).into()),
            false => Ok(found),
        }
    }

    /// Its bytes, as they come. For threads that may wait: not for those of the runtime.
    ///
    /// # Errors
    /// `io`.
    pub fn open(&self) -> mergeql_udfs::Result<Box<dyn BufRead + Send>> {
        let runtime = Handle::current();
        let store = store(&self.bucket)?;
        let bytes = runtime.block_on(store.get(&self.key()?)).map_err(|e| self.failed(e))?.into_stream();
        Ok(Box::new(Streamed { runtime, bytes, piece: bytes::Bytes::new() }))
    }

    /// What the end of a Parquet file says of it.
    pub async fn footer(&self) -> Option<Arc<ParquetMetaData>> {
        let store = store(&self.bucket).ok()?;
        let about = store.head(&self.key().ok()?).await.ok()?;
        DFParquetMetadata::new(store.as_ref(), &about).fetch_metadata().await.ok()
    }

    /// The schema at the end of an Arrow file, which DataFusion looks for at the beginning, where not every writer puts it in the same place.
    /// `None` for a file in the format of streams.
    ///
    /// # Errors
    /// `io`.
    pub async fn arrow_schema(&self) -> Result<Option<Schema>> {
        const END: u64 = 10; // the length of the footer, and the magic
        let (store, key) = (store(&self.bucket)?, self.key()?);
        let size = store.head(&key).await.map_err(|e| self.failed(e))?.size;
        let part = async |range| store.get_range(&key, range).await.map_err(|e| self.failed(e));
        let Some(start) = size.checked_sub(END) else { return Ok(None) };
        let end: Option<[u8; END as usize]> = part(start..size).await?.as_ref().try_into().ok();
        let Some(length) = end.and_then(|end| read_footer_length(end).ok()) else { return Ok(None) };
        let Some(footer) = start.checked_sub(length as u64) else { return Ok(None) };
        // Copied, because a flat buffer is read where it is aligned.
        let footer = part(footer..start).await?.to_vec();
        Ok(root_as_footer(&footer).ok().and_then(|f| f.schema()).map(fb_to_schema))
    }

    /// The name as DataFusion takes it, which reads some characters as a pattern.
    ///
    /// # Errors
    /// `invalid_argument` for a name that no URL can hold.
    pub fn url(&self) -> Result<Url> {
        let text = format!("s3://{}/{}", self.bucket, crate::sources::escaped(&self.key));
        Url::parse(&text).map_err(|e| MergeError::new(Code::InvalidArgument, format!("{}: {e}", self.name())))
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// `io`.
    pub async fn exists(&self) -> Result<bool> {
        match store(&self.bucket)?.head(&self.key()?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed(error).into()),
        }
    }

    /// Makes it of the bytes of a file: whole or not at all. With `replace` false, one that is there already is left alone and an error.
    ///
    /// # Errors
    /// `io`.
    pub async fn upload(&self, file: &Path, replace: bool) -> Result<()> {
        let (store, key) = (store(&self.bucket)?, self.key()?);
        let failed = |e| MergeError::from(self.failed(e));
        let mut bytes = tokio::fs::File::open(file).await?;
        if bytes.metadata().await?.len() <= PIECE as u64 {
            let payload = PutPayload::from(tokio::fs::read(file).await?);
            let mode = if replace { PutMode::Overwrite } else { PutMode::Create };
            store.put_opts(&key, payload, mode.into()).await.map_err(failed)?;
            return Ok(());
        }
        if !replace && self.exists().await? {
            return Err(self.there_already().into());
        }
        // Until it is completed, there is no object; what was uploaded of one that failed is given up.
        let mut writer = BufWriter::with_capacity(store, key, PIECE);
        let copied = tokio::io::copy(&mut bytes, &mut writer).await.map(drop);
        let ended = match &copied {
            Ok(()) => writer.shutdown().await,
            // One that is shut down gives up by itself.
            Err(_) => writer.abort().await.map_err(std::io::Error::from),
        };
        let error = copied.and(ended).err();
        error.map_or(Ok(()), |error| Err(Error::new(Code::Io, format!("{}: {error}", self.name())).into()))
    }

    /// Whether there is nothing in the folder of this name, at any level.
    ///
    /// # Errors
    /// `io`.
    pub async fn is_empty(&self) -> Result<bool> {
        let store = store(&self.bucket)?;
        let first = store.list(Some(&self.key()?)).try_next().await;
        Ok(first.map_err(|e| self.failed(e))?.is_none())
    }

    /// Makes objects in the folder of this name of all files in a folder. They appear one after the other; if one cannot be made, those before
    /// it are removed.
    ///
    /// # Errors
    /// `io`.
    pub async fn upload_all(&self, folder: &Path) -> Result<()> {
        let mut made: Vec<Object> = Vec::new();
        for name in files_of(folder)? {
            let key = format!("{}/{name}", self.key.trim_end_matches('/'));
            let object = Object { bucket: self.bucket.clone(), key: key.trim_start_matches('/').to_owned() };
            if let Err(error) = object.upload(&folder.join(&name), false).await {
                for object in made {
                    store(&object.bucket)?.delete(&object.key()?).await.ok();
                }
                return Err(error);
            }
            made.push(object);
        }
        Ok(())
    }
}

/// The files of a folder and of those in it, sorted, by their names from there on.
pub(crate) fn files_of(folder: &Path) -> Result<Vec<String>> {
    let pattern = format!("{}/**/*", glob::Pattern::escape(&folder.to_string_lossy()));
    let mut files = Vec::new();
    for path in glob::glob(&pattern).map_err(|e| MergeError::new(Code::Io, format!("{}: {e}", folder.display())))? {
        let path = path.map_err(std::io::Error::from)?;
        if let Some(name) = path.strip_prefix(folder).ok().and_then(Path::to_str).filter(|_| path.is_file()) {
            files.push(name.to_owned());
        }
    }
    Ok(files)
}

/// The bytes of an object for readers that wait.
struct Streamed {
    runtime: Handle,
    bytes: BoxStream<'static, object_store::Result<bytes::Bytes>>,
    piece: bytes::Bytes,
}

impl BufRead for Streamed {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.bytes.next()) {
                Some(piece) => self.piece = piece.map_err(std::io::Error::other)?,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.piece.split_to(amount.min(self.piece.len()));
    }
}

impl Read for Streamed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let piece = self.fill_buf()?;
        let n = piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&piece[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// Whether a bucket can have this name: such a name stands in an address.
fn is_bucket(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        && ends(name.chars().next())
        && ends(name.chars().next_back())
}

/// A text whose addresses have no passwords.
fn without_password(text: &str) -> String {
    static WHO: LazyLock<regex::Regex> =
        LazyLock::new(|| regex::Regex::new("(https?://)[^/\\s]*@").expect("invariant: the pattern is valid"));
    WHO.replace_all(text, "$1").into_owned()
}

/// The stores that were asked so far, by bucket.
static STORES: LazyLock<Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>> = LazyLock::new(Mutex::default);

fn store(bucket: &str) -> mergeql_udfs::Result<Arc<dyn ObjectStore>> {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(bucket) {
        return Ok(store.clone());
    }
    let endpoints: Vec<(String, String)> = std::env::vars().filter(|(name, _)| name.starts_with("AWS_ENDPOINT")).collect();
    let is_address = |value: &str| Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if let Some((name, value)) = endpoints.iter().find(|(_, value)| !value.is_empty() && !is_address(value)) {
        let message = format!("{name} is `{}`, which is no address of a store", without_password(value));
        return Err(Error::new(Code::InvalidArgument, message).with_help("it begins with https:// or http://"));
    }
    // An endpoint without TLS was asked for by its name.
    let plain = endpoints.iter().any(|(_, value)| value.starts_with("http://"));
    let retry = RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
    let asked = AmazonS3Builder::from_env().with_retry(retry).with_bucket_name(bucket);
    let store = if plain { asked.with_allow_http(true) } else { asked }.build().map_err(|e| {
        Error::new(Code::Io, format!("s3://{bucket}: {}", without_password(&e.to_string())))
            .with_help("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, both of them, say who asks; AWS_SKIP_SIGNATURE=true nobody")
    })?;
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    stores.insert(bucket.to_owned(), store.clone());
    Ok(store)
}

/// DataFusion's way to the stores: each bucket when it is first asked for.
#[derive(Debug, Default)]
pub(crate) struct Stores(DefaultObjectStoreRegistry);

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.0.register_store(url, store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        match (url.scheme(), url.host_str()) {
            ("s3", Some(bucket)) => store(bucket).map_err(|e| DataFusionError::External(Box::new(e))),
            _ => self.0.get_store(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bucket_is_refused_and_passwords_are_not_shown() {
        assert!(matches!(Object::parse("s3://shop.eu-1/a b.csv"), Ok(Some(_))));
        assert!(matches!(Object::parse("folder/a.csv"), Ok(None)));
        for bad in ["s3://Sh op/a.csv", "s3://-shop/a", "s3:///a", "s3://shop", "s3://sh\u{e4}/a", "gs://shop/a"] {
            assert!(Object::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(without_password("HEAD https://me:p@ss@store/x, http://store/y"), "HEAD https://store/x, http://store/y");
    }
}
