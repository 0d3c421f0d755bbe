"""torch.optim.sparse_adam, as type checkers and editors find it.

In a running program `import fusedopt` gives this name to torch's module itself.
"""

from torch.optim.sparse_adam import *  # noqa: F403
