//! Runs in dom0: counts the hypercalls that PV domains make while a command runs, as Xen traces them.
//!
//! `nest-hypercalls COMMAND...` prints one JSON object on standard output, domain to kind to count; the command's own
//! output goes to standard error. It ends with the command's exit code, or 125 when the count is not complete.
//!
//! A call inside a multicall counts by its own kind (libxc makes each `memory_op` that way), and so does the multicall. The
//! trace does not tell the sub-operations of `memory_op` apart. What dom0's kernel calls to change between its own tasks
//! (`iret`, `stack_switch`, ...) is left out. `page_table_trap` is no hypercall: it counts writes to page tables that fault
//! and that Xen then makes itself. The layout of the trace is that of `public/trace.h`.

use serde_json::json;
use std::collections::BTreeMap;
use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Where the trace goes; it is read and removed at once.
const TRACE: &str = "/run/nest-hypercalls.trace";

/// Trace pages for each CPU: 16 MiB, several times what a restore of 1 GiB fills before xentrace has read it.
const BUFFER_PAGES: &str = "4096";

/// `TRC_PV_ENTRY`, `TRC_PV_SUBCALL`, and `TRC_SCHED_MIN`, which tells who runs.
const MASK: &str = "0x00223000";

/// `TRC_LOST_RECORDS`.
const LOST_RECORDS: u32 = 0x0001_f001;
/// `TRC_TRACE_CPU_CHANGE`: the records that follow are another CPU's.
const CPU_CHANGE: u32 = 0x0001_f003;
/// `TRC_PV_HYPERCALL_V2`.
const HYPERCALL: u32 = 0x0020_100d;
/// `TRC_PV_HYPERCALL_SUBCALL`.
const SUBCALL: u32 = 0x0020_200e;
/// `TRC_PV_PTWR_EMULATION`, from a 64-bit kernel (`TRC_64_FLAG`).
const PTWR_EMULATION: u32 = 0x0020_110b;
/// `TRC_SCHED_RUNSTATE_CHANGE`; the old state stands in bits 8 to 11, the new one in bits 4 to 7.
const RUNSTATE_CHANGE: u32 = 0x0002_1001;
/// The bits of the two states.
const STATES: u32 = 0xff0;
/// `RUNSTATE_running`.
const RUNNING: u32 = 0;

/// The kinds worth counting: numbers of `public/xen.h`, names of the stub's own report.
const KINDS: &[(u32, &str)] = &[
    (1, "mmu_update"),
    (12, "memory_op"),
    (13, "multicall"),
    (14, "mmuext_op"), // update_va_mapping
    (20, "grant_table_op"),
    (26, "mmuext_op"),
    (29, "sched_op"),
    (32, "event_channel_op"),
    (34, "hvm_op"),
    (36, "domctl"),
    (41, "hvm_op"), // dm_op
];

/// What one domain did.
type Counts = BTreeMap<&'static str, u64>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match count(&words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("nest-hypercalls: {error}");
            ExitCode::from(125)
        }
    }
}

