//! What a line typed in the chat means: something to say, or a command that starts with a slash.

use std::path::PathBuf;

/// Usage and meaning of every command, in the order of `/help`.
pub const COMMANDS: &[(&str, &str)] = &[
    ("/scale X", "turn every vector to scale X (1.5, -2, or 5% of the residual norm)"),
    ("/scale NAME=X", "turn the vector NAME to scale X"),
    ("/scale", "show the vectors and their scales"),
    ("/vector FILE [X]", "add a vector, at scale X [1]"),
    ("/off", "answer without steering"),
    ("/on", "steer again"),
    ("/system TEXT", "set the system message; without TEXT, drop it"),
    ("/reset", "forget the conversation"),
    ("/help", "show this list"),
    ("/quit", "leave (also Ctrl-D)"),
];

/// A line of the chat, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Text for the model.
    Say(String),
    /// Nothing was typed.
    Nothing,
    /// Set a scale; the value is still text (a number or a percentage).
    Scale {
        /// The vector, or all of them.
        name: Option<String>,
        /// The value.
        value: String,
    },
    /// Show the scales.
    ShowScales,
    /// Load a vector.
    Vector {
        /// Its file.
        file: PathBuf,
        /// Its scale, still text.
        scale: Option<String>,
    },
    /// Steering off.
    Off,
    /// Steering on.
    On,
    /// Set (or with `None` drop) the system message.
    System(Option<String>),
    /// Forget the conversation.
    Reset,
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
        /// What was typed.
        command: String,
        /// The command that looks most like it.
        near: Option<&'static str>,
    },
    /// Wrong arguments.
    #[error("usage: {0}")]
    Usage(&'static str),
}

impl Command {
    /// Reads one line (or several, joined by the caller).
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
        let alone = |command: Self, usage: &'static str| {
            if argument.is_empty() { Ok(command) } else { Err(CommandError::Usage(usage)) }
        };
        match word {
            "scale" => scale(argument),
            "vector" => vector(argument),
            "off" => alone(Self::Off, "/off"),
            "on" => alone(Self::On, "/on"),
            "system" => Ok(Self::System((!argument.is_empty()).then(|| argument.to_owned()))),
            "reset" => alone(Self::Reset, "/reset"),
            "help" => alone(Self::Help, "/help"),
            "quit" | "exit" => alone(Self::Quit, "/quit"),
            _ => Err(CommandError::Unknown { command: format!("/{word}"), near: nearest(word) }),
        }
    }
}

fn scale(argument: &str) -> Result<Command, CommandError> {
    const USAGE: CommandError = CommandError::Usage("/scale X or /scale NAME=X, X a number (1.5) or a percentage (5%)");
    if argument.is_empty() {
        return Ok(Command::ShowScales);
    }
    let (name, value) = match argument.rsplit_once('=') {
        Some((name, value)) => (Some(name.trim()), value.trim()),
        None => (None, argument),
    };
    // "2 %" is one value, "honest 2" is a forgotten equals sign.
    let number = value.strip_suffix('%').unwrap_or(value).trim_end();
    if number.is_empty() || number.contains(char::is_whitespace) || name.is_some_and(str::is_empty) {
        return Err(USAGE);
    }
    Ok(Command::Scale { name: name.map(ToOwned::to_owned), value: value.to_owned() })
}

/// `FILE [X]`: the last word is the scale if it reads like one, so that a file name may hold spaces. Quotes around the
/// name are taken off.
fn vector(argument: &str) -> Result<Command, CommandError> {
    if argument.is_empty() {
        return Err(CommandError::Usage("/vector FILE.gguf [SCALE]"));
    }
    let like_a_scale = |text: &str| text.strip_suffix('%').unwrap_or(text).parse::<f64>().is_ok();
    let (file, scale) = match argument.rsplit_once(char::is_whitespace) {
        Some((file, last)) if like_a_scale(last) => (file.trim(), Some(last.to_owned())),
        _ => (argument, None),
    };
    let bare = ['"', '\''].iter().find_map(|&q| file.strip_prefix(q)?.strip_suffix(q)).unwrap_or(file);
    Ok(Command::Vector { file: bare.into(), scale })
}

/// The command that starts with the same letters or differs by the fewest edits (at most two).
fn nearest(word: &str) -> Option<&'static str> {
    COMMANDS
        .iter()
        .map(|(usage, _)| usage.split(' ').next().unwrap_or(usage))
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

    fn scale(name: Option<&str>, value: &str) -> Result<Command, CommandError> {
        Ok(Command::Scale { name: name.map(Into::into), value: value.into() })
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
        assert_eq!(Command::parse("/scale 1.5"), scale(None, "1.5"));
        assert_eq!(Command::parse("/scale  -5%"), scale(None, "-5%"));
        assert_eq!(Command::parse("/scale 5 %"), scale(None, "5 %"));
        assert_eq!(Command::parse("/scale honest=-2"), scale(Some("honest"), "-2"));
        assert_eq!(Command::parse("/scale a=b c = 3%"), scale(Some("a=b c"), "3%"));
        assert_eq!(Command::parse("/scale"), Ok(Command::ShowScales));
        for bad in ["/scale honest 2", "/scale =2", "/scale honest=", "/scale %"] {
            assert!(matches!(Command::parse(bad), Err(CommandError::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn vectors() {
        let vector = |file: &str, scale: Option<&str>| {
            Ok(Command::Vector { file: file.into(), scale: scale.map(ToOwned::to_owned) })
        };
        assert_eq!(Command::parse("/vector a.gguf"), vector("a.gguf", None));
        assert_eq!(Command::parse("/vector a.gguf -2"), vector("a.gguf", Some("-2")));
        assert_eq!(Command::parse("/vector my file.gguf 5%"), vector("my file.gguf", Some("5%")));
        assert_eq!(Command::parse("/vector \"my 2\""), vector("my 2", None));
        assert!(matches!(Command::parse("/vector "), Err(CommandError::Usage(_))));
    }

    #[test]
    fn the_rest() {
        assert_eq!(Command::parse("/off"), Ok(Command::Off));
        assert_eq!(Command::parse("/on "), Ok(Command::On));
        assert_eq!(Command::parse("/reset"), Ok(Command::Reset));
        assert_eq!(Command::parse("/help"), Ok(Command::Help));
        assert_eq!(Command::parse("/quit"), Ok(Command::Quit));
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
            let line = usage.replace("[X]", "2").replace('X', "2");
            assert!(!matches!(Command::parse(&line), Err(_) | Ok(Command::Say(_))), "{usage}");
        }
    }
}
