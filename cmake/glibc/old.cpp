// For wheels: what the core and the adapters call in the place of functions that are newer than
// glibc 2.28 and g++ 8's libstdc++. The linker sees to it (--wrap), also in cudart. C++17, in which
// std::stringbuf::str is the old one.
#include <new>
#include <sstream>
#include <string>

// Functions that glibc 2.34 moved from libpthread, libdl and librt into libc, under the version
// that they had before, and still have. Arguments stay where they are: the same jump for any of
// them.
#if defined(__x86_64__)
#define FIRST "GLIBC_2.2.5"
#define DLMOPEN "GLIBC_2.3.4"
#define JUMP(name) "jmp *old_" name "@GOTPCREL(%rip)\n"
#else
#define FIRST "GLIBC_2.17"
#define DLMOPEN FIRST
#define JUMP(name) "adrp x16, :got:old_" name "\nldr x16, [x16, :got_lo12:old_" name "]\nbr x16\n"
#endif
#define OLD(name, since)                                                            \
  __asm__(".symver old_" name "," name "@" since "\n.text\n.hidden __wrap_" name    \
          "\n.globl __wrap_" name "\n.type __wrap_" name ",%function\n__wrap_" name \
          ":\n" JUMP(name));
FUSEDOPT_OLD_FUNCTIONS

// New in g++ 9 and 11; std::exception_ptr counted in functions that are inline by now.
#define WRAP(name) __attribute__((visibility("hidden"))) __wrap_##name
extern "C" {

void copy_exception(void*, const void*) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void drop_exception(void*) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");

// std::exception_ptr::_M_addref()
void WRAP(_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv)(void** pointer) {
  void* copy;
  copy_exception(&copy, pointer);
}

// std::exception_ptr::_M_release()
void WRAP(_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv)(void** pointer) {
  void* copy = *pointer;
  drop_exception(&copy);
}

// std::ostringstream::ostringstream()
void WRAP(_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev)(
    std::ostringstream* stream) {
  new (stream) std::ostringstream(std::ios_base::out);
}

// std::stringbuf::str() const &
std::string WRAP(_ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv)(
    const std::stringbuf* buffer) {
  return buffer->str();
}

// std::stringbuf::str() &&
std::string WRAP(_ZNOSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv)(
    std::stringbuf* buffer) {
  std::string text = buffer->str();
  buffer->str("");
  return text;
}

// std::__throw_bad_array_new_length()
[[noreturn]] void WRAP(_ZSt28__throw_bad_array_new_lengthv)() { throw std::bad_array_new_length(); }

}  // extern "C"
