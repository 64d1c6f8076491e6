//! `xen.h` and the headers of the hypercalls: all of `crate::abi`.

use super::{Row, constants, layout};
use crate::abi::*;
use core::mem::offset_of;
use std::string::String;
use std::vec::Vec;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    constants(&mut rows);
    start(&mut rows);
    hypercalls(&mut rows);
    hvm(&mut rows);
    xenbus(&mut rows);
    rows
}

#[test]
fn every_item_of_the_abi_is_compared() {
    let (_, table) = include_str!("core.rs").split_once("\nfn constants").expect("the tables follow");
    let table = [table, include_str!("control.rs")].concat();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/abi")).expect("the sources");
    let read = |file: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(file?.path());
    let sources: Vec<String> = files.map(read).collect::<Result<_, _>>().expect("the sources");
    let mut missing: Vec<_> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.strip_prefix("pub const ").or(line.strip_prefix("pub struct ")))
        .filter_map(|rest| rest.split([':', ' ']).next())
        .filter(|name| !table.contains(name))
        .collect();
    // In no public header: a BIOS's structure (libxenctrl's header has it), a limit in Xen's scheduler (`do_poll`).
    missing.sort_unstable();
    assert_eq!(missing, ["E820Entry", "E820_RAM", "SCHEDOP_POLL_MAX_PORTS"]);
}

