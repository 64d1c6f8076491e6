//! Exceptions: all fatal but one, the page fault of a [probe](probe_load).
#![allow(unsafe_code, reason = "exception entry points and the one load that may fault")]

use core::arch::{global_asm, naked_asm};

use spin::Once;

use crate::hypercall::trap::set_trap_table;
use crate::shared_mem::SharedMem;
use xen_abi::abi::{FLAT_RING3_CS64, TrapInfo, VcpuInfo};
use xen_abi::errno::Errno;

/// Where a page fault's address is found (`vcpu_info[0].arch.cr2`); a panic must reach it.
static SHARED_INFO: Once<&'static SharedMem> = Once::new();

const PAGE_FAULT: u8 = 14;

/// Vectors for which Xen pushes an error code.
const WITH_ERROR_CODE: [u8; 7] = [8, 10, 11, 12, 13, PAGE_FAULT, 17];

macro_rules! fatal_entries {
    ($($name:ident = $vector:literal),* $(,)?) => {
        $(
            #[unsafe(naked)]
            extern "C" fn $name() {
                naked_asm!(
                    "mov edi, {vector}",
                    "mov rsi, rsp",
                    "and rsp, -16",
                    "call {fatal}",
                    "ud2",
                    vector = const $vector,
                    fatal = sym fatal,
                )
            }
        )*

        fn table() -> [TrapInfo; NR_TRAPS + 1] {
            let entries = [$(entry($vector, $name)),*, entry(PAGE_FAULT, xen_front_page_fault)];
            let mut table = [TrapInfo::default(); NR_TRAPS + 1];
            for (slot, entry) in table.iter_mut().zip(entries) {
                *slot = entry;
            }
            table
        }

        /// Entries of the trap table, without the one that ends it.
        const NR_TRAPS: usize = [$($vector),*, PAGE_FAULT].len();
    };
}

fatal_entries! {
    divide_error = 0,
    debug = 1,
    int3 = 3,
    overflow = 4,
    bounds = 5,
    invalid_op = 6,
    device_not_available = 7,
    invalid_tss = 10,
    segment_not_present = 11,
    stack_segment = 12,
    general_protection = 13,
    coprocessor_error = 16,
    alignment_check = 17,
    machine_check = 18,
    simd_error = 19,
}

fn entry(vector: u8, handler: unsafe extern "C" fn()) -> TrapInfo {
    // Privilege 3 for all: the kernel itself runs in ring 3, and there is no user mode to keep out.
    TrapInfo { vector, flags: 3, cs: FLAT_RING3_CS64, address: handler as usize as u64 }
}

// Xen's frame: rcx, r11, error code, rip, cs, rflags, rsp, ss. A fault at the probe's load goes on behind it. `iretq`
// stays in ring 3 once the RPL that Xen cleared is back; no upcall can come in between, they are masked for life.
global_asm!(
    ".pushsection .text.xen_front_traps, \"ax\", @progbits",
    ".globl xen_front_page_fault",
    "xen_front_page_fault:",
    "lea rcx, [rip + 2f]",
    "cmp rcx, [rsp + 24]",
    "jne 4f",
    "lea rcx, [rip + 3f]",
    "mov [rsp + 24], rcx",
    "or dword ptr [rsp + 32], 3",
    "or dword ptr [rsp + 56], 3",
    "pop rcx",
    "pop r11",
    "add rsp, 8",
    "iretq",
    "4:",
    "mov edi, {page_fault}",
    "mov rsi, rsp",
    "and rsp, -16",
    "call {fatal}",
    "ud2",
    ".globl xen_front_probe_load",
    "xen_front_probe_load:",
    "xor eax, eax",
    "2: mov rdx, [rdi]",
    "mov [rsi], rdx",
    "inc eax",
    "3: ret",
    ".popsection",
    page_fault = const PAGE_FAULT,
    fatal = sym fatal,
);

unsafe extern "C" {
    fn xen_front_page_fault();
    fn xen_front_probe_load(address: usize, value: *mut u64) -> u32;
}

/// Loads a word that may not be mapped: `None` where the load faults.
pub(crate) fn probe_load(address: usize) -> Option<u64> {
    let mut value = 0;
    // SAFETY: a fault at the load of `address` is resumed behind it by xen_front_page_fault; where nothing faults, any
    // bits are a value; `value` is writable.
    let done = unsafe { xen_front_probe_load(address, &mut value) };
    (done == 1).then_some(value)
}

/// Sets the handlers.
pub(crate) fn install() -> Result<(), Errno> {
    // SAFETY: each handler takes the frame of its vector and never returns, but for the page fault of a probe, which
    // it resumes as the code above says.
    unsafe { set_trap_table(&table()) }
}

/// Says where page fault addresses are found from now on.
pub(crate) fn set_shared_info(shared_info: &'static SharedMem) {
    SHARED_INFO.call_once(|| shared_info);
}

extern "C" fn fatal(vector: u8, frame: *const u64) -> ! {
    let word = |index: usize| {
        // SAFETY: Xen has pushed at least seven words there, on our stack, which nobody has popped.
        unsafe { frame.wrapping_add(index).read() }
    };
    let has_code = WITH_ERROR_CODE.contains(&vector);
    let code = if has_code { word(2) } else { 0 };
    let rip = word(2 + usize::from(has_code));
    let rsp = word(5 + usize::from(has_code));
    let cr2 = SHARED_INFO.get().map_or(0, |page| page.read::<u64>(core::mem::offset_of!(VcpuInfo, cr2)));
    panic!("exception {vector}, error code {code:#x}, rip {rip:#x}, rsp {rsp:#x}, cr2 {cr2:#x}");
}
