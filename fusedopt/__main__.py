"""`python -m fusedopt`: versions, instruction sets and devices, for a bug report."""

import platform

import torch

import fusedopt
from fusedopt import _C, _build_info, _load


def main() -> None:
    """Prints what a bug report needs."""
    rows = {
        "fusedopt": fusedopt.__version__,
        "torch": f"{torch.__version__} (built for {_build_info.TORCH_VERSION})",
        "adapters": ", ".join(_load.adapters()) or "none: built from source, for one torch",
        "kernels": f"none: {_load.why_not}" if _load.why_not else "yes",
        "compiler": _build_info.COMPILER,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "instruction sets built": ", ".join(_C.isa_built()),
        "instruction sets detected": ", ".join(_C.isa_detected()),
        "instruction set used": _C.isa(),
        "CUDA kernels": _build_info.CUDA,
    }
    for name, value in rows.items():
        print(f"{name + ':':27}{value}")


main()
