//! From the names in a statement to relations: tables, views, files, folders, patterns, standard input.

use crate::columns::logical;
use crate::context::MergeContext;
use crate::current::Lasting;
use crate::error::{MergeError, Result};
use crate::objects::Object;
use crate::orders::ParquetFiles;
use crate::text_files::{Bytes, Layout, io};
use crate::text_scan::TextTable;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use futures::StreamExt;
use mergeql_lang::ast::{self, Name};
use mergeql_lang::diagnostic::nearest;
use mergeql_lang::lower::{STATE, quote};
use mergeql_lang::plan::{Reading, Relation, SourceColumn};
use mergeql_lang::{Diagnostic, Span};
use mergeql_udfs::{Code, Error, Value};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Fields between commas, tabs or another delimiter.
    Text(Layout),
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC.
    Arrow,
}

/// The formats by the ending of a file's name, and by `WITH (format = ...)`.
const FORMATS: [&str; 8] = ["csv", "tsv", "json", "ndjson", "jsonl", "parquet", "arrow", "ipc"];

impl Format {
    /// The format of this name.
    pub fn parse(name: &str) -> Option<Format> {
        Some(match name.to_ascii_lowercase().as_str() {
            "csv" => Format::Text(Layout::Csv { delimiter: b',', header: true }),
            "tsv" => Format::Text(Layout::Csv { delimiter: b'\t', header: true }),
            "json" => Format::Text(Layout::Json),
            "ndjson" | "jsonl" => Format::Text(Layout::Ndjson),
            "parquet" => Format::Parquet,
            "arrow" | "ipc" | "feather" => Format::Arrow,
            _ => return None,
        })
    }

    /// The format that a path's ending says.
    pub fn of_path(path: &Path) -> Option<Format> {
        Format::parse(path.extension()?.to_str()?)
    }
}

/// What `WITH (...)` says about reading files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    format: Option<Format>,
    header: Option<bool>,
    delimiter: Option<u8>,
    /// The key that the rows are said to be sorted by.
    sorted_by: Vec<String>,
    /// Whether what files say of their own order counts for nothing.
    unsorted: bool,
}

impl ReadOptions {
    /// Reads the options of a statement.
    ///
    /// # Errors
    /// `invalid_argument` for values they cannot have.
    pub fn of(options: &[(Name, Value)]) -> Result<ReadOptions> {
        let mut read = ReadOptions::default();
        for (name, value) in options {
            let refuse = |wanted: &str| {
                Err(Diagnostic::at(Code::InvalidArgument, name.span, format!("`{}` is {wanted}, not {value}", name.value)).into())
            };
            match (name.value.to_ascii_lowercase().as_str(), value) {
                ("format", Value::Text(text)) => match Format::parse(text) {
                    Some(format) => read.format = Some(format),
                    None => return refuse(&format!("one of {}", FORMATS.join(", "))),
                },
                ("header", Value::Bool(header)) => read.header = Some(*header),
                ("header", _) => return refuse("true or false"),
                ("sorted", Value::Bool(_)) => {}
                ("sorted", _) => return refuse("true or false"),
                ("delimiter", Value::Text(text)) if text.len() == 1 => read.delimiter = Some(text.as_bytes()[0]),
                ("delimiter", _) => return refuse("one ASCII character"),
                ("format", _) => return refuse("a text"),
                _ => {}
            }
        }
        Ok(read)
    }

    /// The options for the sources of a merge, whose rows `WITH (sorted = true)` says to be sorted by its key.
    ///
    /// # Errors
    /// As [`ReadOptions::of`].
    pub fn of_merge(merge: &ast::Merge) -> Result<ReadOptions> {
        let mut read = ReadOptions::of(&merge.options)?;
        let said = |(name, value): &(Name, Value)| name.value.eq_ignore_ascii_case("sorted") && *value == Value::Bool(true);
        if merge.options.iter().any(said) {
            let old =
                |key: &Name| merge.map.iter().find(|(_, new)| new.value == key.value).map_or_else(|| key.clone(), |m| m.0.clone());
            read.sorted_by = merge.key.iter().map(|key| old(key).value).collect();
        }
        let denied = |(name, value): &(Name, Value)| name.value.eq_ignore_ascii_case("sorted") && *value == Value::Bool(false);
        read.unsorted = merge.options.iter().any(denied);
        Ok(read)
    }

