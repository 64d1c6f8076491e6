# The entry of a 64-bit PV kernel: what the domain builder reads (ELF notes), the first instructions, and the image's
# own addresses for the Rust code. No logic. AT&T syntax; assembled by xen_front::entry!, which fills in the name of the
# Rust function in braces.
#
# Sources: xen/include/public/elfnote.h; the entry state in tools/libs/guest/xg_dom_x86.c (vcpu_x86_64).

.macro elf_note type:req, value:vararg
    .pushsection .note.Xen, "a", @note
    .balign 4
    .long 4                 # length of the name with its NUL
    .long 9f - 8f           # length of the value
    .long \type
    .asciz "Xen"
8:  \value
9:  .balign 4
    .popsection
.endm

elf_note 6,  .asciz "stubdom"           # XEN_ELFNOTE_GUEST_OS
elf_note 5,  .asciz "xen-3.0"           # XEN_ELFNOTE_XEN_VERSION: the only ABI there is
elf_note 8,  .asciz "generic"           # XEN_ELFNOTE_LOADER: plain program headers, no bootstrap of its own
elf_note 3,  .quad VIRT_BASE            # XEN_ELFNOTE_VIRT_BASE: where pfn 0 is mapped
elf_note 4,  .quad VIRT_BASE            # XEN_ELFNOTE_PADDR_OFFSET: the image's p_paddr equals its p_vaddr
elf_note 1,  .quad _start               # XEN_ELFNOTE_ENTRY
# No HYPERCALL_PAGE (the stub issues `syscall` itself), no INIT_P2M (the p2m list stays in the linear mapping).

.pushsection .text.start, "ax", @progbits
.globl _start
.type _start, @function
_start:                                 # rsi: virtual address of start_info; rsp: a boot stack of one page
    cld
    leaq stack_top(%rip), %rsp
    xorl %ebp, %ebp                     # ends every backtrace here
    movq %rsi, %rdi
    leaq image(%rip), %rsi
    call {start}
    ud2
.size _start, . - _start
.popsection

# struct Image of xen_front::boot, field by field.
.pushsection .rodata.image, "a", @progbits
.balign 8
image:
    .quad VIRT_BASE
    .quad text_start, text_end
    .quad rodata_start, rodata_end
    .quad stack_guard
.popsection
