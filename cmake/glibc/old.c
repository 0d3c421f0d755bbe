/* For wheels: functions that glibc 2.34 moved from libpthread, libdl and librt into libc, under the
   version that they had before, and still have. The linker calls these in their place (--wrap), also
   from cudart. */
#if defined(__x86_64__)
#define FIRST "GLIBC_2.2.5"
#else
#define FIRST "GLIBC_2.17"
#endif

/* Arguments and results stay in their registers: the same jump for any signature. */
#if defined(__x86_64__)
#define JUMP(name) "jmp *old_" name "@GOTPCREL(%rip)\n"
#else
#define JUMP(name) "adrp x16, :got:old_" name "\nldr x16, [x16, :got_lo12:old_" name "]\nbr x16\n"
#endif
#define OLD(name)                                                                              \
  __asm__(".symver old_" name "," name "@" FIRST "\n.text\n.hidden __wrap_" name "\n.globl __wrap_" name \
          "\n.type __wrap_" name ",%function\n__wrap_" name ":\n" JUMP(name));

FUSEDOPT_WRAPPED
