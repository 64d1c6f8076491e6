//! Text for terminals, logs and programs. What others have chosen arrives as [`Untrusted`](control::Untrusted), which
//! shows itself harmlessly; this is for the two forms around it.

use serde_json::Value;
use std::fmt::Write;

/// JSON on one line, with names as they are, and safe on a terminal: what [`Untrusted`](control::Untrusted) would escape
/// is escaped as JSON does it, so that a parser gives it back.
pub(crate) fn json(value: &Value) -> String {
    escape(&value.to_string())
}

/// The same on several lines.
pub(crate) fn pretty_json(value: &Value) -> String {
    escape(&format!("{value:#}"))
}

fn escape(json: &str) -> String {
    let mut safe = String::new();
    for char in json.chars() {
        // A line feed in JSON is layout: within a string it is escaped already.
        if char == '\n' || control::is_harmless(char) {
            safe.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            // Writing to a String does not fail.
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_gives_names_back_and_shows_no_control_to_a_terminal() {
        for name in ["a\"b\n\x1b[2J", "db\u{202e}gnp\u{9b}2J\u{7f}", "tag\u{e0041}", "é 名 🐧"] {
            let value = json!({ "guest": name });
            let (line, pretty) = (json(&value), pretty_json(&value));
            assert!(line.chars().all(control::is_harmless), "{line}");
            assert!(
                pretty.lines().count() == 3
                    && pretty.lines().all(|line| line.chars().all(control::is_harmless))
            );
            for text in [line, pretty] {
                let back: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(back, value);
            }
        }
    }
}
