//! What the domain builder says at start (`struct start_info`), validated.

use core::fmt;

use xen_abi::abi;
use xen_abi::types::{Mfn, PAGE_SIZE, Port};

/// A ring page that dom0's daemons share with us, and its event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The page.
    pub mfn: Mfn,
    /// Our end of the event channel.
    pub port: Port,
}

/// The start information of a PV domain.
#[derive(Clone)]
pub struct StartInfo {
    /// Pages that the domain owns.
    pub nr_pages: usize,
    /// Machine address of `shared_info`.
    pub shared_info: Mfn,
    /// The xenstore ring.
    pub store: Ring,
    /// The console ring.
    pub console: Ring,
    /// Virtual address of the top page table.
    pub pt_base: usize,
    /// Pages of the initial page tables, side by side from `pt_base`.
    pub nr_pt_frames: usize,
    /// Virtual address of the p2m list: one machine frame number a page.
    pub mfn_list: usize,
    cmd_line: [u8; abi::MAX_GUEST_CMDLINE],
}

/// What is wrong with a start information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not `xen-3.0-x86_64`.
    Magic,
    /// A number that no 64-bit domain has.
    Range(u64),
}

impl StartInfo {
    /// Checks `raw`; what dom0's builder wrote is believed beyond that.
    pub fn parse(raw: &abi::StartInfo) -> Result<Self, Error> {
        if !raw.magic.starts_with(b"xen-3.0-x86_64\0") {
            return Err(Error::Magic);
        }
        if raw.nr_pages == 0 || raw.nr_pages >= 1 << 34 {
            return Err(Error::Range(raw.nr_pages));
        }
        Ok(Self {
            nr_pages: to_usize(raw.nr_pages)?,
            shared_info: Mfn::new(raw.shared_info / PAGE_SIZE as u64),
            store: Ring { mfn: Mfn::new(raw.store_mfn), port: Port::new(raw.store_evtchn) },
            console: Ring { mfn: Mfn::new(raw.console_mfn), port: Port::new(raw.console_evtchn) },
            pt_base: to_usize(raw.pt_base)?,
            nr_pt_frames: to_usize(raw.nr_pt_frames)?,
            mfn_list: to_usize(raw.mfn_list)?,
            cmd_line: raw.cmd_line,
        })
    }

    /// Returns the kernel's command line (`extra=` of the xl config); what is not UTF-8 is cut.
    pub fn cmd_line(&self) -> &str {
        let end = self.cmd_line.iter().position(|&byte| byte == 0).unwrap_or(self.cmd_line.len());
        let (line, _) = self.cmd_line.split_at(end);
        match core::str::from_utf8(line) {
            Ok(text) => text,
            Err(err) => core::str::from_utf8(line.split_at(err.valid_up_to()).0).unwrap_or_default(),
        }
    }
}

fn to_usize(raw: u64) -> Result<usize, Error> {
    usize::try_from(raw).map_err(|_| Error::Range(raw))
}

impl fmt::Debug for StartInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartInfo")
            .field("nr_pages", &self.nr_pages)
            .field("store", &self.store)
            .field("console", &self.console)
            .field("cmd_line", &self.cmd_line())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> abi::StartInfo {
        let mut magic = [0; 32];
        magic[..15].copy_from_slice(b"xen-3.0-x86_64\0");
        abi::StartInfo {
            magic,
            nr_pages: 4096,
            shared_info: 0x1234_5000,
            flags: 0,
            store_mfn: 7,
            store_evtchn: 1,
            console_mfn: 8,
            console_evtchn: 2,
            pt_base: 0x4010_0000,
            nr_pt_frames: 5,
            mfn_list: 0x400f_0000,
            mod_start: 0,
            mod_len: 0,
            cmd_line: [0; abi::MAX_GUEST_CMDLINE],
            first_p2m_pfn: 0,
            nr_p2m_frames: 0,
        }
    }

    #[test]
    fn the_fields_are_typed() {
        let info = StartInfo::parse(&raw()).unwrap();
        assert_eq!(info.shared_info, Mfn::new(0x12345));
        assert_eq!(info.store, Ring { mfn: Mfn::new(7), port: Port::new(1) });
    }

    #[test]
    fn another_magic_or_no_memory_is_refused() {
        let mut other = raw();
        other.magic[0] = b'X';
        assert_eq!(StartInfo::parse(&other).err(), Some(Error::Magic));
        let empty = abi::StartInfo { nr_pages: 0, ..raw() };
        assert_eq!(StartInfo::parse(&empty).err(), Some(Error::Range(0)));
    }

    #[test]
    fn a_command_line_ends_at_its_nul_or_where_it_stops_being_text() {
        let mut raw = raw();
        raw.cmd_line[..9].copy_from_slice(b"ip=1 x\0zz");
        assert_eq!(StartInfo::parse(&raw).unwrap().cmd_line(), "ip=1 x");
        raw.cmd_line[3] = 0xff;
        assert_eq!(StartInfo::parse(&raw).unwrap().cmd_line(), "ip=");
        raw.cmd_line = [b'a'; abi::MAX_GUEST_CMDLINE];
        assert_eq!(StartInfo::parse(&raw).unwrap().cmd_line().len(), abi::MAX_GUEST_CMDLINE);
    }
}
