//! Parses a line of the chat: a message, or a command that starts with a slash.

use crate::layers::Layers;
use crate::steer::Convention;
use std::path::PathBuf;

/// Usage and meaning of every command, in the order of `/help`.
pub const COMMANDS: &[(&str, &str)] = &[
    ("/scale X", "turn every vector and adapter to scale X (1.5, -2, or 5% of the residual norm)"),
    ("/scale NAME=X ...", "turn the vector NAME to scale X; several at once: /scale a=1 b=-5%"),
    ("/scale", "show the vectors and their scales"),
    ("/load FILE [NAME] [X]", "add a vector or a LoRA adapter, called NAME [the file's name], at scale X [1]"),
    ("/unload NAME", "take the vector NAME off"),
    ("/layers", "show where each vector steers, and how strongly"),
    ("/layers LIST", "steer at these layers only (15, 10-20, 5,9,12-14); /layers all lifts it"),
    ("/gate", "show where the gates opened in the last prompt and answer, token by token"),
    ("/off", "answer without steering"),
    ("/on", "steer again"),
    ("/compare [QUESTION]", "answer the last question, or QUESTION, steered beside unsteered; not kept"),
    ("/retry", "answer the last question again, under the steering of now"),
    ("/undo", "take back the last question and its answer"),
    ("/system TEXT", "set the system message; without TEXT, drop it"),
    ("/reset", "forget the conversation"),
    ("/save FILE", "write the conversation: JSON if FILE ends in .json, else Markdown"),
    ("/stats", "show tokens, speeds, what was reused, and the room left"),
    ("/help", "show this list"),
    ("/quit", "leave (also Ctrl-D)"),
];

/// Notes printed below the list of commands.
pub const NOTES: &[&str] = &[
    "Several lines: end a line with \\, or put \"\"\" before the first and after the last, or press Alt-Enter.",
    "Ctrl-C stops the answer; Tab completes commands, files and vectors; the arrow keys bring back what was typed.",
    "A file or name with spaces is put in quotes. To say a line that starts with a slash, put a space first.",
];

/// A line of the chat, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Text for the model.
    Say(String),
    /// Nothing was typed.
    Nothing,
    /// Set scales; the values are still text (numbers or percentages). Without a name: all vectors.
    Scale(Vec<(Option<String>, String)>),
    /// Show the scales.
    ShowScales,
    /// Load a vector.
    Load {
        /// Its file.
        file: PathBuf,
        /// Name of the vector, if not that of the file.
        name: Option<String>,
        /// Its scale, still text.
        scale: Option<String>,
        /// The layer convention of the file, if another than the session's.
        convention: Option<Convention>,
    },
    /// Take a vector off.
    Unload(String),
    /// Show layers and norms.
    ShowLayers,
    /// Steer at some layers only, or (with `None`) at all.
    Layers(Option<Layers>),
    /// Show where gates opened.
    Gate,
    /// Steering off.
    Off,
    /// Steering on.
    On,
    /// Steered beside unsteered: the last question, or this one.
    Compare(Option<String>),
    /// Answer again.
    Retry,
    /// Take the last question back.
    Undo,
    /// Set (or with `None` drop) the system message.
    System(Option<String>),
    /// Forget the conversation.
    Reset,
    /// Write the conversation.
    Save(PathBuf),
    /// Show tokens and speeds.
    Stats,
    /// Show the commands.
    Help,
    /// Leave.
    Quit,
}

/// Why a line that starts with a slash is not a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such command.
    #[error("there is no command {command}{}; /help lists all (to say a line that starts with a slash, put a space first)",
        .near.map_or_else(String::new, |n| format!(", did you mean {n}?")))]
    Unknown {
        /// The input.
        command: String,
        /// The command that looks most like it.
        near: Option<&'static str>,
    },
    /// Wrong arguments.
    #[error("usage: {0}")]
    Usage(&'static str),
    /// A quote without its end.
    #[error("a {0} is missing at the end: quotes come in pairs (or write \\{0})")]
    OpenQuote(char),
    /// An argument that says its own reason.
    #[error("{0}")]
    Argument(String),
}

