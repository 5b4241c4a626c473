//! Templates rewritten so that minijinja runs them with Jinja2's meaning: operators become calls of [`super::ops`], and all
//! text becomes expressions, so that every byte of output passes the formatter, which counts it.
//!
//! The rewritten source is complete: white space control is resolved, and every statement stands on its original line.

mod expressions;

use super::macros::{MACRO, mentions};
use expressions::is_constant;
use minijinja::machinery::{WhitespaceConfig, ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Rewrites a template as transformers reads it: `trim_blocks` and `lstrip_blocks`, line ends as `\n`.
///
/// # Errors
/// A syntax error, or a statement that needs other templates.
pub(super) fn rewrite(source: &str) -> Result<Rewritten, Error> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let template = parse(source, "chat", SyntaxConfig, whitespace)?;
    let mut writer =
        Writer { out: String::new(), line: 1, source, macros: Vec::new(), unsigned: 0, inner: false, constant: false };
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
    /// The whole of what is written is constant, and Jinja2 works it out while it compiles the template.
    constant: bool,
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
                self.constant = is_constant(&s.expr);
                self.expr(&s.expr)?;
                self.constant = false;
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
                // A block is written: what is no text is an error.
                self.push(" | __written %}");
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
}
