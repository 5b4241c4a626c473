//! One file from one address.

use crate::http::{agent, ask, content_range, has_marked_end, is_plain, shown, validator};
use crate::partial::{Origin, Partial, beside};
use crate::{FetchError, HashText};
use ggml_grad::files::{FileError, LockFile, check_writable, destination, sha256_of_file};
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use ureq::Agent;

/// How long broken transfers are tried again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The number of further transfers without progress.
    pub attempts: u32,
    /// The time before the first of them; it doubles each time.
    pub pause: Duration,
    /// A transfer that brings no byte in this time is broken.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(1), stall: Duration::from_secs(60) }
    }
}

/// A file to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// Its address.
    pub url: &'a str,
    /// Where it goes. What came so far is kept beside it, as `NAME.part`.
    pub to: &'a Path,
    /// Its SHA-256. Without one, a transfer is continued only where the server says that its file is still the same.
    pub sha256: Option<&'a HashText>,
    /// Its size in bytes, if known.
    pub bytes: Option<u64>,
    /// How a file of its kind begins, and what the kind is called.
    pub begins: Option<(&'static str, &'static str)>,
    /// True if it may replace another file at its place.
    pub replace: bool,
    /// How long broken transfers are tried again.
    pub patience: Patience,
}

/// What happens during a transfer.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another file with that name is at the place, and will be replaced.
    Replaces(&'a Path),
    /// A Python package is fetched by pip.
    Package(&'a str),
    /// Bytes come, from this one on.
    Begins {
        /// Bytes that an earlier transfer left.
        from: u64,
        /// Bytes of the whole file, if known.
        total: Option<u64>,
    },
    /// So many bytes came.
    Bytes {
        /// Bytes of the file so far.
        done: u64,
        /// Bytes of the whole file, if known.
        total: Option<u64>,
    },
    /// What came cannot be continued: the transfer begins again.
    Restarts(&'a str),
    /// The transfer broke off and is continued after a pause.
    Breaks {
        /// Why.
        reason: &'a str,
        /// The pause.
        pause: Duration,
    },
}

/// How a file came to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    WasThere,
    /// It was fetched.
    Written,
}

/// A file at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Whether it was fetched.
    pub outcome: Outcome,
    /// Its SHA-256, lower-case hex.
    pub sha256: String,
}

/// Why a transfer ended without the whole file.
enum Failure {
    Final(FetchError),
    /// Another try may bring more.
    Broken(String),
}

impl<E: Into<FetchError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

