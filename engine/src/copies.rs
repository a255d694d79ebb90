//! COPY ... TO a file or a folder: as every result it appears whole or not at all. What has options (`OPTIONS (...)`, `PARTITIONED BY`) is written by
//! DataFusion beside its place, and then put there.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::objects::Object;
use crate::prepare::touched;
use crate::sinks::{self, Whole};
use crate::sources::Format;
use crate::text_files::{Layout, io};
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::prelude::DataFrame;
use mergeql_udfs::Code;
use std::path::Path;
use std::sync::Arc;

impl MergeContext {
    /// Copies the rows of a query to where a statement says.
    ///
    /// # Errors
    /// `io`, and whatever the query fails with. Where it should go nothing has changed then.
    pub(crate) async fn copy_to(&self, copy: CopyTo) -> Result<DataFrame> {
        let url = copy.output_url.clone();
        let path = Path::new(url.strip_prefix("file://").unwrap_or(&url));
        if Object::parse(path.to_str().unwrap_or_default())?.is_some() {
            // A store shows an object when all of it is there.
            return Ok(self.session.execute_logical_plan(LogicalPlan::Copy(copy)).await?);
        }
        let asked = copy.options.get("single_file_output").map(|value| value.trim() == "true");
        let single = asked.unwrap_or(path.extension().is_some() && !url.ends_with('/')) && copy.partition_by.is_empty();
        if !single {
            return self.copy_to_folder(copy, path).await;
        }
        let format = match copy.file_type.get_ext().as_str() {
            "csv" => Format::Text(Layout::Csv { delimiter: b',', header: true }),
            "json" => Format::Text(Layout::Ndjson),
            "arrow" => Format::Arrow,
            _ => Format::Parquet,
        };
        let input = |copy: &CopyTo| DataFrame::new(self.session.state(), copy.input.as_ref().clone());
        if copy.options.is_empty() {
            let count = self.whole(input(&copy), |rows| sinks::write_file(path, format, rows, None)).await?;
            return self.count("count", count as u64);
        }
        let file = Whole::begin(path)?;
        let schema = input(&copy);
        let count = self.copied(copy, file.path().to_string_lossy().into_owned(), true).await?;
        if std::fs::metadata(file.path())?.len() == 0 {
            // Without rows, DataFusion writes nothing at all, and no columns either.
            let rows = self.stream(schema.limit(0, Some(0))?).await?;
            sinks::write_file(path, format, rows, None).await?;
        } else {
            file.end(true)?;
        }
        self.count("count", count)
    }

    async fn copy_to_folder(&self, copy: CopyTo, path: &Path) -> Result<DataFrame> {
        // Rows beside those of another COPY would be there twice after a repetition.
        if path.exists() && std::fs::read_dir(path).map_err(|e| io(path, e))?.next().is_some() {
            return Err(MergeError::new(Code::Io, format!("{}: the folder has files already", path.display()))
                .help("copy to a new folder, or empty this one first"));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |e: std::io::Error| io(path, e);
        let folder = tempfile::Builder::new().prefix(".mergeql-").suffix(".tmp").tempdir_in(parent).map_err(failed)?;
        let count = self.copied(copy, format!("{}/", folder.path().display()), false).await?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        std::fs::rename(folder.path(), path).map_err(failed)?;
        self.count("count", count)
    }

    async fn copied(&self, copy: CopyTo, to: String, single: bool) -> Result<u64> {
        let mut options = copy.options;
        options.insert("single_file_output".to_owned(), single.to_string());
        let copy = CopyTo { output_url: to, options, input: Arc::clone(&copy.input), ..copy };
        let frame = DataFrame::new(self.session.state(), LogicalPlan::Copy(copy));
        let batches = crate::context::collect(self.stream(frame).await?).await?;
        Ok(touched(&batches).unwrap_or(0))
    }
}
