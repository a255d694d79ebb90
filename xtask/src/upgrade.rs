//! Scripts that take an installed Postgres extension from an earlier version to this one: what is only in the new script is made, what is
//! only in the old one is dropped, what says something else is replaced.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The statements of a script, without comments and without psql's commands.
fn statements(script: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut one = String::new();
    let mut rest = script;
    while let Some(c) = rest.chars().next() {
        // As far as it goes, taken whole.
        let end = match c {
            '\\' if one.trim().is_empty() => rest.find('\n').unwrap_or(rest.len()),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '\'' => 1 + rest[1..].find('\'').map_or(rest.len() - 1, |at| at + 1),
            '$' => match rest[1..].find('$') {
                Some(tag) => {
                    let quote = &rest[..tag + 2];
                    rest[quote.len()..].find(quote).map_or(rest.len(), |at| at + 2 * quote.len())
                }
                None => rest.len(),
            },
            c => c.len_utf8(),
        };
        match c {
            '\\' | '-' if end > 1 => {}
            ';' => all.push(std::mem::take(&mut one).trim().to_owned()),
            _ => one.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    all
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    /// An object that can be made again where it is: its kind, and its name with its parameters.
    Replaceable(&'static str, String),
    /// Another object.
    Object(&'static str, String),
    /// The comment on an object.
    Comment(String),
    /// Anything else, which is what it says.
    Other(String),
}

/// The text up to the parenthesis that closes the first one.
fn with_parameters(text: &str) -> &str {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return &text[..=i],
            ')' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// A signature as DROP takes it.
fn without_defaults(signature: &str) -> String {
    let Some((name, parameters)) = signature.trim_end_matches(')').split_once('(') else { return signature.to_owned() };
    let plain = |parameter: &str| parameter.split(" DEFAULT ").next().unwrap_or_default().trim().to_owned();
    format!("{name}({})", parameters.split(',').map(plain).collect::<Vec<_>>().join(", "))
}

fn about(statement: &str) -> About {
    let after = |start: &str| statement.strip_prefix(start).map(str::trim);
    for (kind, start) in [("FUNCTION", "CREATE FUNCTION "), ("PROCEDURE", "CREATE PROCEDURE "), ("AGGREGATE", "CREATE AGGREGATE ")]
    {
        if let Some(rest) = after(start) {
            return About::Replaceable(kind, with_parameters(rest).to_owned());
        }
    }
    if let Some(rest) = after("COMMENT ON ") {
        return About::Comment(rest.split_once(" IS ").map_or(rest, |(object, _)| object).to_owned());
    }
    if let Some(rest) = after("CREATE CAST ") {
        return About::Object("CAST", with_parameters(rest).to_owned());
    }
    if let Some(rest) = after("CREATE OPERATOR CLASS ") {
        return About::Object("OPERATOR CLASS", rest.split_whitespace().next().unwrap_or_default().to_owned());
    }
    if let Some(rest) = after("CREATE OPERATOR ") {
        let side = |name: &str| {
            let text = rest.split(&format!("{name} = ")).nth(1)?;
            Some(text.split([',', ')']).next()?.trim().to_owned())
        };
        let name = rest.split_whitespace().next().unwrap_or_default();
        let none = || "NONE".to_owned();
        return About::Object(
            "OPERATOR",
            format!("{name} ({}, {})", side("LEFTARG").unwrap_or_else(none), side("RIGHTARG").unwrap_or_else(none)),
        );
    }
    for (kind, start) in [("TYPE", "CREATE TYPE "), ("TABLE", "CREATE TABLE ")] {
        if let Some(rest) = after(start) {
            // A type is announced before it is made: two statements.
            let announced = kind == "TYPE" && !rest.contains('(');
            let name = rest.split([' ', '(']).next().unwrap_or_default();
            return if announced { About::Other(statement.to_owned()) } else { About::Object(kind, name.to_owned()) };
        }
    }
    About::Other(statement.to_owned())
}

/// What stands before the body: a function can be replaced only while it gives the same.
fn result(statement: &str) -> &str {
    let rest = statement.split_once(") RETURNS ").map_or("", |(_, rest)| rest);
    [" AS ", " LANGUAGE "].iter().filter_map(|word| rest.find(word)).min().map_or(rest, |end| &rest[..end])
}

/// The script from one version to another.
///
/// # Errors
/// What cannot be made from the difference: an object that holds data or that others are built on, and that is another now.
pub fn script(old: &str, new: &str) -> Result<String, String> {
    let (old, new) = (statements(old), statements(new));
    let known: BTreeMap<About, &String> = old.iter().map(|s| (about(s), s)).collect();
    let wanted: BTreeMap<About, &String> = new.iter().map(|s| (about(s), s)).collect();
    let mut out = "\\echo Use \"ALTER EXTENSION mergeql UPDATE\" to load this file. \\quit\n\n".to_owned();
    // The last first, for others are built on those before.
    for statement in old.iter().rev() {
        let about = about(statement);
        if !wanted.contains_key(&about) {
            match about {
                About::Replaceable(kind, name) => {
                    let _ = writeln!(out, "DROP {kind} {};", without_defaults(&name));
                }
                About::Object(kind @ ("CAST" | "OPERATOR"), name) => {
                    let _ = writeln!(out, "DROP {kind} {name};");
                }
                About::Comment(_) => {}
                About::Object(kind, name) => return Err(format!("the {kind} {name} is gone: write by hand what becomes of it")),
                About::Other(statement) => return Err(format!("`{statement}` is gone: write by hand what becomes of it")),
            }
        }
    }
    for statement in &new {
        let about = about(statement);
        match (known.get(&about), about) {
            (Some(same), _) if *same == statement => {}
            (None, _) | (_, About::Comment(_)) => drop(writeln!(out, "{statement};")),
            (Some(other), About::Replaceable(_, name)) if result(other) != result(statement) => {
                return Err(format!("{name} gives another type than before: give it another name"));
            }
            (Some(_), About::Replaceable(..)) => {
                let _ = writeln!(out, "{};", statement.replacen("CREATE ", "CREATE OR REPLACE ", 1));
            }
            (Some(_), About::Object(kind, name)) => {
                return Err(format!("the {kind} {name} is another now: write by hand what becomes of it"));
            }
            (Some(_), About::Other(_)) => {}
        }
    }
    Ok(out)
}

/// The script of a version that never was, for a test: some functions and aggregates are missing, one is another, one is there that is
/// gone now.
pub fn rehearsal(script: &str) -> String {
    let mut out = String::new();
    for statement in statements(script) {
        let later = ["crdt_longest", "_crdt_longest", "crdt_info(", "mergeql_divide(numeric", "OPERATOR >="];
        if later.iter().any(|name| statement.contains(name)) {
            continue;
        }
        let statement = match about(&statement) {
            About::Comment(object) if object.contains("crdt_lww(") => format!("COMMENT ON {object} IS 'said otherwise'"),
            About::Replaceable("FUNCTION", name) if name == "mergeql_divide(integer, integer)" => {
                statement.replace("$1 OPERATOR(pg_catalog./) $2", "$1 OPERATOR(pg_catalog.-) $2")
            }
            _ => statement,
        };
        let _ = writeln!(out, "{statement};");
    }
    out.push_str("CREATE FUNCTION mergeql_forgotten(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1';\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_they_end() {
        let script = "\\echo x; y\n-- a; b\nCREATE FUNCTION f(a text) RETURNS text AS 'x;''y' LANGUAGE sql;\n\
            CREATE FUNCTION g() RETURNS int AS $q$\nSELECT 1; -- $$ ;\n$q$ LANGUAGE sql;\nSELECT $$;$$;";
        let found = statements(script);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(about(&found[0]), About::Replaceable("FUNCTION", "f(a text)".to_owned()));
        assert_eq!(result(&found[0]), "text");
        assert!(found[1].ends_with("$q$ LANGUAGE sql"));
        assert_eq!(
            about("CREATE OPERATOR || (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_join)"),
            About::Object("OPERATOR", "|| (crdt, crdt)".to_owned())
        );
    }

    #[test]
    fn only_what_differs_is_done() {
        let old = "CREATE FUNCTION a(int) RETURNS int AS 'x' LANGUAGE sql; CREATE FUNCTION b(int) RETURNS int AS 'x' LANGUAGE sql; \
            COMMENT ON FUNCTION a(int) IS 'one'; CREATE FUNCTION c(int) RETURNS int AS 'x' LANGUAGE sql;";
        let new = "CREATE FUNCTION a(int) RETURNS int AS 'x' LANGUAGE sql; CREATE FUNCTION b(int) RETURNS int AS 'y' LANGUAGE sql; \
            COMMENT ON FUNCTION a(int) IS 'two'; CREATE TABLE t (a int);";
        let upgrade = script(old, new).expect("a script");
        let expected = [
            "DROP FUNCTION c(int);",
            "CREATE OR REPLACE FUNCTION b(int) RETURNS int AS 'y' LANGUAGE sql;",
            "COMMENT ON FUNCTION a(int) IS 'two';",
            "CREATE TABLE t (a int);",
        ];
        assert_eq!(upgrade.lines().skip(2).collect::<Vec<_>>(), expected);
        assert!(script("CREATE TABLE t (a int);", "CREATE TABLE t (b int);").is_err(), "it holds data");
        let other = script("CREATE FUNCTION a(int) RETURNS int AS 'x';", "CREATE FUNCTION a(int) RETURNS text AS 'x';");
        assert!(other.expect_err("its type").contains("another name"));
    }
}
