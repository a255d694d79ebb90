//! What SQLite knows of the tables and queries that statements name.
#![allow(unsafe_code)]

use crate::statements::{Result, Session};
use crate::values::shown;
use mergeql_lang::ast::{Name, Relation as Written};
use mergeql_lang::diagnostic::nearest;
use mergeql_lang::lower::{STATE, quote};
use mergeql_lang::plan::{Reading, Relation, SourceColumn};
use mergeql_lang::{Diagnostic, Span};
use mergeql_udfs::{Code, Type};
use rusqlite::{OptionalExtension, ffi};
use std::ffi::{CStr, CString};

/// What is known of a source.
pub(crate) struct Described {
    pub(crate) relation: Relation,
    /// The table, where it is one: its database and name.
    pub(crate) table: Option<(String, String)>,
    /// How it keeps states, if it does.
    pub(crate) kept: Option<String>,
    /// The columns that hold whole numbers, and whose declaration allows others.
    pub(crate) whole: Vec<String>,
}

pub(crate) fn table(parts: &[Name]) -> String {
    parts.iter().map(|p| quote(&p.value)).collect::<Vec<_>>().join(".")
}

/// The affinity that a declared type gives a column (SQLite's documentation, "Datatypes in SQLite", 3.1), as far as it says what the
/// values are; `None` where they may be anything.
fn declared(declaration: &str) -> Option<Type> {
    let upper = declaration.to_ascii_uppercase();
    let has = |word: &str| upper.contains(word);
    if has("BOOL") {
        Some(Type::Boolean)
    } else if has("INT") {
        Some(Type::INT64)
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Some(Type::Text)
    } else if has("BLOB") {
        Some(Type::Bytes)
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Some(Type::Float64)
    } else {
        None
    }
}

