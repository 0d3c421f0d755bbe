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


def declared(folder: str, header: str = "kernels.h") -> set[str]:
    """Returns the kernels that a header declares, such as kAdam[1]."""
    found = set()
    text = (CSRC / folder / header).read_text()
    for name, sizes in re.findall(
        r"^FUSEDOPT_API extern const Kernel (k\w+)((?:\[\d\])*);", text, re.MULTILINE
    ):
        indices = itertools.product(*(range(int(size)) for size in re.findall(r"\d", sizes)))
        found |= {name + "".join(f"[{i}]" for i in each) for each in indices}
    return found


PASSES = declared("cpu", "passes.h")  # of no optimizer, and on the CPU only


@pytest.mark.parametrize(
    ("name", "passes"), [("test_sweep.cpp", PASSES), ("test_cuda_sweep.cpp", set())]
)
def test_every_kernel_is_a_case_of_the_cpp_tests(name: str, passes: set[str]) -> None:
    text = (ROOT / "tests" / "cpp" / name).read_text()
    cases = re.search(r"kCases = \{(.*?)^\};", text, re.MULTILINE | re.DOTALL)[1]
    assert declared("cpu") | passes == set(re.findall(r"cpu::(k\w+(?:\[\d\])*)", cases))


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
    on_the_cpu = definitions("cpu/*.cpp")
    assert set(on_the_cpu.pop("passes")[0]) == PASSES
    assert definitions("cuda/*.cu") == on_the_cpu
    defined = {k.split("[")[0] for kernels, _ in on_the_cpu.values() for k in kernels}
    assert defined == {kernel.split("[")[0] for kernel in declared("cpu")}