fn count(words: &[String]) -> io::Result<u8> {
    let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let mut tracer = Command::new("xentrace");
    tracer.args(["-D", "-e", MASK, "-S", BUFFER_PAGES, TRACE]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut tracer = tracer.spawn()?;
    sleep(Duration::from_secs(1)); // until it has set its buffers up
    let status = Command::new(program).args(arguments).stdout(io::stderr()).status()?;
    sleep(Duration::from_secs(1)); // it reads the buffers ten times a second
    let stopped = Command::new("kill").args(["-INT", &tracer.id().to_string()]).status()?;
    tracer.wait()?;
    let trace = std::fs::read(TRACE)?;
    std::fs::remove_file(TRACE)?;
    if !stopped.success() {
        return Err(io::Error::other("xentrace ended before the command"));
    }
    println!("{}", json!(Tally::of(&trace)?));
    Ok(u8::try_from(status.code().unwrap_or(126)).unwrap_or(126))
}

/// The reading of a trace.
#[derive(Default)]
struct Tally {
    /// Whose records come now.
    cpu: u32,
    /// Who runs on each CPU.
    running: BTreeMap<u32, u32>,
    /// What a CPU did before the trace tells who runs there.
    unowned: BTreeMap<u32, Counts>,
    by_domain: BTreeMap<u32, Counts>,
}

impl Tally {
    /// Counts by domain and kind.
    ///
    /// # Errors
    /// Xen had to drop records, or the trace never tells whose some are.
    fn of(trace: &[u8]) -> io::Result<BTreeMap<u32, Counts>> {
        let mut tally = Self::default();
        let mut words =
            trace.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()));
        while let Some(head) = words.next() {
            let (event, nr_extra, has_cycles) = (head & 0x0fff_ffff, head >> 28 & 7, head >> 31);
            let record: Vec<u32> = words.by_ref().take((2 * has_cycles + nr_extra) as usize).collect();
            tally.take(event, record.get(2 * has_cycles as usize..).unwrap_or_default())?;
        }
        if tally.unowned.values().all(BTreeMap::is_empty) {
            Ok(tally.by_domain)
        } else {
            Err(io::Error::other("the trace does not tell who runs"))
        }
    }

    fn take(&mut self, event: u32, data: &[u32]) -> io::Result<()> {
        match (event, data) {
            (LOST_RECORDS, _) => return Err(io::Error::other("Xen dropped records of its trace")),
            (CPU_CHANGE, [cpu, ..]) => self.cpu = *cpu,
            (HYPERCALL | SUBCALL, [call, ..]) => {
                let number = call & 0x000f_ffff;
                let kinds = KINDS.iter().filter(|(known, _)| *known == number);
                kinds.for_each(|(_, name)| self.note(name));
            }
            (PTWR_EMULATION, _) => self.note("page_table_trap"),
            (_, [vcpu, ..]) if event & !STATES == RUNSTATE_CHANGE => self.change(event, vcpu >> 16),
            _ => {}
        }
        Ok(())
    }

    fn note(&mut self, kind: &'static str) {
        let counts = match self.running.get(&self.cpu) {
            Some(domain) => self.by_domain.entry(*domain).or_default(),
            None => self.unowned.entry(self.cpu).or_default(),
        };
        *counts.entry(kind).or_insert(0) += 1;
    }

    /// Follows who runs; the first who stops on a CPU is the one who did what came before.
    fn change(&mut self, event: u32, domain: u32) {
        let (old, new) = (event >> 8 & 0xf, event >> 4 & 0xf);
        if old == RUNNING
            && let Some(unowned) = self.unowned.remove(&self.cpu)
        {
            let counts = self.by_domain.entry(domain).or_default();
            unowned.into_iter().for_each(|(kind, nr)| *counts.entry(kind).or_insert(0) += nr);
        }
        if new == RUNNING {
            self.running.insert(self.cpu, domain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CYCLES: u32 = 1 << 31;
    const ONE: u32 = 1 << 28;
    const STOPS: u32 = ONE | RUNSTATE_CHANGE | 1 << 4;
    const STARTS: u32 = ONE | RUNSTATE_CHANGE | 1 << 8;
    const MEMORY_OP: u32 = 12;

    fn tally(words: &[u32]) -> io::Result<String> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Tally::of(&bytes).map(|counts| json!(counts).to_string())
    }

    #[test]
    fn calls_are_counted_by_domain_and_kind_with_and_without_time_stamps() {
        let trace = [
            [CYCLES | 2 << 28 | HYPERCALL, 7, 8, MEMORY_OP, 99].as_slice(),
            &[ONE | HYPERCALL, 0x0010_0001], // mmu_update, with the mark of an argument
            &[ONE | HYPERCALL, 23],          // iret: not worth counting
            &[ONE | 0x0020_1003, MEMORY_OP], // a trap
            &[STOPS, 0, STARTS, 5 << 16 | 1],
            &[ONE | SUBCALL, MEMORY_OP, PTWR_EMULATION],
            &[2 << 28 | CPU_CHANGE, 1, 64, STARTS, 0, ONE | HYPERCALL, MEMORY_OP],
        ];
        let expected = r#"{"0":{"memory_op":2,"mmu_update":1},"5":{"memory_op":1,"page_table_trap":1}}"#;
        assert_eq!(tally(&trace.concat()).unwrap(), expected);
    }

    #[test]
    fn calls_of_nobody_are_no_count() {
        assert!(tally(&[ONE | HYPERCALL, MEMORY_OP]).is_err());
    }

    #[test]
    fn a_trace_with_lost_records_is_no_count() {
        assert!(tally(&[CYCLES | 3 << 28 | LOST_RECORDS, 0, 0, 1, 2, 3]).is_err());
    }
}
