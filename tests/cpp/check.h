// CHECK(condition): what the C++ tests use to end with a message where something doesn't hold.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(...)                                                                         \
  do {                                                                                     \
    if (!(__VA_ARGS__)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #__VA_ARGS__); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (false)
