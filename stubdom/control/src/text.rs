//! Text that somebody else has chosen: a guest, a stub, a stream, a device model, a program that failed.
//!
//! **Takes** the text where it is read. **Gives** a form that a terminal or a log can show. **Never** hands it out raw,
//! except through [`Untrusted::raw`], which names what it does.

use core::fmt::{self, Write};
use serde::{Deserialize, Serialize};

/// Most characters that are shown of one text.
const MAX_SHOWN_CHARS: usize = 512;

/// Text of somebody else's. `Display` escapes what could act on a terminal, begin another line or reorder the line, and
/// ends after 512 characters.
///
/// On the wire and in JSON it is the text itself: a program compares it byte for byte.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Untrusted<T>(T);

impl<T: AsRef<str>> Untrusted<T> {
    /// Takes text as it came.
    pub const fn new(text: T) -> Self {
        Self(text)
    }

    /// Returns the text as it came: to compare it, to parse it, to name a file by it. Not for a terminal or a log.
    pub fn raw(&self) -> &str {
        self.0.as_ref()
    }
}

impl<T: AsRef<str>> fmt::Display for Untrusted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.raw();
        let end = text.char_indices().nth(MAX_SHOWN_CHARS).map(|(end, _)| end);
        for char in text[..end.unwrap_or(text.len())].chars() {
            if is_harmless(char) { f.write_char(char)? } else { write!(f, "{}", char.escape_unicode())? }
        }
        if end.is_some() { f.write_str("...") } else { Ok(()) }
    }
}

impl<T: AsRef<str>> fmt::Debug for Untrusted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Tells whether a character only ever shows itself.
///
/// Not so: the controls (C0, DEL, C1), the line and paragraph separators, and what Unicode calls format characters: those
/// that reorder a line (bidirectional marks, overrides, isolates), join or hide (zero width, soft hyphen, tags).
pub fn is_harmless(char: char) -> bool {
    let is_format = matches!(char,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !char.is_control() && !is_format
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::{String, ToString};

    fn shown(text: &str) -> String {
        Untrusted::new(text).to_string()
    }

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_can_be_seen() {
        assert_eq!(shown("bad\x1b[2J"), "bad\\u{1b}[2J");
        assert_eq!(shown("a\r\nd7: exchanged"), "a\\u{d}\\u{a}d7: exchanged");
        assert_eq!(shown("\u{9b}2J\u{7f}\0"), "\\u{9b}2J\\u{7f}\\u{0}");
    }

    #[test]
    fn what_ends_or_reorders_a_line_is_escaped() {
        for char in ['\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{200f}', '\u{feff}'] {
            assert!(!is_harmless(char), "{char:?}");
        }
        assert_eq!(shown("db\u{202e}gnp"), "db\\u{202e}gnp");
    }

    #[test]
    fn letters_of_all_languages_stay() {
        assert_eq!(shown("My VM (1) é ж 名 🐧"), "My VM (1) é ж 名 🐧");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(shown(&"ä".repeat(MAX_SHOWN_CHARS)), "ä".repeat(MAX_SHOWN_CHARS));
        assert_eq!(shown(&"ä".repeat(5000)), "ä".repeat(MAX_SHOWN_CHARS) + "...");
    }

    #[test]
    fn debug_is_as_harmless_as_display() {
        assert_eq!(std::format!("{:?}", Some(Untrusted::new("a\nb"))), "Some(\"a\\u{a}b\")");
    }

    #[test]
    fn on_the_wire_it_is_the_text() {
        let (mut a, mut b) = ([0; 16], [0; 16]);
        let typed = postcard::to_slice(&Untrusted::new("a\nb"), &mut a).unwrap();
        assert_eq!(typed, postcard::to_slice("a\nb", &mut b).unwrap());
        assert_eq!(postcard::from_bytes::<Untrusted<&str>>(typed).unwrap().raw(), "a\nb");
    }
}
