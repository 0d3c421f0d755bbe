"""Drop-in replacements of torch.optim's optimizers that do a whole step in one sweep over memory.

Use it as `import fusedopt as optim` in place of `import torch.optim as optim`. `SGD`, `Adagrad`,
`RMSprop`, `Adadelta`, `Adam`, `AdamW`, `Adamax`, `RAdam`, `NAdam`, `ASGD`, `Rprop` and `Lion` are
fusedopt's; every other name is torch.optim's.
"""

import sys as _sys
import typing as _typing

from fusedopt._load import load as _load_extension

_load_extension()

import torch.optim as _torch_optim  # noqa: E402
from torch.optim import lr_scheduler as lr_scheduler  # noqa: E402

# `as` says to type checkers that a name is exported.
from fusedopt import _C as _C  # noqa: E402
from fusedopt import swa_utils as swa_utils  # noqa: E402
from fusedopt._build_info import VERSION as _VERSION  # noqa: E402
from fusedopt.adadelta import Adadelta as Adadelta  # noqa: E402
from fusedopt.adagrad import Adagrad as Adagrad  # noqa: E402
from fusedopt.adam import Adam as Adam  # noqa: E402
from fusedopt.adamax import Adamax as Adamax  # noqa: E402
from fusedopt.adamw import AdamW as AdamW  # noqa: E402
from fusedopt.asgd import ASGD as ASGD  # noqa: E402
from fusedopt.clip import clip_grad_norm_ as clip_grad_norm_  # noqa: E402
from fusedopt.clip import clip_grad_value_ as clip_grad_value_  # noqa: E402
from fusedopt.clip import clip_grads_with_norm_ as clip_grads_with_norm_  # noqa: E402
from fusedopt.clip import get_total_norm as get_total_norm  # noqa: E402
from fusedopt.explain import explain as explain  # noqa: E402
from fusedopt.functional import register_when_imported as _register_when_imported  # noqa: E402
from fusedopt.lion import Lion as Lion  # noqa: E402
from fusedopt.measure import measure as measure  # noqa: E402
from fusedopt.nadam import NAdam as NAdam  # noqa: E402
from fusedopt.radam import RAdam as RAdam  # noqa: E402
from fusedopt.rmsprop import RMSprop as RMSprop  # noqa: E402
from fusedopt.rprop import Rprop as Rprop  # noqa: E402
from fusedopt.sgd import SGD as SGD  # noqa: E402

__version__ = _VERSION

# So that `from fusedopt.lr_scheduler import …` works as it does for torch.optim.
for _name, _module in list(_sys.modules.items()):
    if _name.startswith("torch.optim."):
        _sys.modules.setdefault("fusedopt" + _name.removeprefix("torch.optim"), _module)

_register_when_imported(globals()[_name] for _name in _C.optimizers())

if _typing.TYPE_CHECKING:  # to a checker __getattr__ would mean that there is no wrong name
    from torch.optim import LBFGS as LBFGS
    from torch.optim import Adafactor as Adafactor
    from torch.optim import Muon as Muon
    from torch.optim import Optimizer as Optimizer
    from torch.optim import SparseAdam as SparseAdam
    from torch.optim import swap_in_optimizer_params_and_state as swap_in_optimizer_params_and_state
else:
    _FUNCTIONS = ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm")
    __all__ = sorted(
        {name for name in dir(_torch_optim) if not name.startswith("_")}
        | {*_C.optimizers(), "explain", "measure", *_FUNCTIONS}
    )

    def __getattr__(name: str) -> _typing.Any:
        """Resolves every name that is not fusedopt's own to torch.optim's."""
        try:
            return getattr(_torch_optim, name)
        except AttributeError:
            raise AttributeError(f"neither fusedopt nor torch.optim has {name!r}") from None

    def __dir__() -> list[str]:
        """Lists fusedopt's names and torch.optim's."""
        return sorted({*globals(), *__all__})
