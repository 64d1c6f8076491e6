/* The C declarations that src/ffi/ writes down by hand, said again in C: the compiler compares them with Xen's own
 * headers, since a second declaration of a function must agree with the first. Sizes and offsets are asserted. */
#include <stddef.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenstore.h>
#include <libxenvchan.h>
#include <xencall.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>

xc_interface *xc_interface_open(xentoollog_logger *, xentoollog_logger *, unsigned int);
int xc_interface_close(xc_interface *);
int xc_get_cpumap_size(xc_interface *);
int xc_vcpu_getaffinity(xc_interface *, uint32_t, int, xc_cpumap_t, xc_cpumap_t, uint32_t);
int xc_version(xc_interface *, int, void *);
int xc_domain_getinfolist(xc_interface *, uint32_t, unsigned int, xen_domctl_getdomaininfo_t *);
int xc_domain_set_target(xc_interface *, uint32_t, uint32_t);
int xc_domain_unpause(xc_interface *, uint32_t);
int xc_domain_pause(xc_interface *, uint32_t);
int xc_domain_setmaxmem(xc_interface *, uint32_t, uint64_t);
int xc_get_machine_memory_map(xc_interface *, struct e820entry *, uint32_t);
int xc_maximum_ram_page(xc_interface *, unsigned long *);
int xc_domain_get_pod_target(xc_interface *, uint32_t, uint64_t *, uint64_t *, uint64_t *);
int xc_monitor_resume(xc_interface *, uint32_t);
int xc_altp2m_get_domain_state(xc_interface *, uint32_t, bool *);
int xc_mark_page_online(xc_interface *, unsigned long, unsigned long, uint32_t *);
int xc_mark_page_offline(xc_interface *, unsigned long, unsigned long, uint32_t *);
int xc_query_page_offline_status(xc_interface *, unsigned long, unsigned long, uint32_t *);
int xc_domain_set_tsc_info(xc_interface *, uint32_t, uint32_t, uint64_t, uint32_t, uint32_t);
int xc_domain_hvm_setcontext(xc_interface *, uint32_t, uint8_t *, uint32_t);
int xc_availheap(xc_interface *, int, int, int, uint64_t *);
int xc_domain_maximum_gpfn(xc_interface *, uint32_t, unsigned long *);
int xc_set_domain_cpu_policy(xc_interface *, uint32_t, uint32_t, xen_cpuid_leaf_t *, uint32_t, xen_msr_entry_t *,
                             uint32_t *, uint32_t *, uint32_t *);

void *xc__hypercall_buffer_alloc_pages(xc_interface *, xc_hypercall_buffer_t *, int);
void xc__hypercall_buffer_free_pages(xc_interface *, xc_hypercall_buffer_t *, int);
long long xc_logdirty_control(xc_interface *, uint32_t, unsigned int, xc_hypercall_buffer_t *, unsigned long, unsigned int,
                              xc_shadow_op_stats_t *);
int xc_domain_get_tsc_info(xc_interface *, uint32_t, uint32_t *, uint64_t *, uint32_t *, uint32_t *);
int xc_domain_hvm_getcontext(xc_interface *, uint32_t, uint8_t *, uint32_t);
int xc_domain_get_pod_target(xc_interface *, uint32_t, uint64_t *, uint64_t *, uint64_t *);
xc_cpu_policy_t *xc_cpu_policy_init(void);
void xc_cpu_policy_destroy(xc_cpu_policy_t *);
int xc_cpu_policy_get_domain(xc_interface *, uint32_t, xc_cpu_policy_t *);
int xc_cpu_policy_get_size(xc_interface *, uint32_t *, uint32_t *);
int xc_cpu_policy_serialise(xc_interface *, const xc_cpu_policy_t *, xen_cpuid_leaf_t *, uint32_t *, xen_msr_entry_t *,
                            uint32_t *);

