//! `bidpo chat`: a conversation in the terminal, with a dial for each vector.

use super::interrupt::Interrupt;
use super::sampling::{PromptArgs, SamplingArgs};
use super::steering::{Scale, SteeringArgs, load_dial};
use anyhow::anyhow;
use bidpo::chat::{COMMANDS, ChatSession, Command, GenerateOptions, GeneratorParams, StopReason};
use bidpo::data::ChatTemplate;
use bidpo::steer::{Dial, warnings};
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// Options of `bidpo chat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: super::ModelArgs,
    #[command(flatten)]
    how: PromptArgs,
    #[command(flatten)]
    steering: SteeringArgs,
    /// The most tokens of an answer.
    #[arg(long = "max-tokens", short = 'n', value_name = "MAX", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = args.model.load()?;
    let template = ChatTemplate::new(&model, &args.how.template)?;
    if let Some(notice) = template.notice() {
        eprintln!("bidpo: {notice}");
    }
    let steering = args.steering.load(&model)?;
    let params = GeneratorParams { n_ctx: args.how.ctx.unwrap_or(0), n_threads: args.model.threads() };
    let mut session = ChatSession::new(&model, template, &params)?;
    session.set_system(args.how.system.clone());
    session.set_dials(steering.dials, steering.layers)?;
    // rustyline takes SIGINT for itself when an editor is made; our handler comes after it, so that Ctrl-C reaches the
    // answer. (While a line is edited the terminal sends no signal: rustyline reads Ctrl-C as a key.)
    let editor = std::io::stdin().is_terminal().then(rustyline::DefaultEditor::new).transpose()?;
    let interrupt = Interrupt::install()?;
    let options = GenerateOptions {
        sampler: args.sampling.params(),
        max_tokens: args.max_tokens as usize,
        interrupt: interrupt.stop.clone(),
    };
    let mut chat = Chat { session, options, interrupt };
    match editor {
        Some(editor) => chat.interactive(editor)?,
        None => chat.piped()?,
    }
    Ok(ExitCode::SUCCESS)
}

struct Chat {
    session: ChatSession,
    options: GenerateOptions,
    interrupt: Interrupt,
}

impl Chat {
    /// Line editing with history; Ctrl-D ends, Ctrl-C gives up the line.
    fn interactive(&mut self, mut editor: rustyline::DefaultEditor) -> anyhow::Result<()> {
        eprintln!(
            "{}, {} tokens of context. /help lists the commands; a \\ at the end of a line goes on with the next.",
            self.session.model().description(),
            self.session.n_ctx()
        );
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { self.prompt() } else { "... ".to_owned() };
            match editor.readline(&prompt) {
                Ok(line) => {
                    if let Some(start) = line.strip_suffix('\\') {
                        text = text + start + "\n";
                        continue;
                    }
                    text += &line;
                    if !text.trim().is_empty() {
                        let _ = editor.add_history_entry(&text);
                    }
                    if !self.obey(&std::mem::take(&mut text)) {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {
                    text.clear();
                    eprintln!("(Ctrl-D or /quit to leave)");
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One line at a time, answers on stdout, no prompts: for scripts.
    fn piped(&mut self) -> anyhow::Result<()> {
        let mut text = String::new();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            if let Some(start) = line.strip_suffix('\\') {
                text = text + start + "\n";
                continue;
            }
            text += &line;
            if !self.obey(&std::mem::take(&mut text)) {
                return Ok(());
            }
        }
        if !text.is_empty() {
            self.obey(&text);
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
        format!("[{}] > ", dials.join(", "))
    }

    /// Does what a line says; false to leave. What goes wrong is told, and the chat goes on.
    fn obey(&mut self, line: &str) -> bool {
        let done = match Command::parse(line) {
            Ok(Command::Quit) => return false,
            Ok(command) => self.execute(command),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = done {
            eprintln!("bidpo: {}", super::message(&error));
        }
        true
    }

    fn execute(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Nothing | Command::Quit => Ok(()),
            Command::Say(text) => self.say(&text),
            Command::Help => {
                for (usage, meaning) in COMMANDS {
                    eprintln!("  {usage:<18} {meaning}");
                }
                Ok(())
            }
            Command::Scale { name, value } => {
                let scale: Scale = value.parse().map_err(|e: String| anyhow!(e))?;
                self.session.set_scale(name.as_deref(), |d| scale.factor(&d.vector))?;
                self.show_scales();
                Ok(())
            }
            Command::ShowScales => {
                self.show_scales();
                Ok(())
            }
            Command::Vector { file, scale } => self.add_vector(&file, scale.as_deref()),
            Command::Off => self.switch(false),
            Command::On => self.switch(true),
            Command::System(text) => {
                self.session.set_system(text);
                eprintln!(
                    "{}",
                    if self.session.system().is_some() { "system message set" } else { "no system message" }
                );
                Ok(())
            }
            Command::Reset => {
                self.session.reset();
                eprintln!("the conversation starts anew");
                Ok(())
            }
        }
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let (session, options) = (&mut self.session, &self.options);
        let answer = self.interrupt.during(|| {
            session.ask(text, options, &mut |piece| {
                print!("{piece}");
                let _ = std::io::stdout().flush();
            })
        })?;
        println!();
        match answer.stop {
            StopReason::EndOfTurn => {}
            StopReason::Interrupted => eprintln!("[stopped]"),
            StopReason::MaxTokens => {
                eprintln!("[cut after {} tokens: --max-tokens allows more]", answer.tokens.len());
            }
            StopReason::ContextFull => eprintln!(
                "[the context of {} tokens is full: /reset forgets the conversation, --ctx N makes room]",
                self.session.n_ctx()
            ),
        }
        Ok(())
    }

    fn add_vector(&mut self, file: &Path, scale: Option<&str>) -> anyhow::Result<()> {
        let scale: Scale = scale.unwrap_or("1").parse().map_err(|e: String| anyhow!(e))?;
        let dial = load_dial(file, scale)?;
        for warning in warnings(&dial.vector, self.session.model()) {
            eprintln!("bidpo: warning: {}: {warning}", file.display());
        }
        self.session.add_dial(dial)?;
        self.show_scales();
        Ok(())
    }

    fn switch(&mut self, on: bool) -> anyhow::Result<()> {
        self.session.set_on(on)?;
        self.show_scales();
        Ok(())
    }

    fn show_scales(&self) {
        if self.session.dials().is_empty() {
            eprintln!("no vector is loaded (/vector FILE loads one)");
        } else if !self.session.is_on() {
            eprintln!("steering is off (/on switches it on)");
        } else {
            for dial in self.session.dials() {
                eprintln!("{}", describe(dial));
            }
        }
    }
}

/// `honest: scale 1.5 (7.5 % of the residual norm)`
fn describe(dial: &Dial) -> String {
    let percent = dial.vector.percent_of_scale(dial.scale);
    let percent = percent.map_or_else(String::new, |p| format!(" ({p:.1} % of the residual norm)"));
    format!("{}: scale {}{percent}", dial.name, short(dial.scale))
}

/// At most three decimals: a scale that was given in per cent has more digits than anyone wants to read.
fn short(scale: f32) -> String {
    let text = format!("{scale:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
