//! COPY ... TO a file, a folder or objects: as every result it appears whole or not at all. What has options (`OPTIONS (...)`, `PARTITIONED BY`) is
//! written by DataFusion beside its place, and then put there.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::objects::{Object, files_of};
use crate::prepare::touched;
use crate::sinks::{self, Whole};
use crate::sources::Format;
use crate::spool::once;
use crate::text_files::{Layout, io};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::physical_plan::EmptyRecordBatchStream;
use datafusion::prelude::DataFrame;
use mergeql_udfs::Code;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

impl MergeContext {
    /// Copies the rows of a query to where a statement says.
    ///
    /// # Errors
    /// `io`, and whatever the query fails with. Where it should go nothing has changed then.
    pub(crate) async fn copy_to(&self, copy: CopyTo) -> Result<DataFrame> {
        let place = copy.output_url.strip_prefix("file://").unwrap_or(&copy.output_url);
        let path = Path::new(place);
        let asked = copy.options.get("single_file_output").map(|value| value.trim() == "true");
        let single = asked.unwrap_or(path.extension().is_some() && !place.ends_with('/')) && copy.partition_by.is_empty();
        let count = match (Object::parse(place)?, single) {
            (None, true) => self.copy_to_file(&copy, path).await?,
            (None, false) => {
                if path.exists() && std::fs::read_dir(path).map_err(|e| io(path, e))?.next().is_some() {
                    return Err(has_files(place));
                }
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let (folder, count) = self.copy_beside(&copy, parent).await?;
                let failed = |e: std::io::Error| io(path, e);
                #[cfg(unix)]
                {
                    use std::os::unix::fs::PermissionsExt;
                    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
                }
                std::fs::rename(folder.path(), path).map_err(failed)?;
                count
            }
            (Some(object), true) => {
                let file = tempfile::NamedTempFile::new()?;
                let count = self.copy_to_file(&copy, file.path()).await?;
                object.upload(file.path(), true).await?;
                count
            }
            (Some(object), false) => {
                if !object.is_empty().await? {
                    return Err(has_files(place));
                }
                let (folder, count) = self.copy_beside(&copy, &std::env::temp_dir()).await?;
                object.upload_all(folder.path()).await?;
                count
            }
        };
        self.count("count", count)
    }

    fn input_of(&self, copy: &CopyTo) -> DataFrame {
        DataFrame::new(self.session.state(), copy.input.as_ref().clone())
    }

    async fn copy_to_file(&self, copy: &CopyTo, path: &Path) -> Result<u64> {
        let format = match copy.file_type.get_ext().as_str() {
            "csv" => Format::Text(Layout::Csv { delimiter: b',', header: true }),
            "json" => Format::Text(Layout::Ndjson),
            "arrow" => Format::Arrow,
            _ => Format::Parquet,
        };
        if copy.options.is_empty() {
            let count = self.whole(self.input_of(copy), |rows| sinks::write_file(path, format, rows, None)).await?;
            return Ok(count as u64);
        }
        let attempt = async |rows: SendableRecordBatchStream| {
            let file = Whole::begin(path)?;
            let schema = rows.schema();
            let count = self.write_by_options(copy, rows, file.path().to_string_lossy().into_owned(), true).await?;
            if std::fs::metadata(file.path())?.len() == 0 {
                // Without rows, DataFusion writes nothing at all, and no columns either.
                sinks::write_file(path, format, Box::pin(EmptyRecordBatchStream::new(schema)), None).await?;
            } else {
                // It is another file of the same name by now.
                std::fs::File::open(file.path()).and_then(|written| written.sync_all()).map_err(|e| io(path, e))?;
                file.end(true)?;
            }
            Ok(count)
        };
        self.whole(self.input_of(copy), attempt).await
    }

    /// A new folder with what becomes another folder's.
    async fn copy_beside(&self, copy: &CopyTo, parent: &Path) -> Result<(TempDir, u64)> {
        let attempt = async |rows| {
            let new = tempfile::Builder::new().prefix(".mergeql-").suffix(".tmp").tempdir_in(parent);
            let folder = new.map_err(|e| io(parent, e))?;
            let count = self.write_by_options(copy, rows, format!("{}/", folder.path().display()), false).await?;
            for name in files_of(folder.path())? {
                let file = folder.path().join(name);
                std::fs::File::open(&file).and_then(|written| written.sync_all()).map_err(|e| io(&file, e))?;
            }
            Ok((folder, count))
        };
        self.whole(self.input_of(copy), attempt).await
    }

    /// The rows as DataFusion writes them, which ends what it began also where it fails.
    async fn write_by_options(&self, copy: &CopyTo, rows: SendableRecordBatchStream, to: String, single: bool) -> Result<u64> {
        let input = self.session.read_table(Arc::new(once(rows)?))?.into_unoptimized_plan();
        let mut options = copy.options.clone();
        options.insert("single_file_output".to_owned(), single.to_string());
        let copy = CopyTo { output_url: to, options, input: Arc::new(input), ..copy.clone() };
        let batches = DataFrame::new(self.session.state(), LogicalPlan::Copy(copy)).collect().await.map_err(MergeError::running)?;
        Ok(touched(&batches).unwrap_or(0))
    }
}

/// Rows beside those of another COPY would be there twice after a repetition.
fn has_files(place: &str) -> MergeError {
    MergeError::new(Code::Io, format!("{place}: the folder has files already"))
        .help("copy to a new folder, or empty this one first")
}