impl Command {
    /// Reads one line (or several, joined by [`joined`](super::joined)).
    ///
    /// # Errors
    /// [`CommandError`] for a line that starts with a slash and is no command.
    pub fn parse(line: &str) -> Result<Self, CommandError> {
        if line.trim().is_empty() {
            return Ok(Self::Nothing);
        }
        // "/" alone, "/ text" and "//..." are not commands of anyone: they are said, like any other text.
        let Some(rest) = line.strip_prefix('/').filter(|r| r.starts_with(|c: char| c.is_ascii_alphabetic())) else {
            return Ok(Self::Say(line.trim().to_owned()));
        };
        let (word, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let argument = argument.trim();
        let text = || (!argument.is_empty()).then(|| argument.to_owned());
        let alone = |command: Self, usage: &'static str| {
            if argument.is_empty() { Ok(command) } else { Err(CommandError::Usage(usage)) }
        };
        match word {
            "scale" => scale(argument),
            "load" | "vector" => load(argument),
            "unload" => match &words(argument)?[..] {
                [name] => Ok(Self::Unload(name.clone())),
                _ => Err(CommandError::Usage("/unload NAME")),
            },
            "layers" => match argument {
                "" => Ok(Self::ShowLayers),
                "all" => Ok(Self::Layers(None)),
                list => list
                    .parse()
                    .map(|l| Self::Layers(Some(l)))
                    .map_err(|e: crate::layers::LayersError| CommandError::Argument(e.to_string())),
            },
            "gate" => alone(Self::Gate, "/gate"),
            "off" => alone(Self::Off, "/off"),
            "on" => alone(Self::On, "/on"),
            "compare" => Ok(Self::Compare(text())),
            "retry" => alone(Self::Retry, "/retry"),
            "undo" => alone(Self::Undo, "/undo"),
            "system" => Ok(Self::System(text())),
            "reset" => alone(Self::Reset, "/reset"),
            "save" => match &words(argument)?[..] {
                [file] => Ok(Self::Save(file.into())),
                _ => Err(CommandError::Usage("/save FILE (quotes around a name with spaces)")),
            },
            "stats" => alone(Self::Stats, "/stats"),
            "help" => alone(Self::Help, "/help"),
            "quit" | "exit" => alone(Self::Quit, "/quit"),
            _ => Err(CommandError::Unknown { command: format!("/{word}"), near: nearest(word) }),
        }
    }

    /// The commands' first words, each once: `/scale`, `/load`, ...
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<_> = COMMANDS.iter().map(|(usage, _)| usage.split(' ').next().unwrap_or(usage)).collect();
        names.dedup();
        names
    }
}

/// Splits at white space outside of quotes. A backslash makes a space, a quote or a backslash an ordinary character;
/// before any other character it is one itself.
fn words(text: &str) -> Result<Vec<String>, CommandError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\\', _) if characters.peek().is_some_and(|n| matches!(n, ' ' | '\\' | '"' | '\'')) => {
                word.get_or_insert_default().extend(characters.next());
            }
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(q) = quote {
        return Err(CommandError::OpenQuote(q));
    }
    words.extend(word);
    Ok(words)
}

/// `X`, `NAME=X`, or several of the latter. "5 %" is one value; in the form with one name, the name may hold spaces.
fn scale(argument: &str) -> Result<Command, CommandError> {
    const USAGE: CommandError =
        CommandError::Usage("/scale X, or /scale NAME=X NAME=X ...; X is a number (1.5) or a percentage (5%)");
    if argument.is_empty() {
        return Ok(Command::ShowScales);
    }
    let words = words(argument)?;
    let pair = |text: &str| {
        let (name, value) = text.rsplit_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        (!name.is_empty() && like_a_scale(value)).then(|| (Some(name.to_owned()), value.to_owned()))
    };
    if words.len() > 1
        && let Some(pairs) = words.iter().map(|w| pair(w)).collect()
    {
        return Ok(Command::Scale(pairs));
    }
    let whole = words.join(" ");
    match whole.contains('=') {
        true => pair(&whole).map(|p| Command::Scale(vec![p])).ok_or(USAGE),
        // One word that is no number is told so by whoever reads it; "honest 2" is a forgotten equals sign.
        false if like_a_scale(&whole) || (words.len() == 1 && whole != "%") => Ok(Command::Scale(vec![(None, whole)])),
        false => Err(USAGE),
    }
}

