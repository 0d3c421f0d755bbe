"""What no compiler sees in the sources: each kernel on each device and in the tests; doubles."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"


def bodies_of_elements() -> Iterator[tuple[str, str]]:
    """Yields file and text of every function that computes one element, in the rules' `T`."""
    body = r"^( *)FUSEDOPT_HD [^\n]*\(T&? [^\n]*\{(.*\}$|\n(?s:.*?)^\1\}$)"
    for path in sorted((CSRC / "rules").iterdir()):
        for found in re.finditer(body, path.read_text(), re.MULTILINE):
            yield path.stem, found[2]


def test_elements_are_computed_without_doubles() -> None:
    """In float32 a literal without `T(...)` makes doubles of its operands, at twice the time."""
    found = list(bodies_of_elements())
    rules = {path.stem for path in (CSRC / "rules").iterdir()}
    assert {name for name, _ in found} == rules
    for name, body in found:
        plain = re.sub(r"\bT\([\d.e+-]+\)", "", body)
        assert not re.search(r"\bdouble\b|\d\.|\.\d|\b\d+e", plain), (name, body)


def declared(folder: str) -> set[str]:
    """Returns the kernels that a folder's kernels.h declares, such as kAdam[1]."""
    found = set()
    text = (CSRC / folder / "kernels.h").read_text()
    for name, sizes in re.findall(r"^extern const Kernel (k\w+)((?:\[\d\])*);", text, re.MULTILINE):
        indices = itertools.product(*(range(int(size)) for size in re.findall(r"\d", sizes)))
        found |= {name + "".join(f"[{i}]" for i in each) for each in indices}
    return found


@pytest.mark.parametrize("name", ["test_sweep.cpp", "test_cuda_sweep.cpp"])
def test_every_kernel_is_a_case_of_the_cpp_tests(name: str) -> None:
    text = (ROOT / "tests" / "cpp" / name).read_text()
    cases = re.search(r"kCases = \{(.*?)^\};", text, re.MULTILINE | re.DOTALL)[1]
    assert declared("cpu") == set(re.findall(r"cpu::(k\w+(?:\[\d\])*)", cases))


def definitions(pattern: str) -> dict[str, tuple[list[str], list[str]]]:
    """Returns, by file: the kernels that it defines, and the rules that it makes them of."""
    texts = {path.stem: path.read_text() for path in CSRC.glob(pattern)}
    found = {
        stem: (
            re.findall(r"^const Kernel (k\w+(?:\[\d\])*) =", text, re.MULTILINE),
            ["".join(rules.split()) for rules in re.findall(r"make_kernel<([^;]*?)>\(", text)],
        )
        for stem, text in texts.items()
    }
    return {stem: of for stem, of in found.items() if of[0]}


def test_the_devices_have_the_same_kernels() -> None:
    """Where there is no nvcc, no compiler sees that one is missing."""
    assert declared("cuda") == declared("cpu")
    assert definitions("cuda/*.cu") == definitions("cpu/*.cpp")
    defined = {k.split("[")[0] for kernels, _ in definitions("cpu/*.cpp").values() for k in kernels}
    assert defined == {kernel.split("[")[0] for kernel in declared("cpu")}
