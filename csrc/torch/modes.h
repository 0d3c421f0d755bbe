// What changes the meaning of operators for a while.
#pragma once

namespace fusedopt {

// Why operators do something else now, such as a mode, a transform or forward-mode AD; or null.
const char* why_transformed();

}  // namespace fusedopt