int xc_domain_pause(xc_interface *, uint32_t);
int xc_mark_page_offline(xc_interface *, unsigned long, unsigned long, uint32_t *);
int xc_query_page_offline_status(xc_interface *, unsigned long, unsigned long, uint32_t *);
int xc_domain_resume(xc_interface *, uint32_t, int);
int xc_domain_subscribe_for_suspend(xc_interface *, uint32_t, evtchn_port_t);
int xc_evtchn_alloc_unbound(xc_interface *, uint32_t, uint32_t);
int xc_vcpu_getcontext(xc_interface *, uint32_t, uint32_t, vcpu_guest_context_any_t *);
int xc_mmuext_op(xc_interface *, struct mmuext_op *, unsigned int, uint32_t);
int xc_gnttab_get_version(xc_interface *, uint32_t);
grant_entry_v1_t *xc_gnttab_map_table_v1(xc_interface *, uint32_t, int *);
grant_entry_v2_t *xc_gnttab_map_table_v2(xc_interface *, uint32_t, int *);

xencall_handle *xencall_open(struct xentoollog_logger *, unsigned);
int xencall_close(xencall_handle *);
int xencall1(xencall_handle *, unsigned int, uint64_t);
int xencall2(xencall_handle *, unsigned int, uint64_t, uint64_t);
int xencall4(xencall_handle *, unsigned int, uint64_t, uint64_t, uint64_t, uint64_t);
void *xencall_alloc_buffer(xencall_handle *, size_t);
void xencall_free_buffer(xencall_handle *, void *);

xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *, unsigned);
int xenforeignmemory_close(xenforeignmemory_handle *);
void *xenforeignmemory_map(xenforeignmemory_handle *, uint32_t, int, size_t, const xen_pfn_t[], int[]);
int xenforeignmemory_unmap(xenforeignmemory_handle *, void *, size_t);

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *, unsigned int);
int xenevtchn_close(xenevtchn_handle *);
int xenevtchn_fd(xenevtchn_handle *);
xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *, uint32_t, evtchn_port_t);
xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *);
int xenevtchn_unmask(xenevtchn_handle *, evtchn_port_t);

struct xs_handle *xs_open(unsigned long);
void xs_close(struct xs_handle *);
char **xs_directory(struct xs_handle *, uint32_t, const char *, unsigned int *);
void *xs_read(struct xs_handle *, uint32_t, const char *, unsigned int *);
bool xs_write(struct xs_handle *, uint32_t, const char *, const void *, unsigned int);
bool xs_rm(struct xs_handle *, uint32_t, const char *);
bool xs_set_permissions(struct xs_handle *, uint32_t, const char *, struct xs_permissions *, unsigned int);
bool xs_watch(struct xs_handle *, const char *, const char *);
bool xs_unwatch(struct xs_handle *, const char *, const char *);
char **xs_check_watch(struct xs_handle *);
int xs_fileno(struct xs_handle *);
bool xs_resume_domain(struct xs_handle *, unsigned int);

struct libxenvchan *libxenvchan_client_init(struct xentoollog_logger *, int, const char *);
void libxenvchan_close(struct libxenvchan *);
int libxenvchan_read(struct libxenvchan *, void *, size_t);
int libxenvchan_write(struct libxenvchan *, const void *, size_t);
int libxenvchan_wait(struct libxenvchan *);
int libxenvchan_fd_for_select(struct libxenvchan *);
int libxenvchan_is_open(struct libxenvchan *);
int libxenvchan_data_ready(struct libxenvchan *);
int libxenvchan_buffer_space(struct libxenvchan *);
int xenevtchn_notify(xenevtchn_handle *, evtchn_port_t);

#define CHECK(what) _Static_assert(what, #what)