impl Download<'_> {
    /// Fetches the file, unless it is there.
    ///
    /// # Errors
    /// [`FetchError`]. Of a transfer that broke off the part is kept; of a complete file that is not the expected one, nothing.
    pub fn run(&self, on: &mut dyn FnMut(Event<'_>)) -> Result<Fetched, FetchError> {
        let to = destination(self.to).map_err(FileError::write(self.to))?;
        check_writable(&to).map_err(FileError::write(&to))?;
        let lock_file = beside(&to, ".part.lock");
        let lock = LockFile::take(&lock_file).map_err(FileError::write(&lock_file))?;
        let _lock = lock.ok_or_else(|| FetchError::Busy { path: to.clone() })?;
        if to.exists() {
            if let Some(sha256) = self.sha256
                && sha256_of_file(&to).map_err(FileError::read(&to))? == sha256.as_str()
            {
                return Ok(Fetched { outcome: Outcome::WasThere, sha256: sha256.as_str().to_owned() });
            }
            if !self.replace {
                return Err(FetchError::Exists { path: to });
            }
            on(Event::Replaces(&to));
        }
        let part = self.whole(Partial::open(&to, self.url)?, on)?;
        let sha256 = part.sha256();
        part.finish(&to)?;
        Ok(Fetched { outcome: Outcome::Written, sha256 })
    }

    /// Transfers until the file is whole and right.
    fn whole(&self, mut part: Partial, on: &mut dyn FnMut(Event<'_>)) -> Result<Partial, FetchError> {
        // Of a process that was killed before its last step.
        if self.sha256.is_some_and(|sha256| part.len() > 0 && part.sha256() == sha256.as_str()) {
            return Ok(part);
        }
        let agent = agent(self.url, self.patience.stall);
        let (mut continued, mut again) = (part.len() > 0, false);
        let (mut most, mut failures, mut answered) = (part.len(), 0, false);
        loop {
            match self.transfer(&agent, &mut part, &mut answered, on) {
                Ok(()) => match self.check(&part) {
                    Ok(()) => return Ok(part),
                    // The parts may be of different files. Once more from the beginning tells.
                    Err(_) if continued && !again => {
                        on(Event::Restarts("the parts do not give the expected file"));
                        part.restart()?;
                        (again, most) = (true, 0);
                    }
                    Err(error) => {
                        part.discard();
                        return Err(error);
                    }
                },
                Err(Failure::Final(error)) => {
                    if part.len() == 0 {
                        part.discard();
                    }
                    return Err(error);
                }
                Err(Failure::Broken(reason)) => {
                    // Progress is what no transfer brought before: a server that always begins again ends, too.
                    failures = if part.len() > most { 0 } else { failures + 1 };
                    most = most.max(part.len());
                    if failures > self.patience.attempts {
                        let (url, path, received) = (shown(self.url), part.path().to_owned(), part.len());
                        return Err(FetchError::BrokenOff { url, times: failures, reason, received, part: path });
                    }
                    let pause = self.patience.pause * 2u32.pow(failures.saturating_sub(1).min(10));
                    on(Event::Breaks { reason: &reason, pause });
                    std::thread::sleep(pause);
                    continued |= part.len() > 0;
                }
            }
        }
    }

    /// One request, and its answer into the part.
    fn transfer(
        &self,
        agent: &Agent,
        part: &mut Partial,
        answered: &mut bool,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Failure> {
        let known = part.origin().and_then(|o| o.validator.clone());
        if part.len() > 0 && known.is_none() && self.sha256.is_none() {
            on(Event::Restarts("nothing says that the server's file is still the same"));
            part.restart()?;
        }
        let from = part.len();
        let response = ask(agent, self.url, from, known.as_deref()).map_err(|source| {
            // A server that never answered is more likely a wrong address than a bad line.
            if *answered {
                Failure::Broken(source.to_string())
            } else {
                Failure::Final(FetchError::Transport { url: shown(self.url), source })
            }
        })?;
        *answered = true;
        let headers = response.headers();
        let range = content_range(headers);
        let total = match response.status().as_u16() {
            200 => response.body().content_length(),
            206 if from > 0 => range.as_ref().and_then(|r| r.total),
            416 if from > 0 && range.as_ref().is_some_and(|r| r.total == Some(from)) => return Ok(()),
            416 if from > 0 => {
                part.restart()?;
                return Err(Failure::Broken("the server's file is shorter than what came".into()));
            }
            status @ (408 | 425 | 429 | 500..=599) => {
                return Err(Failure::Broken(format!("the server answers with HTTP status {status}")));
            }
            status => return Err(FetchError::Status { url: shown(self.url), status }.into()),
        };
        if !is_plain(headers) {
            return Err(Failure::Broken("the server compresses the file, which it was asked not to do".into()));
        }
        if let (Some(found), Some(expected)) = (total, self.bytes)
            && found != expected
        {
            return Err(FetchError::Size { url: shown(self.url), found, expected }.into());
        }
        if total.is_none() && self.sha256.is_none() && !has_marked_end(headers) {
            return Err(FetchError::NoLength { url: shown(self.url) }.into());
        }
        let total = total.or(self.bytes);
        let origin = Origin::new(self.url, validator(headers), total);
        if from > 0 {
            let fits = response.status() == 206 && range.is_some_and(|r| r.start == Some(from));
            let same = part.origin().is_none_or(|o| o.total.is_none() || o.total == total);
            if response.status() == 206 && !(fits && same) {
                part.restart()?;
                return Err(Failure::Broken("the server sends another range than it was asked for".into()));
            }
            if !fits {
                on(Event::Restarts("the server sends the file from its beginning"));
                part.restart()?;
            }
        }
        part.set_origin(origin)?;
        on(Event::Begins { from: part.len(), total });
        self.receive(response.into_body().into_reader(), part, total, on)
    }

    fn receive(
        &self,
        mut body: impl Read,
        part: &mut Partial,
        total: Option<u64>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Failure> {
        let mut piece = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut piece).map_err(|e| Failure::Broken(e.to_string()))?;
            if n == 0 {
                break;
            }
            part.append(&piece[..n])?;
            let done = part.len();
            if let Some(expected) = total.filter(|&total| done > total) {
                part.restart()?;
                return Err(FetchError::Size { url: shown(self.url), found: done, expected }.into());
            }
            on(Event::Bytes { done, total });
        }
        match total.filter(|&total| part.len() < total) {
            Some(total) => Err(Failure::Broken(format!("{} of {total} bytes came", part.len()))),
            None => Ok(()),
        }
    }

    /// Checks the whole file.
    fn check(&self, part: &Partial) -> Result<(), FetchError> {
        if let Some(expected) = self.sha256 {
            let found = part.sha256();
            if found != expected.as_str() {
                return Err(FetchError::Hash { name: shown(self.url), found, expected: expected.as_str().to_owned() });
            }
        }
        if let Some((begin, kind)) = self.begins
            && part.head(begin.len() as u64)? != begin.as_bytes()
        {
            return Err(FetchError::Kind { url: shown(self.url), expected: begin.to_owned(), kind });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
