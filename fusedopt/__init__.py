"""Drop-in replacements of torch.optim's optimizers that do a whole step in one sweep over memory.

Use it as `import fusedopt as optim` in place of `import torch.optim as optim`. `SGD`, `Adagrad`,
`RMSprop`, `Adadelta`, `Adam`, `AdamW`, `Adamax`, `RAdam`, `NAdam`, `ASGD`, `Rprop` and `Lion` are
fusedopt's; every other name is torch.optim's.
"""

import sys as _sys
from typing import Any as _Any

from fusedopt._load import load as _load_extension

_load_extension()

import torch.optim as _torch_optim  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402, F401

from fusedopt import _C, swa_utils  # noqa: E402, F401
from fusedopt._build_info import VERSION as __version__  # noqa: E402, F401
from fusedopt.adadelta import Adadelta  # noqa: E402, F401
from fusedopt.adagrad import Adagrad  # noqa: E402, F401
from fusedopt.adam import Adam  # noqa: E402, F401
from fusedopt.adamax import Adamax  # noqa: E402, F401
from fusedopt.adamw import AdamW  # noqa: E402, F401
from fusedopt.asgd import ASGD  # noqa: E402, F401
from fusedopt.clip import (  # noqa: E402, F401
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from fusedopt.explain import explain  # noqa: E402, F401
from fusedopt.lion import Lion  # noqa: E402, F401
from fusedopt.nadam import NAdam  # noqa: E402, F401
from fusedopt.radam import RAdam  # noqa: E402, F401
from fusedopt.rmsprop import RMSprop  # noqa: E402, F401
from fusedopt.rprop import Rprop  # noqa: E402, F401
from fusedopt.sgd import SGD  # noqa: E402, F401

# So that `from fusedopt.lr_scheduler import …` works as it does for torch.optim.
for _name, _module in list(_sys.modules.items()):
    if _name.startswith("torch.optim."):
        _sys.modules.setdefault("fusedopt" + _name.removeprefix("torch.optim"), _module)

_FUNCTIONS = ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm")
__all__ = sorted(
    {name for name in dir(_torch_optim) if not name.startswith("_")}
    | {*_C.optimizers(), "explain", *_FUNCTIONS}
)


def __getattr__(name: str) -> _Any:
    """Resolves every name that is not fusedopt's own to torch.optim's."""
    try:
        return getattr(_torch_optim, name)
    except AttributeError:
        raise AttributeError(f"neither fusedopt nor torch.optim has {name!r}") from None


def __dir__() -> list[str]:
    """Lists fusedopt's names and torch.optim's."""
    return sorted({*globals(), *__all__})