    fn apply(&self, format: Format) -> Format {
        match self.format.unwrap_or(format) {
            Format::Text(Layout::Csv { delimiter, header }) => {
                Format::Text(Layout::Csv { delimiter: self.delimiter.unwrap_or(delimiter), header: self.header.unwrap_or(header) })
            }
            other => other,
        }
    }
}

/// A relation and the table that has to exist while its SQL is planned.
pub struct Resolved {
    /// What the binder needs to know.
    pub relation: Relation,
    /// A file's table, under the name that the relation's SQL uses.
    pub table: Option<(String, Arc<dyn TableProvider>)>,
}

/// The columns of a schema as the binder sees them.
pub fn source_columns(schema: &Schema) -> Result<Vec<SourceColumn>> {
    let column = |f: &Arc<Field>| {
        let ty = logical(f.data_type()).map_err(|e| Error { message: format!("`{}`: {}", f.name(), e.message), ..e })?;
        Ok(SourceColumn { name: f.name().clone(), ty, nullable: f.is_nullable() })
    };
    schema.fields().iter().map(column).collect()
}

impl MergeContext {
    /// Resolves a source.
    pub(crate) async fn resolve(&self, relation: &ast::Relation, options: &ReadOptions) -> Result<Resolved> {
        match relation {
            ast::Relation::Table(parts) => match self.find_table(parts).await? {
                Some(found) => Ok(found),
                None => Err(self.unknown_source(parts).into()),
            },
            ast::Relation::Text(text) => match self.find_table(std::slice::from_ref(text)).await? {
                Some(found) => Ok(found),
                None => self.resolve_path(text, options).await,
            },
            ast::Relation::Query(pieces) => {
                let sql = Box::pin(self.lower_pieces(pieces)).await?;
                let plan = self.plan_sql(&sql).await?;
                let columns = source_columns(plan.schema().as_arrow())?;
                Ok(Resolved {
                    relation: Relation { sql: format!("({sql})"), origin: None, columns, rows: None, reading: Reading::Any },
                    table: None,
                })
            }
        }
    }

