//! Templates rewritten so that minijinja runs them with Jinja2's meaning: operators become calls of [`super::ops`], and all
//! text becomes expressions, so that every byte of output passes the formatter, which counts it.
//!
//! The rewritten source is complete: white space control is resolved, and every statement stands on its original line.

use super::ops::{ADD, CONCAT, COUNTED, EQ, IN, MUL, NE, REM, SLICE};
use minijinja::machinery::{WhitespaceConfig, ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Rewrites a template as transformers reads it: `trim_blocks` and `lstrip_blocks`, line ends as `\n`.
///
/// # Errors
/// A syntax error, or a statement that needs other templates.
pub(super) fn rewrite(source: &str) -> Result<String, Error> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let template = parse(source, "chat", SyntaxConfig, whitespace)?;
    let mut writer = Writer { out: String::new(), line: 1 };
    writer.statement(&template)?;
    Ok(writer.out)
}

struct Writer {
    out: String,
    /// Line that is being written, from 1.
    line: usize,
}

impl Writer {
    fn push(&mut self, text: &str) {
        self.line += text.matches('\n').count();
        self.out.push_str(text);
    }

    /// Opens a tag on the line on which it stands in the template.
    fn open(&mut self, tag: &str, line: u16) {
        self.push(tag);
        while self.line < usize::from(line) {
            self.push("\n");
        }
        self.push(" ");
    }

