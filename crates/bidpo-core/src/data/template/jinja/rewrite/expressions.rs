//! Expressions: operators become calls of [`super::super::ops`], literals are written anew.

use super::super::attributes::{METHOD, METHODS};
use super::super::ops::{
    ADD, CHAIN, CONCAT, CONSTANT_SLICE, COUNTED, DIV, EQ, FLOOR_DIV, IN, MUL, NE, NEG, POW, REM, SLICE, SUB, TUPLE,
};
use super::super::order::{GE, GT, LE, LT};
use super::Writer;
use minijinja::machinery::ast;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Filters that Jinja2 does not work out before it renders, for they read the template's variables.
const FILTERS_OF_CONTEXT: [&str; 6] = ["map", "select", "reject", "selectattr", "rejectattr", "random"];

/// True for an expression that Jinja2 works out while it compiles the template.
pub(super) fn is_constant(e: &ast::Expr<'_>) -> bool {
    let each = |list: &[ast::Expr<'_>]| list.iter().all(is_constant);
    let given = |e: &Option<ast::Expr<'_>>| e.as_ref().is_none_or(is_constant);
    let arguments = |list: &[ast::CallArg<'_>]| {
        list.iter().all(|arg| match arg {
            ast::CallArg::Pos(e) | ast::CallArg::PosSplat(e) | ast::CallArg::KwargSplat(e) => is_constant(e),
            ast::CallArg::Kwarg(_, e) => is_constant(e),
        })
    };
    match e {
        ast::Expr::Const(_) => true,
        ast::Expr::Var(_) | ast::Expr::Call(_) => false,
        ast::Expr::Slice(s) => is_constant(&s.expr) && given(&s.start) && given(&s.stop) && given(&s.step),
        ast::Expr::UnaryOp(u) => is_constant(&u.expr),
        ast::Expr::BinOp(b) => is_constant(&b.left) && is_constant(&b.right),
        ast::Expr::Compare(c) => is_constant(&c.expr) && c.ops.iter().all(|op| is_constant(&op.expr)),
        ast::Expr::IfExpr(i) => is_constant(&i.test_expr) && is_constant(&i.true_expr) && given(&i.false_expr),
        ast::Expr::Filter(f) => !FILTERS_OF_CONTEXT.contains(&f.name) && given(&f.expr) && arguments(&f.args),
        ast::Expr::Test(t) => is_constant(&t.expr) && arguments(&t.args),
        ast::Expr::GetAttr(a) => is_constant(&a.expr),
        ast::Expr::GetItem(g) => is_constant(&g.expr) && is_constant(&g.subscript_expr),
        ast::Expr::List(l) => each(&l.items),
        ast::Expr::Map(m) => each(&m.keys) && each(&m.values),
    }
}

impl Writer<'_> {
    pub(super) fn call(&mut self, call: &ast::Call<'_>) -> Result<(), Error> {
        self.inner = true;
        if let ast::Expr::GetAttr(a) = &call.expr {
            // Not as a value: a method is called as it is.
            self.operand(&a.expr)?;
            self.push(".");
            self.push(a.name);
        } else {
            self.operand(&call.expr)?;
        }
        self.arguments(&call.args)
    }

    pub(super) fn arguments(&mut self, args: &[ast::CallArg<'_>]) -> Result<(), Error> {
        self.push("(");
        for (i, arg) in args.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            match arg {
                ast::CallArg::Pos(e) => self.expr(e)?,
                ast::CallArg::Kwarg(name, e) => {
                    self.push(name);
                    self.push("=");
                    self.expr(e)?;
                }
                ast::CallArg::PosSplat(e) => {
                    self.push("*");
                    self.operand(e)?;
                }
                ast::CallArg::KwargSplat(e) => {
                    self.push("**");
                    self.operand(e)?;
                }
            }
        }
        self.push(")");
        Ok(())
    }

    /// A call of one of our functions.
    fn function(&mut self, name: &str, args: &[Option<&ast::Expr<'_>>]) -> Result<(), Error> {
        self.push(name);
        self.push("(");
        for (i, arg) in args.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            match arg {
                Some(e) => self.expr(e)?,
                None => self.push("none"),
            }
        }
        self.push(")");
        Ok(())
    }

    /// An expression that something is attached to: in parentheses unless it binds tightest anyway.
    pub(super) fn operand(&mut self, e: &ast::Expr<'_>) -> Result<(), Error> {
        if matches!(e, ast::Expr::Var(_) | ast::Expr::GetAttr(_) | ast::Expr::GetItem(_) | ast::Expr::Call(_)) {
            return self.expr(e);
        }
        self.push("(");
        self.expr(e)?;
        self.push(")");
        Ok(())
    }

    /// Signs before an expression that minijinja's parser has put at its innermost value: it reads `-a.b` as `(-a).b`.
    fn signs(&self, e: &ast::Expr<'_>) -> usize {
        let (mut base, mut first) = (e, e);
        loop {
            let inner = match base {
                ast::Expr::GetAttr(a) => &a.expr,
                ast::Expr::GetItem(g) => &g.expr,
                ast::Expr::Call(c) => &c.expr,
                ast::Expr::Slice(s) => &s.expr,
                _ => break,
            };
            (first, base) = (base, inner);
        }
        // `(-a).b` begins with a bracket.
        if self.source.as_bytes().get(first.span().start_offset as usize) != Some(&b'-') {
            return 0;
        }
        let mut n = 0;
        while let ast::Expr::UnaryOp(u) = base
            && let ast::UnaryOpKind::Neg = u.op
        {
            (base, n) = (&u.expr, n + 1);
        }
        n
    }

    pub(super) fn expr(&mut self, e: &ast::Expr<'_>) -> Result<(), Error> {
        let inner = std::mem::take(&mut self.inner);
        let postfix =
            matches!(e, ast::Expr::GetAttr(_) | ast::Expr::GetItem(_) | ast::Expr::Call(_) | ast::Expr::Slice(_));
        if postfix && !inner && self.unsigned == 0 {
            let n = self.signs(e);
            if n > 0 {
                (0..n).for_each(|_| self.push(&format!("{NEG}(")));
                self.unsigned = n;
                self.expr(e)?;
                (0..n).for_each(|_| self.push(")"));
                return Ok(());
            }
        }
        match e {
            ast::Expr::UnaryOp(u) if self.unsigned > 0 && matches!(u.op, ast::UnaryOpKind::Neg) => {
                self.unsigned -= 1;
                self.expr(&u.expr)?;
            }
            ast::Expr::Var(v) => self.push(v.id),
            ast::Expr::Const(c) => self.constant(&c.value)?,
            ast::Expr::Slice(s) => {
                self.inner = true;
                let name = if self.constant { CONSTANT_SLICE } else { SLICE };
                self.function(name, &[Some(&s.expr), s.start.as_ref(), s.stop.as_ref(), s.step.as_ref()])?;
            }
            ast::Expr::UnaryOp(u) => {
                if let ast::UnaryOpKind::Neg = u.op {
                    return self.function(NEG, &[Some(&u.expr)]);
                }
                self.push("(not ");
                self.operand(&u.expr)?;
                self.push(")");
            }
            ast::Expr::BinOp(b) => self.binary(b)?,
            ast::Expr::Compare(c) => {
                self.push(CHAIN);
                self.push("(");
                self.expr(&c.expr)?;
                for op in &c.ops {
                    self.push(match op.op {
                        ast::CompareOpKind::Eq => ", \"==\", ",
                        ast::CompareOpKind::Ne => ", \"!=\", ",
                        ast::CompareOpKind::Lt => ", \"<\", ",
                        ast::CompareOpKind::Lte => ", \"<=\", ",
                        ast::CompareOpKind::Gt => ", \">\", ",
                        ast::CompareOpKind::Gte => ", \">=\", ",
                        ast::CompareOpKind::In => ", \"in\", ",
                        ast::CompareOpKind::NotIn => ", \"not in\", ",
                    });
                    self.expr(&op.expr)?;
                }
                self.push(")");
            }
            ast::Expr::IfExpr(i) => {
                self.push("(");
                self.operand(&i.true_expr)?;
                self.push(" if ");
                self.operand(&i.test_expr)?;
                if let Some(other) = &i.false_expr {
                    self.push(" else ");
                    self.operand(other)?;
                }
                self.push(")");
            }
            ast::Expr::Filter(f) => {
                // Filters that look at no more than one value need no counting, and nest nothing.
                let cheap = ["length", "count", "first", "last", "default", "d"].contains(&f.name);
                if !cheap {
                    self.push(COUNTED);
                    self.push("(");
                }
                if let Some(value) = &f.expr {
                    if cheap {
                        self.operand(value)?
                    } else {
                        self.counted(value)?
                    }
                    self.push(" | ");
                }
                self.push(f.name);
                self.arguments(&f.args)?;
                if !cheap {
                    self.push(")");
                }
            }
            ast::Expr::Test(t) => {
                self.push("(");
                self.operand(&t.expr)?;
                self.push(" is ");
                self.push(t.name);
                if !t.args.is_empty() {
                    self.arguments(&t.args)?;
                }
                self.push(")");
            }
            ast::Expr::GetAttr(a) if METHODS.contains(&a.name) => {
                self.push(METHOD);
                self.push("(");
                self.inner = true;
                self.operand(&a.expr)?;
                self.push(&format!(", {:?})", a.name));
            }
            ast::Expr::GetAttr(a) => {
                self.inner = true;
                self.operand(&a.expr)?;
                self.push(".");
                self.push(a.name);
            }
            ast::Expr::GetItem(g) => {
                self.inner = true;
                self.operand(&g.expr)?;
                self.push("[");
                self.expr(&g.subscript_expr)?;
                self.push("]");
            }
            ast::Expr::Call(c) => self.call(c)?,
            ast::Expr::List(l) if self.is_tuple(l.span().start_offset as usize) => {
                let items: Vec<Option<&ast::Expr<'_>>> = l.items.iter().map(Some).collect();
                self.function(TUPLE, &items)?;
            }
            ast::Expr::List(l) => {
                let constant = l.items.iter().all(|item| matches!(item, ast::Expr::Const(_)));
                self.push(if constant { "" } else { COUNTED });
                self.push(if constant { "[" } else { "([" });
                for (i, item) in l.items.iter().enumerate() {
                    self.push(if i > 0 { ", " } else { "" });
                    self.expr(item)?;
                }
                self.push(if constant { "]" } else { "])" });
            }
            ast::Expr::Map(m) => {
                let constant = m.values.iter().all(|item| matches!(item, ast::Expr::Const(_)));
                self.push(if constant { "" } else { COUNTED });
                self.push(if constant { "{ " } else { "({ " });
                for (i, (key, value)) in m.keys.iter().zip(&m.values).enumerate() {
                    self.push(if i > 0 { ", " } else { "" });
                    self.expr(key)?;
                    self.push(": ");
                    self.expr(value)?;
                }
                self.push(if constant { " }" } else { " })" });
            }
        }
        Ok(())
    }

    /// A value that an operator or filter goes through.
    fn counted(&mut self, e: &ast::Expr<'_>) -> Result<(), Error> {
        match e {
            ast::Expr::Const(c) => self.constant(&c.value),
            e => self.function(COUNTED, &[Some(e)]),
        }
    }

    /// A sum as one call, however many terms it has: the parser bounds the depth of calls.
    fn terms(&mut self, name: &str, sum: &ast::BinOp<'_>) -> Result<(), Error> {
        let mut terms = vec![Some(&sum.right)];
        let mut left = &sum.left;
        while let ast::Expr::BinOp(inner) = left
            && std::mem::discriminant(&inner.op) == std::mem::discriminant(&sum.op)
        {
            terms.push(Some(&inner.right));
            left = &inner.left;
        }
        terms.push(Some(left));
        terms.reverse();
        self.function(name, &terms)
    }

    fn binary(&mut self, b: &ast::BinOp<'_>) -> Result<(), Error> {
        let both = [Some(&b.left), Some(&b.right)];
        let infix = match b.op {
            ast::BinOpKind::Add => return self.terms(ADD, b),
            ast::BinOpKind::Mul => return self.function(MUL, &both),
            ast::BinOpKind::Rem => return self.function(REM, &both),
            ast::BinOpKind::Concat => return self.terms(CONCAT, b),
            ast::BinOpKind::Eq => return self.function(EQ, &both),
            ast::BinOpKind::Ne => return self.function(NE, &both),
            ast::BinOpKind::In => return self.function(IN, &both),
            ast::BinOpKind::Lt => return self.function(LT, &both),
            ast::BinOpKind::Lte => return self.function(LE, &both),
            ast::BinOpKind::Gt => return self.function(GT, &both),
            ast::BinOpKind::Gte => return self.function(GE, &both),
            ast::BinOpKind::ScAnd => " and ",
            ast::BinOpKind::ScOr => " or ",
            ast::BinOpKind::Sub => return self.function(SUB, &both),
            ast::BinOpKind::Div => return self.function(DIV, &both),
            ast::BinOpKind::FloorDiv => return self.function(FLOOR_DIV, &both),
            ast::BinOpKind::Pow => return self.function(POW, &both),
        };
        self.push("(");
        // minijinja works out constants itself, and `'' and 'a'` as a boolean.
        match &b.left {
            left @ (ast::Expr::Var(_) | ast::Expr::GetAttr(_) | ast::Expr::GetItem(_) | ast::Expr::Call(_)) => {
                self.operand(left)?
            }
            left => self.function(COUNTED, &[Some(left)])?,
        }
        self.push(infix);
        self.operand(&b.right)?;
        self.push(")");
        Ok(())
    }

    fn constant(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::None => self.push("none"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.push(&value.to_string()),
            ValueKind::Number => {
                // Digits without an exponent read back as the same number.
                let x = f64::try_from(value.clone()).unwrap_or_default();
                let text = format!("{x}");
                self.push(&match () {
                    () if x.is_infinite() => "1e999".to_owned(),
                    () if text.contains('.') => text,
                    () => format!("{text}.0"),
                });
            }
            other => return Err(Error::new(ErrorKind::SyntaxError, format!("a constant of type {other}"))),
        }
        Ok(())
    }

    /// A string literal on one line.
    pub(super) fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                c if (c as u32) < 0x20 => _ = write!(self.out, "\\u{:04x}", c as u32),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
