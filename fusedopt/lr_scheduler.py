"""torch.optim.lr_scheduler, as type checkers and editors find it.

In a running program `import fusedopt` gives this name to torch's module itself.
"""

from torch.optim.lr_scheduler import *  # noqa: F403
