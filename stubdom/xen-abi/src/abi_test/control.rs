//! `domctl.h` and `sysctl.h`: the interfaces whose versions change from release to release.

use super::{Row, constants, layout, values_in_c};
use crate::abi::*;
use std::string::String;
use std::vec::Vec;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    domctl_constants(&mut rows);
    domctl(&mut rows);
    sysctl(&mut rows);
    rows
}

/// The release whose headers are installed has to be one of those that the layouts were compared with.
#[test]
fn the_interface_versions_of_the_headers_are_known() {
    let names = ["XEN_DOMCTL_INTERFACE_VERSION", "XEN_SYSCTL_INTERFACE_VERSION"];
    let values = values_in_c(&names.map(|name| (String::from(name), 0)));
    let known = [XEN_DOMCTL_INTERFACE_VERSIONS, XEN_SYSCTL_INTERFACE_VERSIONS];
    for ((name, version), versions) in names.iter().zip(values).zip(known) {
        assert!(
            u32::try_from(version).is_ok_and(|version| versions.contains(&version)),
            "{name} is {version:#x}"
        );
    }
}

fn domctl_constants(rows: &mut Vec<Row>) {
    constants!(
        rows,
        "XEN_DOMCTL_pausedomain" = XEN_DOMCTL_pausedomain,
        "XEN_DOMCTL_unpausedomain" = XEN_DOMCTL_unpausedomain,
        "XEN_DOMCTL_getdomaininfo" = XEN_DOMCTL_getdomaininfo,
        "XEN_DOMCTL_setvcpuaffinity" = XEN_DOMCTL_setvcpuaffinity,
        "XEN_DOMCTL_shadow_op" = XEN_DOMCTL_shadow_op,
        "XEN_DOMCTL_max_mem" = XEN_DOMCTL_max_mem,
        "XEN_DOMCTL_setvcpucontext" = XEN_DOMCTL_setvcpucontext,
        "XEN_DOMCTL_getvcpucontext" = XEN_DOMCTL_getvcpucontext,
        "XEN_DOMCTL_getvcpuaffinity" = XEN_DOMCTL_getvcpuaffinity,
        "XEN_DOMCTL_resumedomain" = XEN_DOMCTL_resumedomain,
        "XEN_DOMCTL_subscribe" = XEN_DOMCTL_subscribe,
        "XEN_DOMCTL_gethvmcontext" = XEN_DOMCTL_gethvmcontext,
        "XEN_DOMCTL_sethvmcontext" = XEN_DOMCTL_sethvmcontext,
        "XEN_DOMCTL_get_address_size" = XEN_DOMCTL_get_address_size,
        "XEN_DOMCTL_set_target" = XEN_DOMCTL_set_target,
        "XEN_DOMCTL_vm_event_op" = XEN_DOMCTL_vm_event_op,
        "XEN_DOMCTL_gettscinfo" = XEN_DOMCTL_gettscinfo,
        "XEN_DOMCTL_settscinfo" = XEN_DOMCTL_settscinfo,
        "XEN_DOMCTL_getpageframeinfo3" = XEN_DOMCTL_getpageframeinfo3,
        "XEN_DOMCTL_get_cpu_policy" = XEN_DOMCTL_get_cpu_policy,
        "XEN_DOMCTL_set_cpu_policy" = XEN_DOMCTL_set_cpu_policy,
        "XEN_DOMINF_dying" = XEN_DOMINF_dying,
        "XEN_DOMINF_hvm_guest" = XEN_DOMINF_hvm_guest,
        "XEN_DOMINF_shutdown" = XEN_DOMINF_shutdown,
        "XEN_DOMINF_paused" = XEN_DOMINF_paused,
        "XEN_DOMINF_shutdownmask" = XEN_DOMINF_shutdownmask,
        "XEN_DOMINF_shutdownshift" = XEN_DOMINF_shutdownshift,
        "XEN_VCPUAFFINITY_HARD" = XEN_VCPUAFFINITY_HARD,
        "XEN_VM_EVENT_RESUME" = XEN_VM_EVENT_RESUME,
        "XEN_DOMCTL_VM_EVENT_OP_MONITOR" = XEN_DOMCTL_VM_EVENT_OP_MONITOR,
        "XEN_DOMCTL_SHADOW_OP_OFF" = XEN_DOMCTL_SHADOW_OP_OFF,
        "XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY" = XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY,
        "XEN_DOMCTL_SHADOW_OP_CLEAN" = XEN_DOMCTL_SHADOW_OP_CLEAN,
        "XEN_DOMCTL_SHADOW_OP_PEEK" = XEN_DOMCTL_SHADOW_OP_PEEK,
        "XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL" = XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL,
        "XEN_DOMCTL_PFINFO_LTAB_SHIFT" = XEN_DOMCTL_PFINFO_LTAB_SHIFT,
        "XEN_DOMCTL_PFINFO_NOTAB" = XEN_DOMCTL_PFINFO_NOTAB,
        "(uint64_t)XEN_DOMCTL_PFINFO_LPINTAB" = XEN_DOMCTL_PFINFO_LPINTAB,
        "(uint64_t)XEN_DOMCTL_PFINFO_BROKEN" = XEN_DOMCTL_PFINFO_BROKEN,
        "(uint64_t)XEN_DOMCTL_PFINFO_L4TAB" = 4_u64 << XEN_DOMCTL_PFINFO_LTAB_SHIFT,
        "sizeof(xen_cpuid_leaf_t)" = XEN_CPUID_LEAF_BYTES,
        "sizeof(xen_msr_entry_t)" = XEN_MSR_ENTRY_BYTES,
    );
}