    fn body(&mut self, statements: &[ast::Stmt<'_>]) -> Result<(), Error> {
        statements.iter().try_for_each(|s| self.statement(s))
    }

    fn statement(&mut self, statement: &ast::Stmt<'_>) -> Result<(), Error> {
        match statement {
            ast::Stmt::Template(s) => self.body(&s.children)?,
            ast::Stmt::EmitExpr(s) => {
                self.open("{{", s.span().start_line);
                self.expr(&s.expr)?;
                self.push(" }}");
            }
            ast::Stmt::EmitRaw(s) => {
                self.push("{{ ");
                self.string(s.raw);
                self.push(" }}");
            }
            ast::Stmt::ForLoop(s) => {
                self.open("{%", s.span().start_line);
                self.push("for ");
                self.target(&s.target)?;
                self.push(" in (");
                self.expr(&s.iter)?;
                self.push(")|__each");
                if let Some(filter) = &s.filter_expr {
                    self.push(" if ");
                    self.expr(filter)?;
                }
                self.push(if s.recursive { " recursive %}" } else { " %}" });
                self.body(&s.body)?;
                if !s.else_body.is_empty() {
                    self.push("{% else %}");
                    self.body(&s.else_body)?;
                }
                self.push("{% endfor %}");
            }
            ast::Stmt::IfCond(s) => {
                self.open("{%", s.span().start_line);
                self.push("if ");
                self.condition(s)?;
                self.push("{% endif %}");
            }
            ast::Stmt::WithBlock(s) => {
                self.open("{%", s.span().start_line);
                self.push("with ");
                for (i, (target, value)) in s.assignments.iter().enumerate() {
                    self.push(if i > 0 { ", " } else { "" });
                    self.target(target)?;
                    self.push(" = ");
                    self.expr(value)?;
                }
                self.push(" %}");
                self.body(&s.body)?;
                self.push("{% endwith %}");
            }
            ast::Stmt::Set(s) => {
                self.open("{%", s.span().start_line);
                self.push("set ");
                self.target(&s.target)?;
                self.push(" = ");
                self.expr(&s.expr)?;
                self.push(" %}");
            }
            ast::Stmt::SetBlock(s) => {
                self.open("{%", s.span().start_line);
                self.push("set ");
                self.target(&s.target)?;
                if let Some(filter) = &s.filter {
                    self.push(" | ");
                    self.filter_chain(filter)?;
                }
                self.push(" %}");
                self.body(&s.body)?;
                self.push("{% endset %}");
            }
            ast::Stmt::AutoEscape(s) => self.body(&s.body)?,
            ast::Stmt::FilterBlock(s) => {
                self.open("{%", s.span().start_line);
                self.push("filter ");
                self.filter_chain(&s.filter)?;
                self.push(" %}");
                self.body(&s.body)?;
                self.push("{% endfilter %}");
            }
            ast::Stmt::Block(s) => {
                self.open("{%", s.span().start_line);
                self.push(&format!("block {} %}}", s.name));
                self.body(&s.body)?;
                self.push("{% endblock %}");
            }
            ast::Stmt::Macro(s) => {
                self.open("{%", s.span().start_line);
                self.push(&format!("macro {}", s.name));
                self.parameters(s)?;
                self.push(" %}");
                self.body(&s.body)?;
                self.push("{% endmacro %}");
            }
            ast::Stmt::CallBlock(s) => {
                self.open("{%", s.span().start_line);
                self.push("call");
                if !s.macro_decl.args.is_empty() {
                    self.parameters(&s.macro_decl)?;
                }
                self.push(" ");
                self.call(&s.call)?;
                self.push(" %}");
                self.body(&s.macro_decl.body)?;
                self.push("{% endcall %}");
            }
            ast::Stmt::Do(s) => {
                self.open("{%", s.span().start_line);
                self.push("do ");
                self.call(&s.call)?;
                self.push(" %}");
            }
            ast::Stmt::Continue(_) => self.push("{% continue %}"),
            ast::Stmt::Break(_) => self.push("{% break %}"),
            ast::Stmt::Import(_) | ast::Stmt::FromImport(_) | ast::Stmt::Extends(_) | ast::Stmt::Include(_) => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "it includes, imports or extends another template, which a chat template cannot do",
                ));
            }
        }
        Ok(())
    }

    /// Condition and bodies; an `if` alone in the other branch is an `elif`, so that a chain of them does not nest.
    fn condition(&mut self, s: &ast::IfCond<'_>) -> Result<(), Error> {
        self.expr(&s.expr)?;
        self.push(" %}");
        self.body(&s.true_body)?;
        match &s.false_body[..] {
            [] => {}
            [ast::Stmt::IfCond(next)] => {
                self.open("{%", next.span().start_line);
                self.push("elif ");
                self.condition(next)?;
            }
            other => {
                self.push("{% else %}");
                self.body(other)?;
            }
        }
        Ok(())
    }

    fn parameters(&mut self, s: &ast::Macro<'_>) -> Result<(), Error> {
        self.push("(");
        let plain = s.args.len() - s.defaults.len();
        for (i, arg) in s.args.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            self.target(arg)?;
            if let Some(default) = i.checked_sub(plain).and_then(|i| s.defaults.get(i)) {
                self.push("=");
                self.expr(default)?;
            }
        }
        self.push(")");
        Ok(())
    }

    /// What is assigned to: a name, an attribute, or several of them.
    fn target(&mut self, target: &ast::Expr<'_>) -> Result<(), Error> {
        match target {
            ast::Expr::Var(v) => self.push(v.id),
            ast::Expr::GetAttr(a) => {
                self.target(&a.expr)?;
                self.push(".");
                self.push(a.name);
            }
            ast::Expr::List(l) => {
                self.push("(");
                for item in &l.items {
                    self.target(item)?;
                    self.push(", ");
                }
                self.push(")");
            }
            other => self.expr(other)?,
        }
        Ok(())
    }

    /// A chain of filters without the value that it starts from, as blocks have it.
    fn filter_chain(&mut self, chain: &ast::Expr<'_>) -> Result<(), Error> {
        let ast::Expr::Filter(f) = chain else { return self.expr(chain) };
        if let Some(before) = &f.expr {
            self.filter_chain(before)?;
            self.push(" | ");
        }
        self.push(f.name);
        self.arguments(&f.args)
    }

    fn call(&mut self, call: &ast::Call<'_>) -> Result<(), Error> {
        self.operand(&call.expr)?;
        self.arguments(&call.args)
    }

    fn arguments(&mut self, args: &[ast::CallArg<'_>]) -> Result<(), Error> {
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
    fn operand(&mut self, e: &ast::Expr<'_>) -> Result<(), Error> {
        if matches!(e, ast::Expr::Var(_) | ast::Expr::GetAttr(_) | ast::Expr::GetItem(_) | ast::Expr::Call(_)) {
            return self.expr(e);
        }
        self.push("(");
        self.expr(e)?;
        self.push(")");
        Ok(())
    }

    fn expr(&mut self, e: &ast::Expr<'_>) -> Result<(), Error> {
        match e {
            ast::Expr::Var(v) => self.push(v.id),
            ast::Expr::Const(c) => self.constant(&c.value)?,
            ast::Expr::Slice(s) => {
                self.function(SLICE, &[Some(&s.expr), s.start.as_ref(), s.stop.as_ref(), s.step.as_ref()])?;
            }
            ast::Expr::UnaryOp(u) => {
                self.push(match u.op {
                    ast::UnaryOpKind::Not => "(not ",
                    ast::UnaryOpKind::Neg => "(-",
                });
                self.operand(&u.expr)?;
                self.push(")");
            }
            ast::Expr::BinOp(b) => self.binary(b)?,
            ast::Expr::Compare(c) => {
                self.push("(");
                self.counted(&c.expr)?;
                for op in &c.ops {
                    self.push(match op.op {
                        ast::CompareOpKind::Eq => " == ",
                        ast::CompareOpKind::Ne => " != ",
                        ast::CompareOpKind::Lt => " < ",
                        ast::CompareOpKind::Lte => " <= ",
                        ast::CompareOpKind::Gt => " > ",
                        ast::CompareOpKind::Gte => " >= ",
                        ast::CompareOpKind::In => " in ",
                        ast::CompareOpKind::NotIn => " not in ",
                    });
                    self.counted(&op.expr)?;
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
            ast::Expr::GetAttr(a) => {
                self.operand(&a.expr)?;
                self.push(".");
                self.push(a.name);
            }
            ast::Expr::GetItem(g) => {
                self.operand(&g.expr)?;
                self.push("[");
                self.expr(&g.subscript_expr)?;
                self.push("]");
            }
            ast::Expr::Call(c) => self.call(c)?,
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

    fn ordered(&mut self, b: &ast::BinOp<'_>, infix: &str) -> Result<(), Error> {
        self.push("(");
        self.counted(&b.left)?;
        self.push(infix);
        self.counted(&b.right)?;
        self.push(")");
        Ok(())
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
            ast::BinOpKind::Lt => return self.ordered(b, " < "),
            ast::BinOpKind::Lte => return self.ordered(b, " <= "),
            ast::BinOpKind::Gt => return self.ordered(b, " > "),
            ast::BinOpKind::Gte => return self.ordered(b, " >= "),
            ast::BinOpKind::ScAnd => " and ",
            ast::BinOpKind::ScOr => " or ",
            ast::BinOpKind::Sub => " - ",
            ast::BinOpKind::Div => " / ",
            ast::BinOpKind::FloorDiv => " // ",
            ast::BinOpKind::Pow => " ** ",
        };
        self.push("(");
        self.operand(&b.left)?;
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
                let text = f64::try_from(value.clone()).map(|x| format!("{x}")).unwrap_or_default();
                self.push(&if text.contains('.') { text } else { format!("{text}.0") });
            }
            other => return Err(Error::new(ErrorKind::SyntaxError, format!("a constant of type {other}"))),
        }
        Ok(())
    }

    /// A string literal on one line.
    fn string(&mut self, text: &str) {
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