CHECK(XENVER_version == 0 && XENVER_extraversion == 1);
CHECK(sizeof(xen_extraversion_t) == 16);
CHECK(XEN_VCPUAFFINITY_HARD == 1);
CHECK(E820_RAM == 1 && sizeof(struct e820entry) == 20 && offsetof(struct e820entry, type) == 16);
CHECK(sizeof(xen_domctl_getdomaininfo_t) == 112);
CHECK(offsetof(xen_domctl_getdomaininfo_t, flags) == 4);
CHECK(offsetof(xen_domctl_getdomaininfo_t, tot_pages) == 8);
CHECK(offsetof(xen_domctl_getdomaininfo_t, max_pages) == 16);
CHECK(offsetof(xen_domctl_getdomaininfo_t, shared_info_frame) == 48);
CHECK(offsetof(xen_domctl_getdomaininfo_t, cpu_time) == 56);
CHECK(offsetof(xen_domctl_getdomaininfo_t, max_vcpu_id) == 68);
CHECK(offsetof(xen_domctl_getdomaininfo_t, handle) == 76);
CHECK(offsetof(xen_domctl_getdomaininfo_t, arch_config) == 104);
CHECK(XEN_DOMINF_dying == 1 && XEN_DOMINF_hvm_guest == 2 && XEN_DOMINF_shutdown == 4 && XEN_DOMINF_paused == 8);
CHECK(XEN_DOMINF_shutdownmask == 255 && XEN_DOMINF_shutdownshift == 16 && SHUTDOWN_crash == 3 && SHUTDOWN_suspend == 2);
CHECK(sizeof(xen_cpuid_leaf_t) == 24);
CHECK(sizeof(xen_msr_entry_t) == 16);
CHECK(sizeof(struct xs_permissions) == 8 && offsetof(struct xs_permissions, perms) == 4);
CHECK(XS_PERM_NONE == 0 && XS_PERM_READ == 1 && XBT_NULL == 0);
CHECK(sizeof(xs_transaction_t) == 4 && sizeof(xen_pfn_t) == 8);
CHECK(XGR_SDD_MISSING_CPUID == 1 && XGR_SDD_MISSING_MSR == 2);
CHECK(sizeof(struct libxenvchan_ring) == 24 && offsetof(struct libxenvchan_ring, buffer) == 8);
CHECK(offsetof(struct libxenvchan_ring, order) == 16);
CHECK(sizeof(struct libxenvchan) == 88 && offsetof(struct libxenvchan, ring) == 8);
CHECK(offsetof(struct libxenvchan, event) == 16 && offsetof(struct libxenvchan, event_port) == 24);
CHECK(offsetof(struct libxenvchan, read) == 32 && offsetof(struct libxenvchan, write) == 56);
CHECK(offsetof(struct vchan_interface, left.prod) == 4 && offsetof(struct vchan_interface, cli_live) == 20);
CHECK(offsetof(struct vchan_interface, cli_notify) == 22 && offsetof(struct vchan_interface, srv_notify) == 23);
CHECK(VCHAN_NOTIFY_WRITE == 1 && VCHAN_NOTIFY_READ == 2 && sizeof(evtchn_port_t) == 4);
CHECK(sizeof(vcpu_guest_context_any_t) == 5168 && offsetof(vcpu_guest_context_t, user_regs.rdx) == 616);
CHECK(offsetof(vcpu_guest_context_t, gdt_frames) == 4832 && offsetof(vcpu_guest_context_t, gdt_ents) == 4960);
CHECK(offsetof(vcpu_guest_context_t, ctrlreg) == 4984);
CHECK(offsetof(shared_info_t, arch.max_pfn) == 3088);
CHECK(offsetof(shared_info_t, arch.pfn_to_mfn_frame_list_list) == 3096);
CHECK(offsetof(shared_info_t, arch.p2m_cr3) == 3112 && offsetof(shared_info_t, arch.p2m_vaddr) == 3120);
CHECK(sizeof(struct xen_domctl) == 144 && XEN_DOMCTL_INTERFACE_VERSION == 0x15);
CHECK(XEN_DOMCTL_getpageframeinfo3 == 61 && offsetof(struct xen_domctl, u.getpageframeinfo3.num) == 16);
CHECK(offsetof(struct xen_domctl, u.getpageframeinfo3.array) == 24);
CHECK(XEN_DOMCTL_PFINFO_LTAB_SHIFT == 28 && XEN_DOMCTL_PFINFO_LPINTAB == 1U << 31);
CHECK(XEN_DOMCTL_PFINFO_L1TAB == 1U << 28 && XEN_DOMCTL_PFINFO_L4TAB == 4U << 28);
CHECK(XEN_DOMCTL_PFINFO_BROKEN == 0xdU << 28);
CHECK(sizeof(struct mmuext_op) == 24 && offsetof(struct mmuext_op, arg1.mfn) == 8);
CHECK(MMUEXT_PIN_L1_TABLE == 0 && MMUEXT_PIN_L4_TABLE == 3 && MMUEXT_UNPIN_TABLE == 4);
CHECK(sizeof(mmu_update_t) == 16 && MMU_NORMAL_PT_UPDATE == 0);
CHECK(sizeof(struct xen_memory_reservation) == 32 && offsetof(struct xen_memory_reservation, domid) == 24);
CHECK(sizeof(struct xen_memory_exchange) == 72 && offsetof(struct xen_memory_exchange, nr_exchanged) == 64);
CHECK(sizeof(struct multicall_entry) == 64 && offsetof(struct multicall_entry, args) == 16);
CHECK(sizeof(struct xen_sysctl) == 136 && XEN_SYSCTL_INTERFACE_VERSION == 0x15 && XEN_SYSCTL_page_offline_op == 14);
CHECK(offsetof(struct xen_sysctl, u.page_offline.cmd) == 8 && offsetof(struct xen_sysctl, u.page_offline.start) == 12);
CHECK(offsetof(struct xen_sysctl, u.page_offline.end) == 16 && offsetof(struct xen_sysctl, u.page_offline.status) == 24);
CHECK(sysctl_page_offline == 1 && sysctl_page_online == 2 && XEN_DOMCTL_setvcpuaffinity == 9);
CHECK(offsetof(struct xen_domctl, u.vcpuaffinity.vcpu) == 16 && offsetof(struct xen_domctl, u.vcpuaffinity.flags) == 20);
CHECK(offsetof(struct xen_domctl, u.vcpuaffinity.cpumap_hard.bitmap) == 24);
CHECK(offsetof(struct xen_domctl, u.vcpuaffinity.cpumap_hard.nr_bits) == 32);
CHECK(offsetof(struct xen_domctl, u.vcpuaffinity.cpumap_soft.bitmap) == 40);
CHECK(__HYPERVISOR_multicall == 13 && __HYPERVISOR_sysctl == 35);
CHECK(__HYPERVISOR_memory_op == 12 && XENMEM_exchange == 11);
CHECK(__HYPERVISOR_mmu_update == 1 && __HYPERVISOR_domctl == 36);
CHECK(sizeof(grant_entry_v1_t) == 8 && sizeof(grant_entry_v2_t) == 16);
CHECK(PG_OFFLINE_STATUS_OFFLINED == 1 << 1 && PG_OFFLINE_STATUS_OFFLINE_PENDING == 1 << 3);
CHECK(PG_OFFLINE_STATUS_BROKEN == 1 << 4 && PG_OFFLINE_OFFLINED == 1 << 1 && PG_OFFLINE_XENPAGE == 1 << 8);
CHECK(PG_OFFLINE_NOT_CONV_RAM == 1 << 11 && PG_OFFLINE_OWNED == 1 << 12 && PG_OFFLINE_OWNER_SHIFT == 16);

_Static_assert(sizeof(xc_hypercall_buffer_t) == 40, "HypercallBuffer");
_Static_assert(offsetof(xc_hypercall_buffer_t, dir) == 16, "HypercallBuffer::dir");
_Static_assert(offsetof(xc_hypercall_buffer_t, ubuf) == 24, "HypercallBuffer::ubuf");
_Static_assert(sizeof(xc_shadow_op_stats_t) == 8, "ShadowStats");
_Static_assert(offsetof(xc_shadow_op_stats_t, dirty_count) == 4, "ShadowStats::dirty_count");
_Static_assert(XEN_DOMCTL_SHADOW_OP_OFF == 0 && XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY == 2, "SHADOW_OP");
_Static_assert(XEN_DOMCTL_SHADOW_OP_CLEAN == 11 && XEN_DOMCTL_SHADOW_OP_PEEK == 12, "SHADOW_OP");
_Static_assert(XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL == 1, "SHADOW_LOGDIRTY_FINAL");
_Static_assert(XEN_DOMCTL_PFINFO_NOTAB == 0 && XEN_DOMCTL_PFINFO_BROKEN == 0xdU << 28, "PFINFO");
