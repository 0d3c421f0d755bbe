// Lets a Python process tell callgrind when to count.
#include <valgrind/callgrind.h>

void start(void) { CALLGRIND_START_INSTRUMENTATION; }

void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
