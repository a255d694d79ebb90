//! Comparisons in WHERE and ORDER BY are between values of one kind on every host. Where hosts would cast (text to number, number to
//! date), each in its own way, the language refuses.

use crate::diagnostic::{Diagnostic, Result, Span};
use mergeql_udfs::{Code, Type};
use sqlparser::ast::{BinaryOperator, Expr, Query, Spanned, UnaryOperator, Value, Visit, Visitor, visit_expressions_mut};
use std::ops::ControlFlow;

/// What an expression is, as far as that can be told without a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Boolean,
    Number,
    Text,
    Temporal,
    /// A quoted literal: text, or whatever it is compared with.
    Literal,
    Unknown,
}

impl Kind {
    fn of(ty: &Type) -> Kind {
        match ty {
            Type::Boolean => Kind::Boolean,
            Type::Int { .. } | Type::Float32 | Type::Float64 | Type::Decimal { .. } => Kind::Number,
            Type::Text => Kind::Text,
            Type::Date | Type::Time(_) | Type::Timestamp { .. } => Kind::Temporal,
            _ => Kind::Unknown,
        }
    }

    fn compares_with(self, other: Kind) -> bool {
        match (self, other) {
            // Some hosts would compare the number's text, others make the literal a number.
            (Kind::Number | Kind::Boolean, Kind::Literal) | (Kind::Literal, Kind::Number | Kind::Boolean) => false,
            (Kind::Unknown | Kind::Literal, _) | (_, Kind::Unknown | Kind::Literal) => true,
            (a, b) => a == b,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Boolean => "a boolean",
            Kind::Number => "a number",
            Kind::Text | Kind::Literal => "a text",
            Kind::Temporal => "a date or time",
            Kind::Unknown => "something else",
        }
    }
}

fn has_backslash(pattern: &Expr) -> bool {
    matches!(pattern, Expr::Value(v) if matches!(&v.value, Value::SingleQuotedString(text) if text.contains('\\')))
}

/// Where an expression stands.
fn place(expr: &Expr) -> Option<Span> {
    Some(Span::from(expr.span())).filter(|span| span.line > 0)
}

/// An expression as users write it: plain names without quotes.
fn shown(expr: &Expr) -> Expr {
    let mut expr = expr.clone();
    let _ = visit_expressions_mut(&mut expr, |e| {
        if let Expr::Identifier(name) = e
            && name.value.chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            name.quote_style = None;
        }
        ControlFlow::<()>::Continue(())
    });
    expr
}

struct Check<'a> {
    columns: &'a [(String, Type)],
    depth: usize,
}

impl Check<'_> {
    fn kind(&self, expr: &Expr) -> Kind {
        use BinaryOperator::*;
        match expr {
            Expr::Identifier(i) => {
                self.columns.iter().find(|(name, _)| *name == i.value).map_or(Kind::Unknown, |(_, ty)| Kind::of(ty))
            }
            Expr::Value(v) => match &v.value {
                Value::Number(..) => Kind::Number,
                Value::SingleQuotedString(_) => Kind::Literal,
                Value::Boolean(_) => Kind::Boolean,
                _ => Kind::Unknown,
            },
            Expr::Nested(inner) => self.kind(inner),
            Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } => self.kind(expr),
            Expr::UnaryOp { op: UnaryOperator::Not, .. }
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::InList { .. }
            | Expr::Between { .. }
            | Expr::Like { .. }
            | Expr::ILike { .. } => Kind::Boolean,
            Expr::BinaryOp { op: Gt | Lt | GtEq | LtEq | Eq | NotEq | And | Or, .. } => Kind::Boolean,
            Expr::BinaryOp { left, op: Plus | Minus | Multiply | Divide | Modulo, right } => {
                match (self.kind(left), self.kind(right)) {
                    (Kind::Number, Kind::Number) => Kind::Number,
                    _ => Kind::Unknown,
                }
            }
            Expr::BinaryOp { op: StringConcat, .. } => Kind::Text,
            _ => Kind::Unknown,
        }
    }

    fn compare(&self, a: &Expr, b: &Expr) -> ControlFlow<Box<Diagnostic>> {
        let (x, y) = (self.kind(a), self.kind(b));
        if x.compares_with(y) {
            return ControlFlow::Continue(());
        }
        let message = format!("`{}` is {} and `{}` is {}: they cannot be compared", shown(a), x.word(), shown(b), y.word());
        let help = match [x, y] {
            kinds if kinds.contains(&Kind::Literal) => "leave the quotes out, or CAST the literal",
            kinds if kinds.contains(&Kind::Text) => "quote the literal, or CAST one side",
            _ => "CAST one side",
        };
        ControlFlow::Break(Diagnostic::new(Code::TypeMismatch, message).within(place(a).or(place(b))).help(help))
    }
}

impl Visitor for Check<'_> {
    type Break = Box<Diagnostic>;

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        use BinaryOperator::*;
        if self.depth > 0 {
            return ControlFlow::Continue(());
        }
        match expr {
            // Engines disagree about both.
            Expr::Like { pattern, escape_char, .. } if escape_char.is_some() || has_backslash(pattern) => ControlFlow::Break(
                Diagnostic::new(Code::Unsupported, format!("the pattern of LIKE has an escape: {pattern}"))
                    .within(place(pattern))
                    .help("`%` and `_` stand for other characters everywhere; compare a part of the text where they must not"),
            ),
            // Some hosts would look at the printed number.
            Expr::Like { expr, pattern, .. } | Expr::ILike { expr, pattern, .. } => {
                [expr, pattern].into_iter().try_for_each(|e| match self.kind(e) {
                    Kind::Text | Kind::Literal | Kind::Unknown => ControlFlow::Continue(()),
                    other => ControlFlow::Break(
                        Diagnostic::new(Code::TypeMismatch, format!("`{}` is {}, and LIKE looks at texts", shown(e), other.word()))
                            .within(place(e))
                            .help("CAST it to text, or compare it with =, <, BETWEEN"),
                    ),
                })
            }
            Expr::BinaryOp { left, op: Gt | Lt | GtEq | LtEq | Eq | NotEq, right }
            | Expr::IsDistinctFrom(left, right)
            | Expr::IsNotDistinctFrom(left, right) => self.compare(left, right),
            Expr::InList { expr, list, .. } => {
                for item in list {
                    self.compare(expr, item)?;
                }
                ControlFlow::Continue(())
            }
            Expr::Between { expr, low, high, .. } => {
                self.compare(expr, low)?;
                self.compare(expr, high)
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Checks the comparisons of an expression over result columns; a condition must also be true, false or NULL.
///
/// # Errors
/// `type_mismatch`.
pub fn check(expr: &Expr, columns: &[(String, Type)], condition: bool) -> Result<()> {
    let mut check = Check { columns, depth: 0 };
    if let ControlFlow::Break(error) = expr.visit(&mut check) {
        return Err(error);
    }
    match check.kind(expr) {
        Kind::Boolean | Kind::Unknown => Ok(()),
        other if condition => {
            let message = format!("WHERE needs a condition, and `{}` is {}", shown(expr), other.word());
            Err(Diagnostic::new(Code::TypeMismatch, message).within(place(expr)))
        }
        _ => Ok(()),
    }
}