fn constants(rows: &mut Vec<Row>) {
    constants!(
        rows,
        "__HYPERVISOR_set_trap_table" = __HYPERVISOR_set_trap_table,
        "__HYPERVISOR_mmu_update" = __HYPERVISOR_mmu_update,
        "__HYPERVISOR_memory_op" = __HYPERVISOR_memory_op,
        "__HYPERVISOR_multicall" = __HYPERVISOR_multicall,
        "__HYPERVISOR_update_va_mapping" = __HYPERVISOR_update_va_mapping,
        "__HYPERVISOR_xen_version" = __HYPERVISOR_xen_version,
        "__HYPERVISOR_grant_table_op" = __HYPERVISOR_grant_table_op,
        "__HYPERVISOR_vcpu_op" = __HYPERVISOR_vcpu_op,
        "__HYPERVISOR_mmuext_op" = __HYPERVISOR_mmuext_op,
        "__HYPERVISOR_sched_op" = __HYPERVISOR_sched_op,
        "__HYPERVISOR_event_channel_op" = __HYPERVISOR_event_channel_op,
        "__HYPERVISOR_hvm_op" = __HYPERVISOR_hvm_op,
        "__HYPERVISOR_sysctl" = __HYPERVISOR_sysctl,
        "__HYPERVISOR_domctl" = __HYPERVISOR_domctl,
        "__HYPERVISOR_dm_op" = __HYPERVISOR_dm_op,
        "MMU_NORMAL_PT_UPDATE" = MMU_NORMAL_PT_UPDATE,
        "MMU_PT_UPDATE_NO_TRANSLATE" = MMU_PT_UPDATE_NO_TRANSLATE,
        "MMUEXT_PIN_L1_TABLE" = MMUEXT_PIN_L1_TABLE,
        "MMUEXT_UNPIN_TABLE" = MMUEXT_UNPIN_TABLE,
        "MMUEXT_TLB_FLUSH_LOCAL" = MMUEXT_TLB_FLUSH_LOCAL,
        "MMUEXT_PIN_L4_TABLE" = MMUEXT_PIN_L1_TABLE + 3,
        "UVMF_INVLPG" = UVMF_INVLPG,
        "DOMID_FIRST_RESERVED" = DOMID_FIRST_RESERVED,
        "DOMID_SELF" = DOMID_SELF,
        "DOMID_XEN" = DOMID_XEN,
        "sizeof(vcpu_guest_context_t)" = VCPU_GUEST_CONTEXT_BYTES,
        "offsetof(vcpu_guest_context_t, user_regs.rax)" = VCPU_GUEST_CONTEXT_RAX,
        "offsetof(vcpu_guest_context_t, user_regs.rdx)" = VCPU_GUEST_CONTEXT_RDX,
        "offsetof(vcpu_guest_context_t, gdt_frames)" = VCPU_GUEST_CONTEXT_GDT_FRAMES,
        "offsetof(vcpu_guest_context_t, gdt_ents)" = VCPU_GUEST_CONTEXT_GDT_ENTS,
        "offsetof(vcpu_guest_context_t, ctrlreg)" = VCPU_GUEST_CONTEXT_CTRLREG,
        "offsetof(struct vcpu_guest_context_x86_32, user_regs.eax)" = VCPU_GUEST_CONTEXT_X86_32_EAX,
        "MAX_GUEST_CMDLINE" = MAX_GUEST_CMDLINE,
        "XEN_LEGACY_MAX_VCPUS" = XEN_LEGACY_MAX_VCPUS,
        "EVTCHN_2L_NR_CHANNELS" = EVTCHN_2L_NR_CHANNELS,
        "FLAT_RING3_CS64" = FLAT_RING3_CS64,
        "MACH2PHYS_VIRT_START" = MACH2PHYS_VIRT_START,
        "XENMEM_decrease_reservation" = XENMEM_decrease_reservation,
        "XENMEM_maximum_ram_page" = XENMEM_maximum_ram_page,
        "XENMEM_machphys_mfn_list" = XENMEM_machphys_mfn_list,
        "XENMEM_machine_memory_map" = XENMEM_machine_memory_map,
        "XENMEM_exchange" = XENMEM_exchange,
        "XENMEM_current_reservation" = XENMEM_current_reservation,
        "XENMEM_maximum_reservation" = XENMEM_maximum_reservation,
        "XENMEM_populate_physmap" = XENMEM_populate_physmap,
        "XENMEM_add_to_physmap" = XENMEM_add_to_physmap,
        "XENMEM_machphys_mapping" = XENMEM_machphys_mapping,
        "XENMEM_maximum_gpfn" = XENMEM_maximum_gpfn,
        "XENMEM_remove_from_physmap" = XENMEM_remove_from_physmap,
        "XENMEM_get_pod_target" = XENMEM_get_pod_target,
        "XENMEM_acquire_resource" = XENMEM_acquire_resource,
        "XENMEM_resource_ioreq_server" = XENMEM_resource_ioreq_server,
        "XENMEM_resource_grant_table" = XENMEM_resource_grant_table,
        "XENMEM_resource_grant_table_id_shared" = XENMEM_resource_grant_table_id_shared,
        "XENMEM_resource_grant_table_id_status" = XENMEM_resource_grant_table_id_status,
        "XENMAPSPACE_gmfn" = XENMAPSPACE_gmfn,
        "EVTCHNOP_bind_interdomain" = EVTCHNOP_bind_interdomain,
        "EVTCHNOP_close" = EVTCHNOP_close,
        "EVTCHNOP_send" = EVTCHNOP_send,
        "EVTCHNOP_alloc_unbound" = EVTCHNOP_alloc_unbound,
        "GNTTABOP_setup_table" = GNTTABOP_setup_table,
        "GNTTABOP_query_size" = GNTTABOP_query_size,
        "GNTTABOP_get_version" = GNTTABOP_get_version,
        "GNTST_okay" = GNTST_okay,
        "GNTTAB_NR_RESERVED_ENTRIES" = GNTTAB_NR_RESERVED_ENTRIES,
        "GTF_type_mask" = GTF_type_mask,
        "GTF_permit_access" = GTF_permit_access,
        "GTF_readonly" = GTF_readonly,
        "GTF_reading" = GTF_reading,
        "GTF_writing" = GTF_writing,
        "sizeof(grant_entry_v1_t)" = GRANT_ENTRY_V1_BYTES,
        "sizeof(grant_entry_v2_t)" = GRANT_ENTRY_V2_BYTES,
        "offsetof(grant_entry_v1_t, frame)" = 4,
        "offsetof(grant_entry_v2_t, full_page.frame)" = 8,
        "SCHEDOP_yield" = SCHEDOP_yield,
        "SCHEDOP_shutdown" = SCHEDOP_shutdown,
        "SCHEDOP_poll" = SCHEDOP_poll,
        "SHUTDOWN_poweroff" = SHUTDOWN_poweroff,
        "SHUTDOWN_suspend" = SHUTDOWN_suspend,
        "SHUTDOWN_crash" = SHUTDOWN_crash,
        "VCPUOP_register_runstate_memory_area" = VCPUOP_register_runstate_memory_area,
        "VCPUOP_stop_periodic_timer" = VCPUOP_stop_periodic_timer,
        "RUNSTATE_running" = RUNSTATE_running,
        "XENVER_version" = XENVER_version,
        "XENVER_extraversion" = XENVER_extraversion,
        "sizeof(xen_extraversion_t)" = XEN_EXTRAVERSION_LEN,
        "HVMOP_set_param" = HVMOP_set_param,
        "HVMOP_get_param" = HVMOP_get_param,
        "HVMOP_get_mem_type" = HVMOP_get_mem_type,
        "HVM_PARAM_STORE_PFN" = HVM_PARAM_STORE_PFN,
        "HVM_PARAM_VIRIDIAN" = HVM_PARAM_VIRIDIAN,
        "HVM_PARAM_ACPI_IOPORTS_LOCATION" = HVM_PARAM_ACPI_IOPORTS_LOCATION,
        "HVM_PARAM_NR_IOREQ_SERVER_PAGES" = HVM_PARAM_NR_IOREQ_SERVER_PAGES,
        "HVM_PARAM_VM_GENERATION_ID_ADDR" = HVM_PARAM_VM_GENERATION_ID_ADDR,
        "HVM_PARAM_X87_FIP_WIDTH" = HVM_PARAM_X87_FIP_WIDTH,
        "HVM_PARAM_MCA_CAP" = HVM_PARAM_MCA_CAP,
        "HVM_PARAM_STORE_EVTCHN" = HVM_PARAM_STORE_EVTCHN,
        "HVM_PARAM_PAE_ENABLED" = HVM_PARAM_PAE_ENABLED,
        "HVM_PARAM_IOREQ_PFN" = HVM_PARAM_IOREQ_PFN,
        "HVM_PARAM_BUFIOREQ_PFN" = HVM_PARAM_BUFIOREQ_PFN,
        "HVM_PARAM_IDENT_PT" = HVM_PARAM_IDENT_PT,
        "HVM_PARAM_CONSOLE_PFN" = HVM_PARAM_CONSOLE_PFN,
        "HVM_PARAM_CONSOLE_EVTCHN" = HVM_PARAM_CONSOLE_EVTCHN,
        "HVM_PARAM_PAGING_RING_PFN" = HVM_PARAM_PAGING_RING_PFN,
        "HVM_PARAM_MONITOR_RING_PFN" = HVM_PARAM_MONITOR_RING_PFN,
        "HVM_PARAM_SHARING_RING_PFN" = HVM_PARAM_SHARING_RING_PFN,
        "HVM_PARAM_IOREQ_SERVER_PFN" = HVM_PARAM_IOREQ_SERVER_PFN,
        "HVM_PARAM_VM86_TSS_SIZED" = HVM_PARAM_VM86_TSS_SIZED,
        "HVMOP_altp2m" = HVMOP_altp2m,
        "HVMOP_ALTP2M_INTERFACE_VERSION" = HVMOP_ALTP2M_INTERFACE_VERSION,
        "HVMOP_altp2m_get_domain_state" = HVMOP_altp2m_get_domain_state,
        "HVMMEM_ram_rw" = HVMMEM_ram_rw,
        "HVMMEM_ram_ro" = HVMMEM_ram_ro,
        "HVMMEM_mmio_dm" = HVMMEM_mmio_dm,
        "HVMMEM_ioreq_server" = HVMMEM_ioreq_server,
        "XEN_DMOP_modified_memory" = XEN_DMOP_modified_memory,
        "XEN_DMOP_set_mem_type" = XEN_DMOP_set_mem_type,
        "sizeof(((struct xencons_interface *)0)->in)" = XENCONS_IN_BYTES,
        "sizeof(((struct xencons_interface *)0)->out)" = XENCONS_OUT_BYTES,
        "XENSTORE_RING_SIZE" = XENSTORE_RING_SIZE,
        "GNTTAB_RESERVED_CONSOLE" = GNTTAB_RESERVED_CONSOLE,
        "GNTTAB_RESERVED_XENSTORE" = GNTTAB_RESERVED_XENSTORE,
    );
}

