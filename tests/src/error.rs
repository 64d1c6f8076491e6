//! The harness's error: what was being done, and what came instead. It is read by a person, at once.

use std::fmt;

/// What the harness was doing when it could not go on, and why.
pub struct Error(String);

/// The harness's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Names the action and the cause.
    pub fn new(doing: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self(format!("{doing}: {cause}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Adds the action to any result.
pub trait Doing<T> {
    /// Turns an error into [`Error`], with `what` was being done in front.
    ///
    /// # Errors
    /// The same as before.
    fn doing(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::new(what, cause))
    }
}
