//! A line that reports errors of a page: `[page|address] 0xNUMBER [COUNT]`.
//!
//! **Takes** a line. **Gives** the frame and how many errors are new. **Never** takes a frame number for an address: a number
//! without a word before it is an address, as memory controllers and mcelog report it.

use xen_abi::types::{Mfn, PAGE_SHIFT};

/// Errors of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) mfn: Mfn,
    /// At least 1.
    pub(super) errors: u64,
}

impl Report {
    /// Errors at a physical address; a count of 0 is one that the reporter left out.
    ///
    /// # Errors
    /// The address is 0, which stands for one that is not known.
    pub(super) fn at_address(address: u64, errors: u64) -> Result<Self, &'static str> {
        match address {
            0 => Err("an address other than 0, which stands for one that is not known"),
            _ => Ok(Self { mfn: Mfn::new(address >> PAGE_SHIFT), errors: errors.max(1) }),
        }
    }

    /// Reads a line; `None` when there is nothing on it.
    ///
    /// # Errors
    /// What should stand there.
    pub(super) fn parse(line: &str) -> Result<Option<Self>, &'static str> {
        const EXPECTED: &str = "\"[page|address] 0xNUMBER [COUNT]\"";
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace().peekable();
        let Some(&first) = words.peek() else { return Ok(None) };
        let is_page = first == "page";
        if is_page || first == "address" {
            words.next();
        }
        let digits = words.next().and_then(|word| word.strip_prefix("0x")).ok_or(EXPECTED)?;
        let number = u64::from_str_radix(digits, 16).map_err(|_| EXPECTED)?;
        let errors = words.next().map_or(Ok(1), str::parse).map_err(|_| EXPECTED)?;
        if words.next().is_some() {
            return Err(EXPECTED);
        }
        let address = if is_page { number.checked_mul(1 << PAGE_SHIFT).ok_or(EXPECTED)? } else { number };
        Self::at_address(address, errors).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(errors: u64) -> Result<Option<Report>, &'static str> {
        Ok(Some(Report { mfn: Mfn::new(0x1234), errors }))
    }

    #[test]
    fn a_number_is_an_address_unless_it_is_called_a_page() {
        for line in ["0x1234abc", "address 0x1234000", "page 0x1234", " page  0x1234 1 # DIMM A1"] {
            assert_eq!(Report::parse(line), report(1), "{line}");
        }
        assert_eq!(Report::parse("page 0x1234 7"), report(7));
        assert_eq!(Report::parse("0x1234000 7"), report(7));
        assert_eq!(Report::parse("# nothing"), Ok(None));
    }

    #[test]
    fn a_count_of_0_is_one_error() {
        assert_eq!(Report::parse("0x1234000 0"), report(1));
    }

    #[test]
    fn what_names_no_page_is_refused() {
        for bad in [
            "1234000",
            "0xnonsense",
            "0x1234000 many",
            "0x1234000 1 2",
            "page",
            "frame 0x1234",
            "page 0xfffffffffffffff",
        ] {
            assert!(Report::parse(bad).is_err(), "{bad}");
        }
        for unknown in ["0x0", "0x0 5", "address 0x0", "page 0x0"] {
            assert!(Report::parse(unknown).unwrap_err().contains("not known"), "{unknown}");
        }
    }
}
