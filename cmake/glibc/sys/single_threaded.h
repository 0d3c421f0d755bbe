// Takes the place of glibc's, for wheels: the variable is new in glibc 2.32, and wheels are for 2.28
// and newer. libstdc++ then counts references atomically also where there is one thread.
#pragma once

inline constexpr char __libc_single_threaded = 0;