impl Session<'_> {
    /// The database and name of the table or view that a name means here.
    pub(crate) fn find(&self, parts: &[String]) -> Result<Option<(String, String)>> {
        let (database, name) = match parts {
            [name] => (None, name),
            [database, name] => (Some(database), name),
            _ => return Ok(None),
        };
        let known = "SELECT schema, name FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE AND (?2 IS NULL OR schema = ?2 COLLATE NOCASE)";
        // An unqualified name is looked for in temp, then in main, then where it is attached.
        let order = "ORDER BY CASE schema WHEN 'temp' THEN 0 WHEN 'main' THEN 1 ELSE 2 END LIMIT 1";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        self.connection.query_row(&format!("{known} {order}"), (name, database), row).optional()
    }

    fn unknown(&self, shown_name: &str, span: Span) -> Result<rusqlite::Error> {
        let mut statement =
            self.connection.prepare("SELECT name FROM pragma_table_list WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")?;
        let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_>>()?;
        let mut diagnostic = Diagnostic::at(Code::UnknownSource, span, format!("there is no table or view `{shown_name}`"));
        if let Some(name) = nearest(shown_name, names.iter().map(String::as_str)) {
            diagnostic = diagnostic.label(format!("did you mean `{name}`?"));
        }
        Ok(shown(diagnostic))
    }

    pub(crate) fn describe(&self, source: &Written) -> Result<Described> {
        let (mut sql, found) = match source {
            Written::Table(parts) => {
                let names: Vec<String> = parts.iter().map(|p| p.value.clone()).collect();
                match self.find(&names)? {
                    Some(found) => (table(parts), Some(found)),
                    None => return Err(self.unknown(&names.join("."), parts.first().map(|p| p.span).unwrap_or_default())?),
                }
            }
            Written::Text(name) => match self.find(std::slice::from_ref(&name.value))? {
                Some(found) => (quote(&name.value), Some(found)),
                None if name.value.contains(['.', '/']) => {
                    return Err(shown(
                        Diagnostic::at(Code::Unsupported, name.span, "SQLite reads no files here")
                            .help("import it into a table: .import"),
                    ));
                }
                None => return Err(self.unknown(&name.value, name.span)?),
            },
            Written::Query(pieces) => (format!("({})", self.pieces(pieces)?), None),
        };
        let statement = self.connection.prepare(&format!("SELECT * FROM {sql} AS s"))?;
        let mut columns: Vec<(String, Option<Type>)> =
            statement.columns().iter().map(|c| (c.name().to_owned(), c.decl_type().and_then(declared))).collect();
        let fractions = |c: &rusqlite::Column<'_>| {
            let ty = c.decl_type().unwrap_or_default().to_ascii_uppercase();
            ["NUMERIC", "DECIMAL"].iter().any(|fractional| ty.contains(fractional)).then(|| c.name().to_owned())
        };
        let fractional: Vec<String> = statement.columns().iter().filter_map(fractions).collect();
        drop(statement);
        // Of a table that keeps states, a merge reads the values.
        let kept = match &found {
            Some(table) if columns.iter().any(|(name, _)| name == STATE) => self.resolution(table)?,
            _ => None,
        };
        if kept.is_some() {
            columns.retain(|(name, _)| name != STATE);
        }
        if let Some((name, _)) = columns.iter().find(|(name, _)| name.to_ascii_lowercase().starts_with("__mergeql_")) {
            return Err(shown(
                Diagnostic::new(Code::Unsupported, format!("the column `{name}` has a name that is reserved"))
                    .help("give it another name in a source query"),
            ));
        }
        let mixed = self.seen_types(&sql, &mut columns)?;
        let whole = columns.iter().filter(|(name, ty)| fractional.contains(name) && *ty == Some(Type::INT64));
        let whole: Vec<String> = whole.map(|(name, _)| name.clone()).collect();
        let facts = columns.iter().map(|(name, _)| self.column_facts(&found, name)).collect::<Vec<_>>();
        // Reals among whole numbers, and texts that a collation would take for equal, are brought to one form first.
        let items: Vec<String> = columns
            .iter()
            .zip(&facts)
            .map(|((name, ty), facts)| match ty {
                Some(Type::Float64) if mixed.contains(name) => format!("mergeql_exact_double({0}) AS {0}", quote(name)),
                Some(Type::Text) if facts.collated => format!("{0} COLLATE BINARY AS {0}", quote(name)),
                _ => quote(name),
            })
            .collect();
        if items.iter().any(|item| item.contains(" AS ")) {
            sql = format!("(SELECT {} FROM {sql})", items.join(", "));
        }
        let columns: Vec<SourceColumn> = columns
            .into_iter()
            .zip(facts)
            .map(|((name, ty), facts)| SourceColumn { name, ty: ty.unwrap_or(Type::Null), nullable: !facts.not_null })
            .collect();
        let origin =
            found.as_ref().map(|(database, name)| if database == "main" { name.clone() } else { format!("{database}.{name}") });
        Ok(Described { relation: Relation { sql, origin, columns, rows: None, reading: Reading::Any }, table: found, kept, whole })
    }

    /// Whether the key of a table is the number that SQLite gives its rows: NULL is a new number there.
    pub(crate) fn has_numbered_rows(&self, into: &Described) -> Result<bool> {
        let Some((database, table)) = &into.table else { return Ok(false) };
        let sql = "SELECT count(*) = 1 AND max(upper(type)) = 'INTEGER' AND NOT EXISTS \
                   (SELECT 1 FROM pragma_index_list(?1, ?2) WHERE origin = 'pk') FROM pragma_table_xinfo(?1, ?2) WHERE pk > 0";
        Ok(self.connection.query_row(sql, [table, database], |row| row.get::<_, Option<bool>>(0))?.unwrap_or(false))
    }

    /// The types of columns whose declaration does not say: those of their values. Gives back which hold whole numbers beside reals.
    fn seen_types(&self, sql: &str, columns: &mut [(String, Option<Type>)]) -> Result<Vec<String>> {
        let open: Vec<usize> = (0..columns.len()).filter(|i| columns[*i].1.is_none()).collect();
        let mut mixed = Vec::new();
        if open.is_empty() {
            return Ok(mixed);
        }
        const CLASSES: [&str; 4] = ["integer", "real", "text", "blob"];
        let has = |i: &usize| CLASSES.map(|class| format!("max(typeof({}) = '{class}')", quote(&columns[*i].0))).join(", ");
        let items: Vec<String> = open.iter().map(has).collect();
        let found: Vec<bool> = self.connection.query_row(&format!("SELECT {} FROM {sql} AS s", items.join(", ")), [], |row| {
            (0..open.len() * CLASSES.len()).map(|i| Ok(row.get::<_, Option<bool>>(i)?.unwrap_or(false))).collect()
        })?;
        for (i, classes) in open.into_iter().zip(found.chunks(CLASSES.len())) {
            let (name, ty) = &mut columns[i];
            *ty = match classes {
                [false, false, false, false] => None,
                [true, false, false, false] => Some(Type::INT64),
                [integers, true, false, false] => {
                    if *integers {
                        mixed.push(name.clone());
                    }
                    Some(Type::Float64)
                }
                [false, false, true, false] => Some(Type::Text),
                [false, false, false, true] => Some(Type::Bytes),
                _ => {
                    let names: Vec<&str> = CLASSES.iter().zip(classes).filter(|(_, has)| **has).map(|(name, _)| *name).collect();
                    return Err(shown(
                        Diagnostic::new(Code::TypeMismatch, format!("the column `{name}` holds {}", names.join(" and ")))
                            .help("CAST it in a source query"),
                    ));
                }
            };
        }
        Ok(mixed)
    }

    fn column_facts(&self, found: &Option<(String, String)>, column: &str) -> Facts {
        // Columns of queries and views have the collations of what they come from.
        let unknown = Facts { not_null: false, collated: true };
        let Some((database, table)) = found else { return unknown };
        let (Ok(database), Ok(table), Ok(column)) = (c_text(database), c_text(table), c_text(column)) else { return unknown };
        let (mut collation, mut not_null, mut key) = (std::ptr::null(), 0, 0);
        // SAFETY: SQLite reads the names, and its texts live until the schema changes.
        unsafe {
            let code = ffi::sqlite3_table_column_metadata(
                self.connection.handle(),
                database.as_ptr(),
                table.as_ptr(),
                column.as_ptr(),
                std::ptr::null_mut(),
                &mut collation,
                &mut not_null,
                &mut key,
                std::ptr::null_mut(),
            );
            if code != ffi::SQLITE_OK {
                return unknown;
            }
            let collated = !collation.is_null() && !CStr::from_ptr(collation).to_bytes().eq_ignore_ascii_case(b"BINARY");
            Facts { not_null: not_null != 0, collated }
        }
    }
}

/// What a table knows of a column.
struct Facts {
    not_null: bool,
    /// It is compared by something else than bytes.
    collated: bool,
}

fn c_text(text: &str) -> std::result::Result<CString, std::ffi::NulError> {
    CString::new(text)
}