    /// Resolves a source of a merge: the files that it names as one, or one by one where `each` is asked for, or where Parquet files have
    /// columns of other types than others, which the merge widens.
    pub(crate) async fn resolve_source(
        &self,
        source: ast::Source,
        options: &ReadOptions,
        each: bool,
    ) -> Result<Vec<(ast::Source, Resolved)>> {
        let files = match &source.relation {
            ast::Relation::Text(text) if self.find_table(std::slice::from_ref(text)).await?.is_none() => {
                Box::pin(files(&text.value)).await.unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let whole = self.resolve(&source.relation, options).await;
        let ast::Relation::Text(text) = &source.relation else { return Ok(vec![(source, whole?)]) };
        let typed = |file: &Bytes| matches!(options.format.or(file.format()), Some(Format::Parquet | Format::Arrow));
        let differ = matches!(&whole, Err(e) if e.code() == Code::TypeMismatch) && files.iter().all(typed);
        if files.len() < 2 || !(each || differ) {
            return Ok(vec![(source, whole?)]);
        }
        let alias = source.alias.clone().unwrap_or_else(|| text.clone());
        let mut parts = Vec::new();
        for (i, file) in files.iter().enumerate() {
            let name = Name { value: file.name(), ..text.clone() };
            let mut resolved = match &whole {
                // The columns of all files together are those of each.
                Ok(Resolved { table: Some((table, provider)), relation })
                    if let Some(all) = provider.downcast_ref::<TextTable>() =>
                {
                    let table = format!("{table}#{i}");
                    let relation = Relation { sql: quote(&table), ..relation.clone() };
                    Resolved { relation, table: Some((table, Arc::new(all.only(i)))) }
                }
                _ => self.resolve_path(&name, options).await?,
            };
            resolved.relation.origin = Some(file.name());
            let relation = ast::Relation::Text(name);
            parts.push((ast::Source { relation, alias: Some(alias.clone()), span: source.span, part: true }, resolved));
        }
        Ok(parts)
    }

    /// A registered table or view of this name: to the letter, or unquoted in lower case as SQL folds it.
    async fn find_table(&self, parts: &[Name]) -> Result<Option<Resolved>> {
        let parts = self.own_part(parts);
        let exact: Vec<String> = parts.iter().map(|p| p.value.clone()).collect();
        let folded: Vec<String> =
            parts.iter().map(|p| if p.quoted { p.value.clone() } else { p.value.to_ascii_lowercase() }).collect();
        for names in [exact, folded] {
            let reference = match names.as_slice() {
                [table] => TableReference::bare(table.as_str()),
                [schema, table] => TableReference::partial(schema.as_str(), table.as_str()),
                [catalog, schema, table] => TableReference::full(catalog.as_str(), schema.as_str(), table.as_str()),
                _ => return Ok(None),
            };
            let there = match names.as_slice() {
                [table] => self.has_table(table),
                // An error is a schema or a catalogue that isn't there.
                _ => self.session().table_exist(reference.clone()).unwrap_or(false),
            };
            if there {
                let provider = self.session().table_provider(reference).await?;
                let sql = names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(".");
                // Of a table that keeps states, a merge reads the values.
                let mut columns = source_columns(&provider.schema())?;
                columns.retain(|c| c.name != STATE);
                if let (Some(store), [table]) = (&self.shared.store, names.as_slice())
                    && !self.is_temporary(table)
                    && self.lasting != Lasting::All
                {
                    let files = self.memory(|m| m.manifest.tables.get(table).map(|t| t.files.clone()));
                    let files: Vec<Bytes> = files.into_iter().flatten().map(|f| Bytes::Path(store.path(&f.name))).collect();
                    Box::pin(without_holes(&mut columns, &files)).await;
                }
                return Ok(Some(Resolved {
                    relation: Relation { sql, origin: Some(names.join(".")), columns, rows: None, reading: Reading::Any },
                    table: None,
                }));
            }
        }
        Ok(None)
    }

    fn unknown_source(&self, parts: &[Name]) -> Box<Diagnostic> {
        let shown = parts.iter().map(|p| p.value.as_str()).collect::<Vec<_>>().join(".");
        let span = parts.first().map_or(Span::default(), |p| p.span);
        let span = Span { end: parts.last().map_or(span.end, |p| p.span.end), ..span };
        let names = self.table_names();
        let error = Diagnostic::at(Code::UnknownSource, span, format!("there is no table or view `{shown}`"));
        match nearest(&shown, names.iter().map(String::as_str)) {
            Some(name) => error.label(format!("did you mean `{name}`?")),
            None => error.help("a file is named in quotes: 'path/to/file.parquet'"),
        }
    }

    async fn resolve_path(&self, text: &Name, options: &ReadOptions) -> Result<Resolved> {
        let place = |e: MergeError| {
            e.map(|mut diagnostic| {
                diagnostic.span.get_or_insert(text.span);
                diagnostic
            })
        };
        let (provider, origin) = self.open_path(&text.value, options).await.map_err(place)?;
        let read_otherwise = if *options == ReadOptions::default() { String::new() } else { format!("{options:?}") };
        let name = format!("__mergeql_file_{origin}{read_otherwise}");
        let mut columns = source_columns(&provider.schema())?;
        if self.lasting != Lasting::No {
            // Whether its columns have NULLs is said by the file as it is now.
            columns.iter_mut().for_each(|column| column.nullable = true);
        } else if let Some(text) = provider.downcast_ref::<TextTable>() {
            columns.iter_mut().zip(&text.complete).for_each(|(column, complete)| column.nullable = !complete);
        } else if let Ok(files) = Box::pin(files(&text.value)).await {
            Box::pin(without_holes(&mut columns, &files)).await;
        }
        // A text file that holds nothing has no columns; the binder lets it contribute nothing.
        let rows = if columns.is_empty() { Some(0) } else { None };
        Ok(Resolved {
            relation: Relation { sql: quote(&name), origin: Some(origin), columns, rows, reading: Reading::Any },
            table: Some((name, provider)),
        })
    }

    /// Opens a file, folder or pattern as a table; also gives the path that rows count as coming from.
    pub(crate) async fn open_path(&self, text: &str, options: &ReadOptions) -> Result<(Arc<dyn TableProvider>, String)> {
        self.check_files()?;
        self.open_any(text, options).await
    }

    /// As [`MergeContext::open_path`], whatever statements may name.
    pub(crate) async fn open_any(&self, text: &str, options: &ReadOptions) -> Result<(Arc<dyn TableProvider>, String)> {
        if text == "-" || text == "/dev/stdin" {
            let format = options.format.ok_or_else(|| {
                MergeError::new(Code::InvalidArgument, "standard input has no ending to tell its format")
                    .help("add WITH (format = 'csv') or another format")
            })?;
            return Ok((self.read_stdin(options.apply(format)).await?, "standard input".to_owned()));
        }
        let files = Box::pin(files(text)).await?;
        let origin = match (files.as_slice(), Object::parse(text)?) {
            ([one], _) if !is_pattern(text) => one.name(),
            (_, Some(object)) => object.name(),
            (_, None) => absolute(Path::new(text)).display().to_string(),
        };
        let mut formats = files.iter().map(|file| {
            let by_name = options.format.or_else(|| file.format());
            by_name.map(|f| options.apply(f)).ok_or_else(|| {
                MergeError::new(
                    Code::UnknownSource,
                    format!("`{text}` is neither a table nor a file whose ending tells its format"),
                )
                .help(format!("known endings: {}; or add WITH (format = ...)", FORMATS.join(", ")))
            })
        });
        if let Some(file) = files.iter().map(Bytes::name).find(|name| is_compressed(name)) {
            return Err(MergeError::new(
                Code::Unsupported,
                format!("`{file}` is compressed as a whole, and is not read like that"),
            )
            .help("decompress it, or write it as Parquet, which compresses its columns"));
        }
        let format = formats.next().transpose()?.ok_or_else(|| no_files(text))?;
        for other in formats {
            if other? != format {
                return Err(MergeError::new(Code::InvalidArgument, format!("`{text}` names files of different formats"))
                    .help("list them as sources of their own"));
            }
        }
        for file in &files {
            let Bytes::Path(path) = file else { continue };
            let meta = std::fs::metadata(path).map_err(|e| io(path, e))?;
            if meta.len() == 0 && matches!(format, Format::Parquet | Format::Arrow) {
                return Err(io(path, "the file is empty").into());
            }
        }
        let provider = self.open_files(files, format, options).await?;
        Ok((provider, origin))
    }

    async fn open_files(&self, files: Vec<Bytes>, format: Format, read: &ReadOptions) -> Result<Arc<dyn TableProvider>> {
        let sorted_by = &read.sorted_by;
        let listing: Arc<dyn FileFormat> = match format {
            Format::Text(layout) => return text_table(files, layout, sorted_by.clone()).await,
            Format::Parquet => Arc::new(ParquetFiles::new(!read.unsorted)),
            Format::Arrow => Arc::new(ArrowFormat),
        };
        let name = files.first().map(Bytes::name).unwrap_or_default();
        // DataFusion reads * and ? in a URL's path as a pattern, so each path is given as a URL with those escaped.
        let urls = files.iter().map(url).collect::<Result<Vec<_>>>()?;
        let options = ListingOptions::new(listing).with_file_extension("");
        let state = self.session().state();
        let unreadable = |e: datafusion::common::DataFusionError| {
            let error = MergeError::from(e);
            MergeError::new(Code::Io, format!("{name}: {}", error.diagnostic.message))
        };
        let (mut merged, mut columns) = (Schema::empty(), Vec::new());
        for (file, url) in files.iter().zip(&urls) {
            let known = match file {
                Bytes::Object(object) if format == Format::Arrow => object.arrow_schema().await?,
                _ => None,
            };
            let schema = match known {
                Some(schema) => schema,
                None => (*options.infer_schema(&state, url).await.map_err(unreadable)?).clone(),
            };
            columns.push(schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>());
            merged = Schema::try_merge([merged, if format == Format::Arrow { schema } else { wide(&schema) }]).map_err(|e| {
                MergeError::new(Code::TypeMismatch, format!("the files of one source have columns of different types: {e}"))
                    .help("list them as sources of their own: a MERGE widens types between sources")
            })?;
        }
        // What a file lacks is NULL in it.
        let missing = |name: &String| columns.iter().any(|there| !there.contains(name));
        let field = |f: &Arc<Field>| f.as_ref().clone().with_nullable(f.is_nullable() || missing(f.name()));
        let merged = Schema::new_with_metadata(merged.fields().iter().map(field).collect::<Vec<_>>(), merged.metadata().clone());
        let mut options = options;
        if !sorted_by.is_empty() && sorted_by.iter().all(|key| merged.column_with_name(key).is_some()) {
            let by = |key: &String| datafusion::prelude::ident(key).sort(true, true);
            options = options.with_file_sort_order(vec![sorted_by.iter().map(by).collect()]);
        }
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(Arc::new(merged));
        Ok(Arc::new(ListingTable::try_new(config).map_err(unreadable)?))
    }

    async fn read_stdin(&self, format: Format) -> Result<Arc<dyn TableProvider>> {
        let _reading = self.shared.reading_stdin.lock().await;
        if let Some(table) = self.cached_stdin() {
            return Ok(table);
        }
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        let table = match format {
            Format::Text(layout) => text_table(vec![Bytes::Memory(bytes.into())], layout, Vec::new()).await?,
            Format::Parquet | Format::Arrow => {
                let file = tempfile::Builder::new().suffix(".stdin").tempfile()?;
                std::fs::write(file.path(), &bytes)?;
                let table = self.open_files(vec![Bytes::Path(file.path().to_path_buf())], format, &ReadOptions::default()).await?;
                self.keep_file(file);
                table
            }
        };
        self.cache_stdin(table.clone());
        Ok(table)
    }
}

/// The schema with room for as many values as files have together: dictionaries of a file have the least index that its own values need.
fn wide(schema: &Schema) -> Schema {
    let wide = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(index, values) if index.primitive_width().is_some_and(|bytes| bytes < 4) => {
            field.as_ref().clone().with_data_type(DataType::Dictionary(Box::new(DataType::Int32), values.clone()))
        }
        _ => field.as_ref().clone(),
    };
    Schema::new_with_metadata(schema.fields().iter().map(wide).collect::<Vec<_>>(), schema.metadata().clone())
}

/// Beyond this many files, their statistics are not worth reading.
const MOST_FOOTERS: usize = 256;
/// How many are asked for at once.
pub(crate) const REQUESTS: usize = 16;

/// Notes which columns have no NULL in any of these Parquet files, as the statistics in them say: then no rows without a key have to be
/// looked for. What cannot be read is left as it is; the scan says what is wrong with it.
async fn without_holes(columns: &mut [SourceColumn], files: &[Bytes]) {
    if files.is_empty() || files.len() > MOST_FOOTERS || files.iter().any(|f| f.format() != Some(Format::Parquet)) {
        return;
    }
    let mut complete: Vec<bool> = vec![true; columns.len()];
    let mut footers = futures::stream::iter(files.to_vec()).map(footer).buffered(REQUESTS);
    while let Some(metadata) = footers.next().await {
        let Some(metadata) = metadata else { return };
        for group in metadata.row_groups() {
            for (column, complete) in columns.iter().zip(&mut complete) {
                let same = |c: &&ColumnChunkMetaData| c.column_path().parts() == [column.name.as_str()];
                let nulls = group.columns().iter().find(same).and_then(|c| c.statistics()?.null_count_opt());
                *complete &= nulls == Some(0);
            }
        }
    }
    columns.iter_mut().zip(complete).for_each(|(column, complete)| column.nullable &= !complete);
}

/// What the end of a Parquet file says of it, if it can be read.
pub(crate) async fn footer(file: Bytes) -> Option<Arc<ParquetMetaData>> {
    match file {
        Bytes::Path(path) => {
            let reader = SerializedFileReader::new(std::fs::File::open(path).ok()?).ok()?;
            Some(Arc::new(reader.metadata().clone()))
        }
        Bytes::Object(object) => object.footer().await,
        Bytes::Memory(_) => None,
    }
}

/// A path as part of a URL in which no character means anything else.
pub(crate) fn escaped(path: &str) -> String {
    let escape = |c: char| match c {
        '%' | '?' | '*' | '[' | ']' | '#' | ' ' => format!("%{:02X}", c as u32),
        c => c.to_string(),
    };
    path.chars().map(escape).collect()
}

fn url(file: &Bytes) -> Result<ListingTableUrl> {
    Ok(match file {
        Bytes::Object(object) => ListingTableUrl::parse(object.url()?)?,
        file => ListingTableUrl::parse(format!("file://{}", escaped(&file.name())))?,
    })
}

async fn text_table(files: Vec<Bytes>, layout: Layout, sorted_by: Vec<String>) -> Result<Arc<dyn TableProvider>> {
    // Every byte is read, which may take a while.
    let table = tokio::task::spawn_blocking(move || TextTable::open(files, layout, &sorted_by)).await;
    Ok(Arc::new(table.map_err(|e| MergeError::new(Code::Io, format!("the files could not be read: {e}")))??))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Whether the ending says that a file is compressed as a whole.
fn is_compressed(name: &str) -> bool {
    [".gz", ".zst", ".bz2", ".xz", ".lz4"].iter().any(|ending| name.to_ascii_lowercase().ends_with(ending))
}

pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn no_files(text: &str) -> MergeError {
    MergeError::new(Code::Io, format!("`{text}` names no files"))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// As [`expand`], for files and objects.
pub(crate) async fn files(text: &str) -> Result<Vec<Bytes>> {
    match Object::parse(text)? {
        Some(object) => Ok(object.expand().await?.into_iter().map(Bytes::Object).collect()),
        None => Ok(expand(text)?.into_iter().map(Bytes::Path).collect()),
    }
}

/// The files that a path names: itself, those in a folder, those that a pattern matches; sorted, so that their order never matters.
pub(crate) fn expand(text: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(text);
    if path.is_dir() {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| io(path, e))? {
            let file = entry.map_err(|e| io(path, e))?.path();
            if file.is_file() && Format::of_path(&file).is_some() && !is_hidden(&file) {
                files.push(absolute(&file));
            }
        }
        files.sort();
        if files.is_empty() {
            let error = io(path, format!("the folder has no data files (endings: {})", FORMATS.join(", ")));
            return Err(error
                .with_help(format!("a pattern reads what is in folders below: '{}/**/*.parquet'", path.display()))
                .into());
        }
        return Ok(files);
    }
    if path.exists() || !is_pattern(text) {
        let file = std::fs::canonicalize(path).map_err(|e| {
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            let looks_like_a_name = missing && !text.contains(['/', '.', '\\']);
            if looks_like_a_name {
                MergeError::new(Code::UnknownSource, format!("`{text}` is neither a table nor a file"))
            } else {
                MergeError::from(io(path, if missing { "there is no such file".to_owned() } else { e.to_string() }))
            }
        })?;
        if !file.is_file() {
            return Err(MergeError::new(
                Code::Unsupported,
                format!("`{text}` is a pipe or a device, and a source is read more than once"),
            )
            .help("send it to standard input, and name that: '-' WITH (format = ...)"));
        }
        return Ok(vec![file]);
    }
    // As in a shell: what begins with a point is named itself, or not at all.
    let hidden = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let found = glob::glob_with(text, hidden)
        .map_err(|e| MergeError::new(Code::InvalidArgument, format!("the pattern `{text}` is not valid: {e}")))?;
    // A folder that cannot be looked into may hold some of them.
    let found = found.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| MergeError::from(io(e.path(), e.error())))?;
    let mut files: Vec<PathBuf> = found.into_iter().filter(|p| p.is_file()).map(|p| absolute(&p)).collect();
    files.sort();
    if files.is_empty() { Err(no_files(text)) } else { Ok(files) }
}
