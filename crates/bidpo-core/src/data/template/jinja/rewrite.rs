//! Templates rewritten so that minijinja runs them with Jinja2's meaning: operators become calls of [`super::ops`], and all
//! text becomes expressions, so that every byte of output passes the formatter, which counts it.
//!
//! The rewritten source is complete: white space control is resolved, and every statement stands on its original line.

use super::macros::{MACRO, mentions};
use super::ops::{ADD, CHAIN, CONCAT, COUNTED, DIV, EQ, FLOOR_DIV, IN, MUL, NE, NEG, POW, REM, SLICE, SUB, TUPLE};
use super::order::{GE, GT, LE, LT};
use minijinja::machinery::{WhitespaceConfig, ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Rewrites a template as transformers reads it: `trim_blocks` and `lstrip_blocks`, line ends as `\n`.
///
/// # Errors
/// A syntax error, or a statement that needs other templates.
pub(super) fn rewrite(source: &str) -> Result<Rewritten, Error> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let template = parse(source, "chat", SyntaxConfig, whitespace)?;
    let mut writer = Writer { out: String::new(), line: 1, source, macros: Vec::new(), unsigned: 0, inner: false };
    writer.statement(&template)?;
    Ok(Rewritten { source: writer.out, macros: writer.macros })
}

/// A rewritten template.
pub(super) struct Rewritten {
    /// Its source.
    pub(super) source: String,
    /// Names of its macros.
    pub(super) macros: Vec<String>,
}

struct Writer<'s> {
    out: String,
    /// The template.
    source: &'s str,
    macros: Vec<String>,
    /// Signs at the innermost value of the present expression that stand before the whole of it already.
    unsigned: usize,
    /// The expression to write next is what a longer one of attributes, subscripts or calls begins with.
    inner: bool,
    /// Line that is being written, from 1.
    line: usize,
}

impl Writer<'_> {
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
                self.push(if matches!(s.target, ast::Expr::List(_)) { ")|__each|__parts" } else { ")|__each" });
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
                // Every value is that outside of the block: names are bound when all are there.
                for (i, (_, value)) in s.assignments.iter().enumerate() {
                    self.push(&format!("{}__w{i} = ", if i > 0 { ", " } else { "" }));
                    self.expr(value)?;
                }
                self.push(" %}");
                for (i, (target, _)) in s.assignments.iter().enumerate() {
                    self.push("{% set ");
                    self.target(target)?;
                    self.push(&format!(" = __w{i} %}}"));
                }
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
                let made = self.inner_macro(s, s.name)?;
                self.macros.push(s.name.to_owned());
                self.push(&format!("{{% set {} = {made} %}}", s.name));
            }
            ast::Stmt::CallBlock(s) => {
                self.open("{%", s.span().start_line);
                let made = self.inner_macro(&s.macro_decl, "caller")?;
                self.push("{{ ");
                self.operand(&s.call.expr)?;
                self.arguments(&s.call.args)?;
                // The caller is one more named argument.
                self.out.pop();
                self.push(if s.call.args.is_empty() { "caller=" } else { ", caller=" });
                self.push(&made);
                self.push(") }}");
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

    /// A macro of minijinja behind an open tag, and the expression that makes ours of it ([`super::macros`]).
    fn inner_macro(&mut self, s: &ast::Macro<'_>, name: &str) -> Result<String, Error> {
        let parameters: Vec<&str> =
            s.args.iter().filter_map(|a| if let ast::Expr::Var(v) = a { Some(v.id) } else { None }).collect();
        self.push(&format!(
            "macro __m_{name}({}) %}}",
            [&parameters[..], &["varargs", "kwargs", "__given"]].concat().join(", ")
        ));
        let plain = s.args.len() - s.defaults.len();
        for (i, default) in s.defaults.iter().enumerate() {
            let at = plain + i;
            self.push(&format!(
                "{{% if not __given[{at}] %}}{{% set {} = ",
                parameters.get(at).copied().unwrap_or_default()
            ));
            self.expr(default)?;
            self.push(" %}{% endif %}");
        }
        let body = self.out.len();
        self.body(&s.body)?;
        let reads: Vec<String> = ["varargs", "kwargs", "caller"]
            .into_iter()
            .filter(|what| mentions(&self.out[body..], what))
            .map(|what| format!("{what:?}"))
            .collect();
        self.push("{% endmacro %}");
        let names: Vec<String> = parameters.iter().map(|p| format!("{p:?}")).collect();
        Ok(format!("{MACRO}({name:?}, __m_{name}, [{}], [{}])", names.join(", "), reads.join(", ")))
    }

    /// True for a list that begins at this place in parentheses: a tuple ([`super::source`] puts them around every one).
    fn is_tuple(&self, at: usize) -> bool {
        self.source.as_bytes().get(at) != Some(&b'[')
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
        self.inner = true;
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

    fn expr(&mut self, e: &ast::Expr<'_>) -> Result<(), Error> {
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
                self.function(SLICE, &[Some(&s.expr), s.start.as_ref(), s.stop.as_ref(), s.step.as_ref()])?;
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