fn start(rows: &mut Vec<Row>) {
    layout!(rows, "struct start_info" = StartInfo { "magic" = magic, "nr_pages" = nr_pages, "shared_info" = shared_info, "flags" = flags, "store_mfn" = store_mfn, "store_evtchn" = store_evtchn, "console.domU.mfn" = console_mfn, "console.domU.evtchn" = console_evtchn, "pt_base" = pt_base, "nr_pt_frames" = nr_pt_frames, "mfn_list" = mfn_list, "mod_start" = mod_start, "mod_len" = mod_len, "cmd_line" = cmd_line, "first_p2m_pfn" = first_p2m_pfn, "nr_p2m_frames" = nr_p2m_frames });
    layout!(rows, "struct vcpu_time_info" = VcpuTimeInfo { "version" = version, "tsc_timestamp" = tsc_timestamp, "system_time" = system_time, "tsc_to_system_mul" = tsc_to_system_mul, "tsc_shift" = tsc_shift, "flags" = flags });
    layout!(rows, "struct vcpu_info" = VcpuInfo { "evtchn_upcall_pending" = evtchn_upcall_pending, "evtchn_upcall_mask" = evtchn_upcall_mask, "evtchn_pending_sel" = evtchn_pending_sel, "arch.cr2" = cr2, "arch.pad" = pad, "time" = time });
    layout!(rows, "struct shared_info" = SharedInfo { "vcpu_info" = vcpu_info, "evtchn_pending" = evtchn_pending, "evtchn_mask" = evtchn_mask, "wc_version" = wc_version, "wc_sec" = wc_sec, "wc_nsec" = wc_nsec, "wc_sec_hi" = wc_sec_hi, "arch.max_pfn" = max_pfn, "arch.pfn_to_mfn_frame_list_list" = pfn_to_mfn_frame_list_list, "arch.nmi_reason" = nmi_reason, "arch.p2m_cr3" = p2m_cr3, "arch.p2m_vaddr" = p2m_vaddr, "arch.p2m_generation" = p2m_generation });
    layout!(rows, "struct trap_info" = TrapInfo { "vector" = vector, "flags" = flags, "cs" = cs, "address" = address });
}