fn domctl(rows: &mut Vec<Row>) {
    layout!(rows, "struct xen_domctl" = Domctl {
        "cmd" = cmd, "interface_version" = interface_version, "domain" = domain, "u" = u,
    });
    layout!(rows, "struct xen_domctl_getdomaininfo" = DomctlGetdomaininfo {
        "domain" = domain, "flags" = flags, "tot_pages" = tot_pages, "max_pages" = max_pages,
        "outstanding_pages" = outstanding_pages, "shr_pages" = shr_pages, "paged_pages" = paged_pages,
        "shared_info_frame" = shared_info_frame, "cpu_time" = cpu_time, "nr_online_vcpus" = nr_online_vcpus,
        "max_vcpu_id" = max_vcpu_id, "ssidref" = ssidref, "handle" = handle, "cpupool" = cpupool,
        "gpaddr_bits" = gpaddr_bits, "arch_config" = arch_config,
    });
    layout!(rows, "struct xenctl_bitmap" = XenctlBitmap { "bitmap" = bitmap, "nr_bits" = nr_bits });
    layout!(rows, "struct xen_domctl_vcpuaffinity" = DomctlVcpuaffinity {
        "vcpu" = vcpu, "flags" = flags, "cpumap_hard" = cpumap_hard, "cpumap_soft" = cpumap_soft,
    });
    layout!(rows, "struct xen_domctl_vm_event_op" = DomctlVmEventOp { "op" = op, "mode" = mode, "u" = u });
    layout!(rows, "struct xen_domctl_shadow_op_stats" = DomctlShadowOpStats {
        "fault_count" = fault_count, "dirty_count" = dirty_count,
    });
    layout!(rows, "struct xen_domctl_shadow_op" = DomctlShadowOp {
        "op" = op, "mode" = mode, "mb" = mb, "dirty_bitmap" = dirty_bitmap, "pages" = pages, "stats" = stats,
    });
    layout!(rows, "struct xen_domctl_max_mem" = DomctlMaxMem { "max_memkb" = max_memkb });
    layout!(rows, "struct xen_domctl_vcpucontext" = DomctlVcpucontext { "vcpu" = vcpu, "ctxt" = ctxt });
    layout!(rows, "struct xen_domctl_subscribe" = DomctlSubscribe { "port" = port });
    layout!(rows, "struct xen_domctl_hvmcontext" = DomctlHvmcontext { "size" = size, "buffer" = buffer });
    layout!(rows, "struct xen_domctl_address_size" = DomctlAddressSize { "size" = size });
    layout!(rows, "struct xen_domctl_set_target" = DomctlSetTarget { "target" = target });
    layout!(rows, "struct xen_domctl_tsc_info" = DomctlTscInfo {
        "tsc_mode" = tsc_mode, "gtsc_khz" = gtsc_khz, "incarnation" = incarnation, "elapsed_nsec" = elapsed_nsec,
    });
    layout!(rows, "struct xen_domctl_getpageframeinfo3" = DomctlGetpageframeinfo3 { "num" = num, "array" = array });
    // Xen 4.18 renamed the two handles; what comes before and after them holds them in place.
    layout!(rows, "struct xen_domctl_cpu_policy" = DomctlCpuPolicy {
        "nr_leaves" = nr_leaves, "nr_msrs" = nr_msrs, "err_leaf" = err_leaf, "err_subleaf" = err_subleaf,
        "err_msr" = err_msr,
    });
}

