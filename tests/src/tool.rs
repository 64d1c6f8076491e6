//! Runs the host's programs.

use crate::error::{Doing, Error, Result};
use std::process::{Command, Stdio};

/// Runs a program to its end and gives what it wrote on standard output.
///
/// # Errors
/// The program is missing, or fails: then its last lines on standard error are in the error.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done =
        command.stdin(Stdio::null()).output().doing(format!("starting {name} (did scripts/setup run?)"))?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        return Err(Error::new(format!("{name} ended with {}", done.status), last_lines(&text, 5)));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a program whose output goes where the caller has sent it.
///
/// # Errors
/// The program is missing, or fails.
pub fn status(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done =
        command.stdin(Stdio::null()).status().doing(format!("starting {name} (did scripts/setup run?)"))?;
    if done.success() { Ok(()) } else { Err(Error::new(name, done)) }
}

/// The last `nr_lines` lines of a text.
pub fn last_lines(text: &str, nr_lines: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(nr_lines)..].join("\n")
}