fn hypercalls(rows: &mut Vec<Row>) {
    layout!(rows, "struct mmu_update" = MmuUpdate { "ptr" = ptr, "val" = val });
    layout!(rows, "struct multicall_entry" = MulticallEntry { "op" = op, "result" = result, "args" = args });
    layout!(rows, "struct xen_pod_target" = PodTarget {
        "target_pages" = target_pages, "tot_pages" = tot_pages, "pod_cache_pages" = pod_cache_pages,
        "pod_entries" = pod_entries, "domid" = domid,
    });
    layout!(rows, "struct mmuext_op" = MmuextOp { "cmd" = cmd, "arg1.mfn" = arg1, "arg2.src_mfn" = arg2 });
    layout!(rows, "struct xen_memory_reservation" = MemoryReservation { "extent_start" = extent_start, "nr_extents" = nr_extents, "extent_order" = extent_order, "mem_flags" = mem_flags, "domid" = domid });
    layout!(rows, "struct xen_add_to_physmap" = AddToPhysmap { "domid" = domid, "size" = size, "space" = space, "idx" = idx, "gpfn" = gpfn });
    layout!(rows, "struct xen_remove_from_physmap" = RemoveFromPhysmap { "domid" = domid, "gpfn" = gpfn });
    layout!(rows, "struct xen_mem_acquire_resource" = MemAcquireResource { "domid" = domid, "type" = type_, "id" = id, "nr_frames" = nr_frames, "frame" = frame, "frame_list" = frame_list });
    layout!(rows, "struct xen_machphys_mapping" = MachphysMapping { "v_start" = v_start, "v_end" = v_end, "max_mfn" = max_mfn });
    layout!(rows, "struct xen_memory_exchange" = MemoryExchange { "in" = in_, "out" = out, "nr_exchanged" = nr_exchanged });
    layout!(rows, "struct xen_machphys_mfn_list" = MachphysMfnList {
        "max_extents" = max_extents, "extent_start" = extent_start, "nr_extents" = nr_extents
    });
    layout!(rows, "struct xen_memory_map" = MemoryMap { "nr_entries" = nr_entries, "buffer" = buffer });
    layout!(rows, "struct gnttab_get_version" = GnttabGetVersion { "dom" = dom, "pad" = pad, "version" = version });
    layout!(rows, "struct evtchn_alloc_unbound" = EvtchnAllocUnbound { "dom" = dom, "remote_dom" = remote_dom, "port" = port });
    layout!(rows, "struct evtchn_bind_interdomain" = EvtchnBindInterdomain { "remote_dom" = remote_dom, "remote_port" = remote_port, "local_port" = local_port });
    layout!(rows, "struct gnttab_setup_table" = GnttabSetupTable { "dom" = dom, "nr_frames" = nr_frames, "status" = status, "frame_list" = frame_list });
    layout!(rows, "struct gnttab_query_size" = GnttabQuerySize { "dom" = dom, "nr_frames" = nr_frames, "max_nr_frames" = max_nr_frames, "status" = status });
    layout!(rows, "struct vcpu_runstate_info" = VcpuRunstateInfo {
        "state" = state, "state_entry_time" = state_entry_time, "time" = time
    });
    layout!(rows, "struct vcpu_register_runstate_memory_area" = VcpuRegisterRunstateMemoryArea { "addr.v" = v });
    layout!(rows, "struct sched_poll" = SchedPoll { "ports" = ports, "nr_ports" = nr_ports, "timeout" = timeout });
}