fn sysctl(rows: &mut Vec<Row>) {
    constants!(
        rows,
        "XEN_SYSCTL_physinfo" = XEN_SYSCTL_physinfo,
        "XEN_SYSCTL_getdomaininfolist" = XEN_SYSCTL_getdomaininfolist,
        "XEN_SYSCTL_availheap" = XEN_SYSCTL_availheap,
        "XEN_SYSCTL_page_offline_op" = XEN_SYSCTL_page_offline_op,
        "XEN_SYSCTL_get_cpu_policy" = XEN_SYSCTL_get_cpu_policy,
        "sysctl_page_offline" = sysctl_page_offline,
        "sysctl_page_online" = sysctl_page_online,
        "sysctl_query_page_offline" = sysctl_query_page_offline,
        "PG_OFFLINE_STATUS_OFFLINED" = PG_OFFLINE_STATUS_OFFLINED,
        "PG_OFFLINE_STATUS_OFFLINE_PENDING" = PG_OFFLINE_STATUS_OFFLINE_PENDING,
        "PG_OFFLINE_STATUS_BROKEN" = PG_OFFLINE_STATUS_BROKEN,
        "PG_OFFLINE_OFFLINED" = PG_OFFLINE_OFFLINED,
        "PG_OFFLINE_XENPAGE" = PG_OFFLINE_XENPAGE,
        "PG_OFFLINE_NOT_CONV_RAM" = PG_OFFLINE_NOT_CONV_RAM,
        "PG_OFFLINE_OWNED" = PG_OFFLINE_OWNED,
        "PG_OFFLINE_OWNER_SHIFT" = PG_OFFLINE_OWNER_SHIFT,
    );
    layout!(rows, "struct xen_sysctl" = Sysctl { "cmd" = cmd, "interface_version" = interface_version, "u" = u });
    layout!(rows, "struct xen_sysctl_physinfo" = SysctlPhysinfo {
        "nr_cpus" = nr_cpus, "max_cpu_id" = max_cpu_id, "total_pages" = total_pages, "free_pages" = free_pages,
        "max_mfn" = max_mfn, "hw_cap" = hw_cap,
    });
    layout!(rows, "struct xen_sysctl_getdomaininfolist" = SysctlGetdomaininfolist {
        "first_domain" = first_domain, "max_domains" = max_domains, "buffer" = buffer, "num_domains" = num_domains,
    });
    layout!(rows, "struct xen_sysctl_availheap" = SysctlAvailheap {
        "min_bitwidth" = min_bitwidth, "max_bitwidth" = max_bitwidth, "node" = node, "avail_bytes" = avail_bytes,
    });
    // Xen 4.18 renamed these handles as well.
    layout!(rows, "struct xen_sysctl_cpu_policy" = SysctlCpuPolicy {
        "index" = index, "nr_leaves" = nr_leaves, "nr_msrs" = nr_msrs,
    });
    layout!(rows, "struct xen_sysctl_page_offline_op" = SysctlPageOfflineOp {
        "cmd" = cmd, "start" = start, "end" = end, "status" = status,
    });
}
