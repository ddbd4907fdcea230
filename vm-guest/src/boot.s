# From the PVH entry (32-bit, paging off, %ebx: the start info) to 64-bit Rust.
# See the Xen documentation, "x86/HVM direct boot ABI".

.section .note.pvh, "a", @note
.balign 4
    .long 4                     # length of the name
    .long 8                     # length of the value
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

.section .text.boot, "ax", @progbits
.code32
.global pvh_entry
pvh_entry:
    cli
    cld
    movl %ebx, %esi

    # Memory that Rust expects to be zero.
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    # The first 4 GiB at their own addresses, in pages of 2 MiB.
    movl $boot_level3 + 3, boot_level4
    movl $boot_level2 + 3, boot_level3
    movl $boot_level2 + 0x1003, boot_level3 + 8
    movl $boot_level2 + 0x2003, boot_level3 + 16
    movl $boot_level2 + 0x3003, boot_level3 + 24
    movl $0x83, %eax            # present, writable, large
    xorl %ecx, %ecx
1:  movl %eax, boot_level2(,%ecx,8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jne 1b

    movl $boot_level4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT: SSE works
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    andl $~0x4, %eax            # not EM
    orl $0x80010002, %eax       # PG, WP, MP
    movl %eax, %cr0

    lgdt boot_gdt_pointer
    ljmp $8, $1f
.code64
1:  movl $16, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $boot_stack_top, %esp
    movl %esi, %edi
    xorl %ebp, %ebp
    call start
    ud2

.section .rodata.boot, "a", @progbits
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 64-bit code
    .quad 0x00cf93000000ffff    # data
boot_gdt_pointer:
    .word 23
    .long boot_gdt

.section .bss.boot, "aw", @nobits
.balign 4096
.global boot_level4
boot_level4: .skip 4096
boot_level3: .skip 4096
boot_level2: .skip 4 * 4096

.section .stack, "aw", @nobits
.balign 16
    .skip 512 * 1024
boot_stack_top:
.text