fn hvm(rows: &mut Vec<Row>) {
    layout!(rows, "struct xen_hvm_param" = HvmParam { "domid" = domid, "pad" = pad, "index" = index, "value" = value });
    layout!(rows, "struct xen_hvm_get_mem_type" = HvmGetMemType { "domid" = domid, "mem_type" = mem_type, "pfn" = pfn });
    layout!(rows, "struct xen_hvm_altp2m_op" = HvmAltp2mOp {
        "version" = version, "cmd" = cmd, "domain" = domain, "u" = u, "u.domain_state.state" = u,
    });
    layout!(rows, "struct xen_dm_op_buf" = DmOpBuf { "h" = h, "size" = size });
    layout!(rows, "struct xen_dm_op_modified_memory_extent" = DmOpModifiedMemoryExtent { "nr" = nr, "first_pfn" = first_pfn });
    // The operations of a union, each in a structure of its own here: their fields, not the union's size.
    constants!(
        rows,
        "offsetof(struct xen_dm_op, op)" = offset_of!(DmOpModifiedMemory, op),
        "offsetof(struct xen_dm_op, u.modified_memory.nr_extents)" =
            offset_of!(DmOpModifiedMemory, nr_extents),
        "offsetof(struct xen_dm_op, u.modified_memory.opaque)" = offset_of!(DmOpModifiedMemory, opaque),
        "offsetof(struct xen_dm_op, op)" = offset_of!(DmOpSetMemType, op),
        "offsetof(struct xen_dm_op, u.set_mem_type.nr)" = offset_of!(DmOpSetMemType, nr),
        "offsetof(struct xen_dm_op, u.set_mem_type.mem_type)" = offset_of!(DmOpSetMemType, mem_type),
        "offsetof(struct xen_dm_op, u.set_mem_type.first_pfn)" = offset_of!(DmOpSetMemType, first_pfn),
    );
}

/// Xenstore's ring and the device states, which their own modules state.
fn xenbus(rows: &mut Vec<Row>) {
    use crate::xenbus::State;
    use crate::xs_wire::{Kind, REQ, REQ_CONS, REQ_PROD, RSP, RSP_CONS, RSP_PROD, XENSTORE_PAYLOAD_MAX};
    constants!(
        rows,
        "offsetof(struct xenstore_domain_interface, req)" = REQ,
        "offsetof(struct xenstore_domain_interface, rsp)" = RSP,
        "offsetof(struct xenstore_domain_interface, req_cons)" = REQ_CONS,
        "offsetof(struct xenstore_domain_interface, req_prod)" = REQ_PROD,
        "offsetof(struct xenstore_domain_interface, rsp_cons)" = RSP_CONS,
        "offsetof(struct xenstore_domain_interface, rsp_prod)" = RSP_PROD,
        "XENSTORE_PAYLOAD_MAX" = XENSTORE_PAYLOAD_MAX,
        "XS_READ" = Kind::Read,
        "XS_WATCH" = Kind::Watch,
        "XS_UNWATCH" = Kind::Unwatch,
        "XS_TRANSACTION_START" = Kind::TransactionStart,
        "XS_TRANSACTION_END" = Kind::TransactionEnd,
        "XS_WRITE" = Kind::Write,
        "XS_RM" = Kind::Rm,
        "XS_WATCH_EVENT" = Kind::WatchEvent,
        "XS_ERROR" = Kind::Error,
        "XenbusStateInitialising" = State::Initialising,
        "XenbusStateInitWait" = State::InitWait,
        "XenbusStateInitialised" = State::Initialised,
        "XenbusStateConnected" = State::Connected,
        "XenbusStateClosing" = State::Closing,
        "XenbusStateClosed" = State::Closed,
        "XenbusStateReconfiguring" = State::Reconfiguring,
        "XenbusStateReconfigured" = State::Reconfigured,
    );
}
