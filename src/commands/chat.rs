//! `bidpo chat`: a conversation in the terminal, with a dial for each vector.

mod show;

use crate::args::names;
use crate::args::sampling::{PromptArgs, SamplingArgs};
use crate::args::steering::{
    Scale, SteeringArgs, load_scaled_vector, measure_residual_norms, say_doubts, say_strength,
};
use crate::terminal::columns::{LiveColumns, terminal_width};
use crate::terminal::editor::{Input, LineEditor};
use crate::terminal::interrupt::Interrupt;
use crate::terminal::markdown::{Markdown, Styled};
use crate::terminal::streams;
use anyhow::{Context as _, anyhow, ensure};
use bidpo_core::chat::{
    COMMANDS, ChatError, ChatSession, Command, GenerateOptions, Generation, GeneratorParams, NOTES, Side, StopReason,
    is_complete, joined, printable,
};
use bidpo_core::data::Think;
use bidpo_core::steer::Convention;
use show::{describe, short};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Options of `bidpo chat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    #[command(flatten)]
    how: PromptArgs,
    #[command(flatten)]
    steering: SteeringArgs,
    /// Maximum number of tokens of an answer.
    #[arg(long = "max-tokens", short = 'n', value_name = "MAX", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// History file for the arrow keys [default: bidpo/chat_history in $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, value_name = "FILE", conflicts_with = "no_history")]
    history: Option<PathBuf>,
    /// Do not save a history of the input.
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// A second Ctrl-C within this time is ignored.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = args.model.load()?;
    let template = args.how.variables.open(&model, &args.how.template, Think::Auto)?;
    let steering = args.steering.load(&model, Some(&template), args.model.threads())?;
    let params = GeneratorParams { n_ctx: args.how.ctx.unwrap_or(0), n_threads: args.model.threads() };
    let mut session = ChatSession::new(&model, template, &params)?;
    session.set_system(args.how.system.clone());
    say_strength(&steering.dials, steering.layers.as_ref());
    session.set_dials(steering.dials, steering.layers)?;
    // rustyline takes SIGINT for itself when an editor is made; our handler comes after it, so that Ctrl-C reaches the
    // answer. (While a line is edited the terminal sends no signal: rustyline reads Ctrl-C as a key.)
    let history = args.history.or_else(crate::terminal::editor::default_history).filter(|_| !args.no_history);
    let editor = std::io::stdin().is_terminal().then(|| LineEditor::new(history)).transpose()?;
    let interrupt = Interrupt::install(if editor.is_some() { PATIENCE } else { Duration::ZERO })?;
    let options = GenerateOptions {
        sampler: args.sampling.params(),
        max_tokens: args.max_tokens as usize,
        interrupt: interrupt.stop.clone(),
    };
    let n_threads = args.model.threads();
    let mut chat = Chat { session, options, interrupt, n_threads, styled: takes_styles(), saved: None };
    match editor {
        Some(editor) => chat.interactive(editor)?,
        None => chat.piped()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Styles go to a terminal that knows them, unless the user wants none (<https://no-color.org>).
fn takes_styles() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    std::io::stdout().is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|t| t != "dumb")
}

struct Chat {
    session: ChatSession,
    options: GenerateOptions,
    interrupt: Interrupt,
    n_threads: u32,
    styled: bool,
    /// The file that this conversation was written to, which may be written again.
    saved: Option<PathBuf>,
}

impl Chat {
    /// Line editing with history; Ctrl-D ends, Ctrl-C gives up the line.
    fn interactive(&mut self, mut editor: LineEditor) -> anyhow::Result<()> {
        eprintln!(
            "{}, {} tokens of context. /help lists the commands.",
            self.session.model().description(),
            self.session.n_ctx()
        );
        loop {
            let names = self.session.dials().iter().map(|d| d.name.clone()).collect();
            match editor.read(&self.prompt(), names)? {
                Input::Text(text) => {
                    if !self.obey(&joined(&text)) {
                        return Ok(());
                    }
                }
                Input::GivenUp => eprintln!("(Ctrl-D or /quit to leave)"),
                Input::End => return Ok(()),
            }
        }
    }

    /// One input at a time, answers on stdout, no prompts: for scripts.
    fn piped(&mut self) -> anyhow::Result<()> {
        let mut text = String::new();
        for line in std::io::stdin().lock().split(b'\n') {
            let line = line?;
            // A byte that is no text does not end the conversation.
            let line = String::from_utf8_lossy(&line);
            text += line.strip_suffix('\r').unwrap_or(&line);
            if !is_complete(&text) {
                text.push('\n');
                continue;
            }
            if !self.obey(&joined(&std::mem::take(&mut text))) {
                return Ok(());
            }
        }
        if !text.is_empty() {
            self.obey(&joined(text.trim_end_matches('\n')));
        }
        Ok(())
    }

    /// `[honest 1.5] > `
    fn prompt(&self) -> String {
        let dials = self.session.dials();
        if dials.is_empty() {
            return "> ".into();
        }
        if !self.session.is_on() {
            return "[off] > ".into();
        }
        let dials: Vec<_> = dials.iter().map(|d| format!("{} {}", d.name, short(d.scale))).collect();
        format!("[{}] > ", one_line(&dials.join(", ")))
    }

    /// Does what a line says; false to leave. What goes wrong is told, and the chat goes on.
    fn obey(&mut self, line: &str) -> bool {
        let interrupt = self.interrupt.clone();
        let done = match Command::parse(line) {
            Ok(Command::Quit) => return false,
            Ok(command) => interrupt.during(|| self.execute(command)),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = done {
            eprintln!("bidpo: {}", printable(&crate::terminal::message(&error)));
        }
        true
    }

    fn execute(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Nothing | Command::Quit => {}
            Command::Say(text) => self.answer(|session, options, sink| session.ask(&text, options, sink))?,
            Command::Retry => self.answer(|session, options, sink| session.retry(options, sink))?,
            Command::Compare(question) => self.compare(question.as_deref())?,
            Command::Help => help(),
            Command::Scale(scales) => self.set_scales(&scales)?,
            Command::ShowScales => self.show_scales(),
            Command::Load { file, name, scale, convention } => {
                self.load(&at_home(file), name, scale.as_deref(), convention.unwrap_or_default())?;
            }
            Command::Unload(name) => {
                self.session.remove_dial(&name)?;
                self.show_scales();
            }
            Command::ShowLayers if self.session.dials().is_empty() => self.show_scales(),
            Command::ShowLayers => eprint!("{}", printable(&show::layers(&self.session))),
            Command::Layers(layers) => {
                self.session.set_layers(layers)?;
                eprint!("{}", printable(&show::layers(&self.session)));
            }
            Command::Gate => eprint!("{}", printable(&show::gates(&self.session))),
            Command::Off => self.switch(false)?,
            Command::On => self.switch(true)?,
            Command::Undo => {
                let question = self.session.undo()?;
                eprintln!("taken back: {}", printable(&question));
            }
            Command::System(text) => {
                self.session.set_system(text);
                let set = self.session.system().is_some();
                eprintln!("{}", if set { "system message set" } else { "no system message" });
            }
            Command::Reset => {
                self.session.reset();
                eprintln!("the conversation starts anew");
            }
            Command::Save(file) => self.save(at_home(file))?,
            Command::Stats => eprint!("{}", show::stats(&self.session)),
        }
        Ok(())
    }

    /// Has the session answer, and shows the answer as it comes.
    fn answer(
        &mut self,
        ask: impl FnOnce(&mut ChatSession, &GenerateOptions, &mut dyn FnMut(&str)) -> Result<Generation, ChatError>,
    ) -> anyhow::Result<()> {
        let mut markdown = Markdown::new(self.styled);
        let show = |text: &Styled| {
            streams::out_styled(text);
            streams::flush();
        };
        let answer = ask(&mut self.session, &self.options, &mut |piece| show(&markdown.push(&printable(piece))));
        show(&markdown.finish());
        let answer = answer?;
        println!();
        streams::flush();
        self.say_why(&answer, "");
        Ok(())
    }

    /// Why an answer ended, unless the model ended it itself.
    fn say_why(&self, answer: &Generation, which: &str) {
        match answer.stop {
            StopReason::EndOfTurn => {}
            StopReason::Interrupted => eprintln!("[{which}stopped]"),
            StopReason::MaxTokens => {
                eprintln!("[{which}cut after {} tokens: --max-tokens allows more]", answer.tokens.len());
            }
            StopReason::ContextFull => eprintln!(
                "[{which}the context of {} tokens is full: /reset forgets the conversation, --ctx N makes room]",
                self.session.n_ctx()
            ),
        }
    }

    /// Both answers in columns that fill as they are written.
    fn compare(&mut self, question: Option<&str>) -> anyhow::Result<()> {
        let dials: Vec<_> = self.session.dials().iter().map(|d| format!("{} {}", d.name, short(d.scale))).collect();
        let mut columns = LiveColumns::new(2, terminal_width());
        let mut head = Some(columns.head(&["unsteered".to_owned(), one_line(&dials.join(", "))]));
        let mut show = |rows: String| {
            if !rows.is_empty() {
                print!("{}{rows}", head.take().unwrap_or_default());
                streams::flush();
            }
        };
        let both = self.session.compare(question, &self.options, &mut |side, piece| {
            let i = usize::from(side == Side::Steered);
            show(match piece {
                Some(piece) => columns.push(i, &printable(piece)),
                None => columns.end(i),
            });
        });
        show(columns.finish());
        let both = both?;
        self.say_why(&both.unsteered, "unsteered: ");
        self.say_why(&both.steered, "steered: ");
        Ok(())
    }

    fn set_scales(&mut self, scales: &[(Option<String>, String)]) -> anyhow::Result<()> {
        // All of them are read, and all names known, before the first is turned.
        let mut dials = self.session.dials().to_vec();
        let layers = self.session.layers().cloned();
        let mut read = Vec::new();
        for (name, value) in scales {
            let scale: Scale = value.parse().map_err(|e: String| anyhow!(e))?;
            if matches!(scale, Scale::Percent(_)) {
                self.know_residual_norms(name.as_deref())?;
            }
            read.push((name.as_deref(), scale));
        }
        let on = self.session.is_on();
        for (name, scale) in read {
            let turned = self.session.set_scale(name, |d| scale.factor(&d.vector).with_context(|| d.name.clone()));
            if let Err(error) = turned {
                self.session.set_dials(std::mem::take(&mut dials), layers)?;
                self.session.set_on(on)?;
                return Err(error);
            }
        }
        say_strength(self.session.dials(), self.session.layers());
        self.show_scales();
        Ok(())
    }

    /// Of the vector called `name`, or of all.
    fn know_residual_norms(&mut self, name: Option<&str>) -> anyhow::Result<()> {
        let dials: Vec<_> = self.session.dials().iter().filter(|d| name.is_none_or(|n| n == d.name)).cloned().collect();
        for mut dial in dials.into_iter().filter(|d| d.vector.percent_of_scale(1.0).is_none()) {
            let on = self.session.is_on();
            measure_residual_norms(&mut dial, self.session.model(), self.n_threads)?;
            self.session.add_dial(dial)?;
            self.session.set_on(on)?;
        }
        Ok(())
    }

    fn load(
        &mut self,
        file: &Path,
        name: Option<String>,
        scale: Option<&str>,
        convention: Convention,
    ) -> anyhow::Result<()> {
        let scale: Scale = scale.unwrap_or("1").parse().map_err(|e: String| anyhow!(e))?;
        let file = &names::vector(file, self.session.model().path())?;
        let mut dial = load_scaled_vector(file, None, scale, convention, self.session.model(), self.n_threads)?;
        if let Some(name) = name {
            ensure!(!name.contains('='), "{name:?} cannot be a name: /scale NAME=X could not tell where it ends");
            dial.name = name;
        }
        say_doubts(file, &dial.vector, self.session.model());
        say_strength(std::slice::from_ref(&dial), self.session.layers());
        self.session.add_dial(dial)?;
        self.show_scales();
        Ok(())
    }

    /// A file of this conversation is written again; another one is left alone.
    fn save(&mut self, file: PathBuf) -> anyhow::Result<()> {
        ensure!(!self.session.history().is_empty(), "nothing was said yet: there is nothing to save");
        ensure!(
            self.saved.as_ref() == Some(&file) || !file.exists(),
            "{} is there already and was not written by this chat: choose another name",
            file.display()
        );
        self.session.transcript().save(&file).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("{} messages: {}", self.session.history().len(), file.display());
        self.saved = Some(file);
        Ok(())
    }

    fn switch(&mut self, on: bool) -> anyhow::Result<()> {
        self.session.set_on(on)?;
        self.show_scales();
        Ok(())
    }

    fn show_scales(&self) {
        if self.session.dials().is_empty() {
            eprintln!("no vector is loaded (/load FILE loads one)");
            return;
        }
        for dial in self.session.dials() {
            eprintln!("{}", printable(&describe(dial)));
        }
        if let Some(layers) = self.session.layers() {
            eprintln!("restricted to {} (/layers all lifts it)", layers.labelled());
        }
        if !self.session.is_on() {
            eprintln!("steering is off (/on switches it on)");
        }
    }
}

/// `~/x` as a shell means it: Tab completes such names too.
fn at_home(file: PathBuf) -> PathBuf {
    match (file.strip_prefix("~"), std::env::var_os("HOME").filter(|h| !h.is_empty())) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => file,
    }
}

fn help() {
    for (usage, meaning) in COMMANDS {
        eprintln!("  {usage:<22} {meaning}");
    }
    for note in NOTES {
        eprintln!("{note}");
    }
}

/// Names in a prompt or a heading: on one line, and harmless.
fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}
