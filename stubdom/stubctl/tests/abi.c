/* The C declarations that src/ffi/ writes down by hand, said again in C: the compiler compares them with Xen's own
 * headers, since a second declaration of a function must agree with the first. Sizes and offsets of the libraries' own
 * structures are asserted; those of Xen's are the business of the crate xen-abi. */
#include <stddef.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenstore.h>
#include <xencall.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>

xencall_handle *xencall_open(struct xentoollog_logger *, unsigned);
int xencall_close(xencall_handle *);
long xencall2L(xencall_handle *, unsigned int, uint64_t, uint64_t);
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
int xenevtchn_notify(xenevtchn_handle *, evtchn_port_t);
int xenevtchn_unmask(xenevtchn_handle *, evtchn_port_t);

xengnttab_handle *xengnttab_open(struct xentoollog_logger *, unsigned);
int xengnttab_close(xengnttab_handle *);
void *xengnttab_map_grant_ref_notify(xengnttab_handle *, uint32_t, uint32_t, int, uint32_t, evtchn_port_t);
void *xengnttab_map_domain_grant_refs(xengnttab_handle *, uint32_t, uint32_t, uint32_t *, int);
int xengnttab_unmap(xengnttab_handle *, void *, uint32_t);

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

#define CHECK(what) _Static_assert(what, #what)

CHECK(E820_RAM == 1 && sizeof(struct e820entry) == 20 && offsetof(struct e820entry, type) == 16);
CHECK(sizeof(struct xs_permissions) == 8 && offsetof(struct xs_permissions, perms) == 4);
CHECK(XS_PERM_NONE == 0 && XS_PERM_READ == 1 && XBT_NULL == 0);
CHECK(sizeof(xs_transaction_t) == 4 && sizeof(xen_pfn_t) == 8);
CHECK(XGR_SDD_MISSING_CPUID == 1 && XGR_SDD_MISSING_MSR == 2);
CHECK(sizeof(evtchn_port_t) == 4);
