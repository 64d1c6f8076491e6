//! Pages that must stay where they are, of which only dom0 knows.
//!
//! **Takes** a guest. **Gives** runs of pages and their roles. **Never** more of them than a stub takes.

use crate::error::Error;
use crate::host::{Host, home};
use crate::qmp::Qmp;
use control::exchange::{Reserved, Role};
use xen_abi::types::{Domid, Gfn};

/// libxc's special pages, which HVM parameters name (`xg_dom_x86.c`).
const SPECIAL_PAGES: u64 = 0xfeff0;

/// Where low memory ends unless a guest's config says otherwise (`HVM_BELOW_4G_RAM_END`).
const LOW_END: u64 = 0xf0000;

/// Pages that must stay: Xen's shared information, and what the device model may have mapped for good.
pub(super) fn of(host: &Host, guest: Domid) -> Result<Vec<Reserved>, Error> {
    let mut reserved = Vec::new();
    if let Some(info) = host.xen.domain_info(guest)? {
        reserved.push(Reserved {
            first: Gfn::new(info.shared_info.raw()),
            nr_frames: 1,
            role: Role::XenHeap,
        });
    }
    // libxl notes the kind (`libxl_create.c`).
    let kind = host.store.read(&format!("/libxl/{}/type", guest.raw()))?;
    if has_machine(Qmp::socket(guest).exists(), kind.as_ref().map(|kind| kind.raw())) {
        let kib = |node| host.store.read_number::<u64>(&home(guest, node));
        let ram = kib("memory/static-max")?.unwrap_or_default();
        let video = kib("memory/videoram")?.unwrap_or_default();
        reserved.extend(beyond_ram(ram.saturating_sub(video) / 4, low_end(host, guest)?));
    }
    Ok(reserved)
}

/// Tells whether a device model has a machine for a guest of this kind, with video memory and ROMs. A PVH guest's serves disks
/// alone, and the guest has RAM where others have their hole for devices.
fn has_machine(has_device_model: bool, kind: Option<&str>) -> bool {
    has_device_model && kind != Some("pvh")
}

/// Where the guest's low memory ends at most: the device model is told of a hole other than usual (`mmio_hole=`).
fn low_end(host: &Host, guest: Domid) -> Result<u64, Error> {
    let pid = host.store.read_number::<u32>(&home(guest, "image/device-model-pid"))?;
    let line = pid.map(|pid| std::fs::read(format!("/proc/{pid}/cmdline"))).transpose()?;
    Ok(line.and_then(|line| max_ram_below_4g(&line)).map_or(LOW_END, |bytes| bytes >> 12))
}

/// The value of QEMU's machine property of that name.
fn max_ram_below_4g(command_line: &[u8]) -> Option<u64> {
    let settings = command_line.split(|byte| [0, b','].contains(byte));
    let mut values = settings.filter_map(|setting| setting.strip_prefix(b"max-ram-below-4g="));
    std::str::from_utf8(values.next()?).ok()?.parse().ok()
}

/// Where a device model keeps its video memory and ROMs: every frame beyond the guest's RAM, which ends below the hole for
/// devices and goes on at 4 GiB. The special pages have names of their own.
fn beyond_ram(nr_ram_pages: u64, hole: u64) -> [Reserved; 2] {
    const ABOVE: u64 = 0x10_0000;
    let low_end = nr_ram_pages.min(hole).min(SPECIAL_PAGES);
    let high_end = ABOVE + nr_ram_pages.saturating_sub(hole);
    let run = |first, end: u64| Reserved {
        first: Gfn::new(first),
        nr_frames: end - first,
        role: Role::DeviceModel,
    };
    [run(low_end, SPECIAL_PAGES), run(high_end, 1 << 36)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_has_nothing_of_its_own_past_its_ram() {
        let [low, high] = beyond_ram(0x10000, LOW_END);
        assert_eq!((low.first, low.nr_frames), (Gfn::new(0x10000), 0xfeff0 - 0x10000));
        assert_eq!(high.first, Gfn::new(0x10_0000));
    }

    #[test]
    fn a_large_guests_ram_goes_on_at_4_gib() {
        let [low, high] = beyond_ram(0xf0000 + 0x500, LOW_END);
        assert_eq!(low.first, Gfn::new(0xf0000));
        assert_eq!(high.first, Gfn::new(0x10_0500));
        let [low, high] = beyond_ram(0xc0000 + 0x500, 0xc0000);
        assert_eq!((low.first, high.first), (Gfn::new(0xc0000), Gfn::new(0x10_0500)));
    }

    #[test]
    fn a_device_model_that_serves_disks_alone_keeps_no_memory_of_its_own() {
        assert!(!has_machine(true, Some("pvh")));
        assert!(has_machine(true, Some("hvm")) && has_machine(true, None));
        assert!(!has_machine(false, Some("hvm")));
    }

    #[test]
    fn a_device_model_says_where_low_memory_ends() {
        let line = b"qemu\0-machine\0xenfv,suppress-vmdesc=on,max-ram-below-4g=3221225472\0-m\x004096\0";
        assert_eq!(max_ram_below_4g(line), Some(0xc000_0000));
        assert_eq!(max_ram_below_4g(b"qemu\0-machine\0xenfv\0"), None);
    }
}
