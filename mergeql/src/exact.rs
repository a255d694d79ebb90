//! Expressions as text that reads back as what was read.

use crate::lower::{quote, text};
use sqlparser::ast::{Expr, Ident, Value, ValueWithSpan, VisitMut, VisitorMut};
use std::ops::ControlFlow;

/// Prints texts and quoted names to the letter. sqlparser takes quotes and backslashes within them for escaped already where they look so,
/// and prints them as they are: another text, or one that ends early.
struct Exact;

impl VisitorMut for Exact {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        let (Value::SingleQuotedString(content)
        | Value::EscapedStringLiteral(content)
        | Value::UnicodeStringLiteral(content)
        | Value::NationalStringLiteral(content)
        | Value::TripleSingleQuotedString(content)
        | Value::SingleQuotedRawStringLiteral(content)
        | Value::TripleSingleQuotedRawStringLiteral(content)) = &value.value
        else {
            if let Value::DollarQuotedString(quoted) = &value.value {
                value.value = Value::Placeholder(text(&quoted.value));
            }
            return ControlFlow::Continue(());
        };
        // What stands for a parameter is printed as it is.
        value.value = Value::Placeholder(text(content));
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let exact = |name: &mut Ident| {
            if name.quote_style == Some('"') {
                // A name without quotes is printed as it is.
                *name = Ident::new(quote(&name.value));
            }
        };
        match expr {
            Expr::Identifier(name) => exact(name),
            Expr::CompoundIdentifier(names) => names.iter_mut().for_each(exact),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Makes what is printed of this mean what was read.
pub fn make_exact(node: &mut impl VisitMut) {
    let _ = VisitMut::visit(node, &mut Exact);
}

/// An expression as text.
pub fn printed(expr: &Expr) -> String {
    let mut expr = expr.clone();
    make_exact(&mut expr);
    expr.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlparser::dialect::GenericDialect;
    use sqlparser::parser::Parser;

    #[test]
    fn what_is_printed_reads_back() {
        let read =
            |sql: &str| Parser::new(&GenericDialect {}).try_with_sql(sql).and_then(|mut p| p.parse_expr()).expect("an expression");
        for sql in [
            r"note = 'x''''y'",
            r"name = '\'') OR (true) --'",
            r#""a""""b" = '\\' AND t."c\""d" = ''"#,
            r"date '2024-01-01' > '''' OR a LIKE '%\''%'",
            "x IN ('a''b', '\n')",
        ] {
            let expr = read(sql);
            assert_eq!(read(&printed(&expr)), expr, "{sql}: {}", printed(&expr));
        }
    }
}
