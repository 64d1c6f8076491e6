//! System time: nanoseconds since Xen booted, from the shared time record and the TSC (`struct vcpu_time_info`).
#![allow(unsafe_code, reason = "reads the time-stamp counter")]

use core::mem::offset_of;

use crate::shared_mem::SharedMem;
use xen_abi::abi::{SharedInfo, VcpuInfo, VcpuTimeInfo};

const TIME: usize = offset_of!(SharedInfo, vcpu_info) + offset_of!(VcpuInfo, time);

/// Reads system time. Copies are the same clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(&'static SharedMem);

impl Clock {
    pub(crate) const fn new(shared_info: &'static SharedMem) -> Self {
        Self(shared_info)
    }

    /// Returns system time in nanoseconds: the time base of [`sched::poll`](crate::hypercall::sched::poll).
    pub fn now_ns(&self) -> u64 {
        loop {
            let time = self.read();
            // SAFETY: every x86-64 processor has the instruction, and Xen lets PV guests use it.
            let tsc = unsafe { core::arch::x86_64::_rdtsc() };
            if self.is_still(&time) {
                return system_time(&time, tsc);
            }
        }
    }

    /// Tells whether the record was whole when it was read and has not changed since.
    fn is_still(&self, time: &VcpuTimeInfo) -> bool {
        time.version & 1 == 0 && self.0.read::<u32>(TIME + offset_of!(VcpuTimeInfo, version)) == time.version
    }

    /// Returns the seconds and nanoseconds of Xen's boot since the Unix epoch.
    pub fn wall_clock_base(&self) -> (u64, u32) {
        loop {
            let version = self.0.read::<u32>(offset_of!(SharedInfo, wc_version));
            let low = self.0.read::<u32>(offset_of!(SharedInfo, wc_sec));
            let nanos = self.0.read::<u32>(offset_of!(SharedInfo, wc_nsec));
            let high = self.0.read::<u32>(offset_of!(SharedInfo, wc_sec_hi));
            if version & 1 == 0 && self.0.read::<u32>(offset_of!(SharedInfo, wc_version)) == version {
                return (u64::from(high) << 32 | u64::from(low), nanos);
            }
        }
    }

    /// Reads the record, the version before all else: [`Clock::now_ns`] reads the version again behind it.
    fn read(&self) -> VcpuTimeInfo {
        let version = self.0.read::<u32>(TIME + offset_of!(VcpuTimeInfo, version));
        let tsc_timestamp = self.0.read::<u64>(TIME + offset_of!(VcpuTimeInfo, tsc_timestamp));
        let system_time = self.0.read::<u64>(TIME + offset_of!(VcpuTimeInfo, system_time));
        let tsc_to_system_mul = self.0.read::<u32>(TIME + offset_of!(VcpuTimeInfo, tsc_to_system_mul));
        let [tsc_shift] = self.0.read::<[u8; 1]>(TIME + offset_of!(VcpuTimeInfo, tsc_shift));
        VcpuTimeInfo {
            version,
            tsc_timestamp,
            system_time,
            tsc_to_system_mul,
            tsc_shift: tsc_shift.cast_signed(),
            ..VcpuTimeInfo::default()
        }
    }
}

/// The header's formula: `system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32`.
fn system_time(time: &VcpuTimeInfo, tsc: u64) -> u64 {
    // A domain's emulated counter starts at 0 when it is created, so the timestamp of a record that is older than the
    // domain is negative: the difference wraps. A counter that is behind its timestamp stands still until it is not.
    let ticks = u64::try_from(tsc.wrapping_sub(time.tsc_timestamp).cast_signed()).unwrap_or(0);
    let shift = u32::from(time.tsc_shift.unsigned_abs());
    let scaled = if time.tsc_shift < 0 {
        ticks.checked_shr(shift).unwrap_or(0)
    } else {
        ticks.checked_shl(shift).unwrap_or(u64::MAX)
    };
    let elapsed = (u128::from(scaled) * u128::from(time.tsc_to_system_mul)) >> 32;
    time.system_time.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_mem::testing::{pages, view};
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::boxed::Box;

    const HALF: u32 = 1 << 31;

    #[test]
    fn ticks_are_scaled_by_shift_and_fraction() {
        let time = VcpuTimeInfo {
            tsc_timestamp: 1000,
            system_time: 5,
            tsc_to_system_mul: HALF,
            tsc_shift: 2,
            ..VcpuTimeInfo::default()
        };
        assert_eq!(system_time(&time, 1300), 5 + 300 * 4 / 2);
        assert_eq!(system_time(&VcpuTimeInfo { tsc_shift: -1, ..time }, 1300), 5 + 300 / 2 / 2);
    }

    #[test]
    fn a_record_may_be_older_than_the_domain_and_its_counter() {
        let time = VcpuTimeInfo {
            tsc_timestamp: 0xffff_ffff_a08e_e575,
            system_time: 28_316_511_303,
            tsc_to_system_mul: 0xc537_a1a0,
            tsc_shift: -1,
            ..VcpuTimeInfo::default()
        };
        // Read on Xen 4.17 a second before the next record, whose system time was 29,332,426,397.
        assert_eq!(system_time(&time, 0x3dc3_03a2), 29_332_426_396);
    }

    #[test]
    fn a_counter_behind_its_timestamp_is_no_time_ago() {
        let time = VcpuTimeInfo { tsc_timestamp: 1000, system_time: 5, ..VcpuTimeInfo::default() };
        assert_eq!(system_time(&time, 10), 5);
    }

    /// Another thread is Xen and writes two records in turns, in which no tick counts and shift equals time.
    #[test]
    fn a_record_that_changes_meanwhile_is_read_again() {
        const NR_READS: u32 = 200_000;
        let base = pages(1);
        let (mut xen, clock) = (view(base, 1), Clock::new(Box::leak(Box::new(view(base, 1)))));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for version in (2..u32::MAX).step_by(2) {
                    let shift = u8::from(version % 4 == 0);
                    xen.write(TIME + offset_of!(VcpuTimeInfo, version), version - 1);
                    xen.write(TIME + offset_of!(VcpuTimeInfo, tsc_shift), [shift]);
                    xen.write(TIME + offset_of!(VcpuTimeInfo, system_time), u64::from(shift));
                    xen.write(TIME + offset_of!(VcpuTimeInfo, version), version);
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let is_torn = |time: &VcpuTimeInfo| {
                clock.is_still(time) && time.system_time != u64::from(time.tsc_shift.unsigned_abs())
            };
            let nr_torn = (0..NR_READS).filter(|_| is_torn(&clock.read())).count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(nr_torn, 0);
        });
    }
}