fn like_a_scale(text: &str) -> bool {
    text.strip_suffix('%').unwrap_or(text).trim_end().parse::<f64>().is_ok()
}

/// `FILE [NAME] [X] [convention=C]`; the last three in any order.
fn load(argument: &str) -> Result<Command, CommandError> {
    const USAGE: CommandError = CommandError::Usage(
        "/load FILE [NAME] [SCALE] [convention=output|generator] (quotes around a name with spaces)",
    );
    let words = words(argument)?;
    let Some((file, rest)) = words.split_first() else { return Err(USAGE) };
    let (mut name, mut scale, mut convention) = (None, None, None);
    for word in rest {
        if let Some(text) = word.strip_prefix("convention=") {
            convention = Some(text.parse().map_err(CommandError::Argument)?);
            continue;
        }
        let place = if like_a_scale(word) { &mut scale } else { &mut name };
        if place.replace(word.clone()).is_some() {
            return Err(USAGE);
        }
    }
    Ok(Command::Load { file: file.into(), name, scale, convention })
}

/// The command that starts with the same letters or differs by the fewest edits (at most two).
fn nearest(word: &str) -> Option<&'static str> {
    Command::names()
        .into_iter()
        .chain(["/vector"])
        .map(|command| (if command[1..].starts_with(word) { 0 } else { edits(&command[1..], word) }, command))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, command)| command)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect(); // row[j]: edits from the part of a read so far to b[..j]
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(pairs: &[(Option<&str>, &str)]) -> Result<Command, CommandError> {
        Ok(Command::Scale(pairs.iter().map(|(n, v)| (n.map(Into::into), (*v).to_owned())).collect()))
    }

    #[test]
    fn text_is_said() {
        assert_eq!(Command::parse("  hello there "), Ok(Command::Say("hello there".into())));
        assert_eq!(Command::parse(" /scale 2"), Ok(Command::Say("/scale 2".into())));
        assert_eq!(Command::parse("// a comment"), Ok(Command::Say("// a comment".into())));
        assert_eq!(Command::parse("/"), Ok(Command::Say("/".into())));
        assert_eq!(Command::parse(" \t"), Ok(Command::Nothing));
    }

    #[test]
    fn scales() {
        assert_eq!(Command::parse("/scale 1.5"), scale(&[(None, "1.5")]));
        assert_eq!(Command::parse("/scale  -5%"), scale(&[(None, "-5%")]));
        assert_eq!(Command::parse("/scale 5 %"), scale(&[(None, "5 %")]));
        assert_eq!(Command::parse("/scale honest=-2"), scale(&[(Some("honest"), "-2")]));
        assert_eq!(Command::parse("/scale a=b c = 3%"), scale(&[(Some("a=b c"), "3%")]));
        assert_eq!(Command::parse("/scale a=1 'b c'=-5%"), scale(&[(Some("a"), "1"), (Some("b c"), "-5%")]));
        assert_eq!(Command::parse("/scale"), Ok(Command::ShowScales));
        assert_eq!(Command::parse("/scale strong"), scale(&[(None, "strong")]));
        for bad in ["/scale honest 2", "/scale =2", "/scale honest=", "/scale %", "/scale 1 2"] {
            assert!(matches!(Command::parse(bad), Err(CommandError::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn vectors() {
        let load = |file: &str, name: Option<&str>, scale: Option<&str>| {
            let own = |text: Option<&str>| text.map(ToOwned::to_owned);
            Ok(Command::Load { file: file.into(), name: own(name), scale: own(scale), convention: None })
        };
        assert_eq!(Command::parse("/load a.gguf"), load("a.gguf", None, None));
        assert_eq!(Command::parse("/vector a.gguf -2"), load("a.gguf", None, Some("-2")));
        assert_eq!(Command::parse("/load a.gguf honest"), load("a.gguf", Some("honest"), None));
        assert_eq!(Command::parse("/load a.gguf honest 5%"), load("a.gguf", Some("honest"), Some("5%")));
        assert_eq!(Command::parse("/load my\\ file.gguf 5%"), load("my file.gguf", None, Some("5%")));
        assert_eq!(Command::parse("/load \"my 2\""), load("my 2", None, None));
        assert_eq!(Command::parse(r"/load C:\v.gguf"), load(r"C:\v.gguf", None, None));
        let Ok(Command::Load { convention, .. }) = Command::parse("/load a.gguf convention=generator") else {
            panic!()
        };
        assert_eq!(convention, Some(Convention::Generator));
        assert!(matches!(Command::parse("/load a.gguf convention=x"), Err(CommandError::Argument(_))));
        assert!(matches!(Command::parse("/load a b c"), Err(CommandError::Usage(_))));
        assert!(matches!(Command::parse("/load "), Err(CommandError::Usage(_))));
        assert_eq!(Command::parse("/load 'a"), Err(CommandError::OpenQuote('\'')));
        assert_eq!(Command::parse("/unload 'my vector'"), Ok(Command::Unload("my vector".into())));
        assert!(matches!(Command::parse("/unload"), Err(CommandError::Usage(_))));
    }

    #[test]
    fn the_rest() {
        assert_eq!(Command::parse("/off"), Ok(Command::Off));
        assert_eq!(Command::parse("/on "), Ok(Command::On));
        assert_eq!(Command::parse("/reset"), Ok(Command::Reset));
        assert_eq!(Command::parse("/help"), Ok(Command::Help));
        assert_eq!(Command::parse("/quit"), Ok(Command::Quit));
        assert_eq!(Command::parse("/retry"), Ok(Command::Retry));
        assert_eq!(Command::parse("/undo"), Ok(Command::Undo));
        assert_eq!(Command::parse("/stats"), Ok(Command::Stats));
        assert_eq!(Command::parse("/compare"), Ok(Command::Compare(None)));
        assert_eq!(Command::parse("/compare Who are you?"), Ok(Command::Compare(Some("Who are you?".into()))));
        assert_eq!(Command::parse("/save talk.md"), Ok(Command::Save("talk.md".into())));
        assert_eq!(Command::parse("/layers"), Ok(Command::ShowLayers));
        assert_eq!(Command::parse("/layers all"), Ok(Command::Layers(None)));
        assert_eq!(Command::parse("/layers 5,9-10"), Ok(Command::Layers(Some("5,9-10".parse().unwrap()))));
        assert!(matches!(Command::parse("/layers 9-5"), Err(CommandError::Argument(_))));
        assert_eq!(Command::parse("/system Be brief. "), Ok(Command::System(Some("Be brief.".into()))));
        assert_eq!(Command::parse("/system"), Ok(Command::System(None)));
        assert!(matches!(Command::parse("/off now"), Err(CommandError::Usage(_))));
    }

    #[test]
    fn unknown_commands_get_a_hint() {
        let message = |line: &str| Command::parse(line).unwrap_err().to_string();
        assert!(message("/sclae 2").contains("did you mean /scale?"), "{}", message("/sclae 2"));
        assert!(message("/vec x").contains("did you mean /vector?"));
        assert!(!message("/frobnicate").contains("did you mean"));
        assert!(message("/frobnicate").contains("/help"));
    }

    #[test]
    fn every_command_listed_is_known() {
        for (usage, _) in COMMANDS {
            let line = usage.replace(" ...", "").replace("[X]", "2").replace('X', "2").replace("LIST", "3-4");
            assert!(!matches!(Command::parse(&line), Err(_) | Ok(Command::Say(_))), "{usage}");
        }
    }
}
