/* The C declarations that src/ffi/ writes down by hand, said again in C: the compiler compares them with Xen's own
 * headers, since a second declaration of a function must agree with the first. Sizes and offsets are asserted. */
#include <stddef.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenstore.h>
#include <libxenvchan.h>

xc_interface *xc_interface_open(xentoollog_logger *, xentoollog_logger *, unsigned int);
int xc_interface_close(xc_interface *);
int xc_domain_getinfolist(xc_interface *, uint32_t, unsigned int, xen_domctl_getdomaininfo_t *);
int xc_domain_set_target(xc_interface *, uint32_t, uint32_t);
int xc_domain_unpause(xc_interface *, uint32_t);
int xc_domain_set_tsc_info(xc_interface *, uint32_t, uint32_t, uint64_t, uint32_t, uint32_t);
int xc_domain_hvm_setcontext(xc_interface *, uint32_t, uint8_t *, uint32_t);
int xc_domain_maximum_gpfn(xc_interface *, uint32_t, unsigned long *);
int xc_set_domain_cpu_policy(xc_interface *, uint32_t, uint32_t, xen_cpuid_leaf_t *, uint32_t, xen_msr_entry_t *,
                             uint32_t *, uint32_t *, uint32_t *);

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
CHECK(sizeof(xen_domctl_getdomaininfo_t) == 112);
CHECK(offsetof(xen_domctl_getdomaininfo_t, flags) == 4);
CHECK(offsetof(xen_domctl_getdomaininfo_t, tot_pages) == 8);
CHECK(offsetof(xen_domctl_getdomaininfo_t, max_pages) == 16);
CHECK(offsetof(xen_domctl_getdomaininfo_t, handle) == 76);
CHECK(offsetof(xen_domctl_getdomaininfo_t, arch_config) == 104);
CHECK(XEN_DOMINF_dying == 1 && XEN_DOMINF_hvm_guest == 2 && XEN_DOMINF_shutdown == 4 && XEN_DOMINF_paused == 8);
CHECK(XEN_DOMINF_shutdownmask == 255 && XEN_DOMINF_shutdownshift == 16 && SHUTDOWN_crash == 3);
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
