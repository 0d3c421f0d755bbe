"""The benchmarks' CUDA side without a GPU: its clock on a simulated device, tables, targets."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    measure,
    report,
    report_gpu,
    results,
    step,
    syncs,
    tables,
    targets,
    timing,
)
from benchmarks.implementations import IMPLEMENTATIONS, Absent, check  # noqa: E402
from benchmarks.measure import DTYPES, FLOOR, _add_cuda, _taken_by_torch  # noqa: E402
from benchmarks.optimizers import OPTIMIZERS  # noqa: E402
from benchmarks.workloads import WORKLOADS, Workload  # noqa: E402

US = 1e-6
CYCLES = 1e9  # per second


class Device:
    """A host that launches and a device that works the launches off, in virtual time.

    It has what the clock uses of `torch.cuda`, and its `_sleep` wakes up early by `eager`.
    """

    def __init__(self, queue: int = 1024, eager: float = 1.0) -> None:
        self.now = self.free = 0.0  # the host's clock; when the device has done all it was given
        self.queue, self.eager = queue, eager
        self.ends: list[float] = []  # of what was launched and isn't known to be done
        self.sleeps: list[float] = []
        self.mode = 0

    def launch(self, host: float, device: float) -> None:
        self.ends = [end for end in self.ends if end > self.now]
        if len(self.ends) >= self.queue:  # as the driver does: the host waits for a place
            self.now = self.ends.pop(0)
        self.now += host
        self.free = max(self.free, self.now) + device
        self.ends.append(self.free)

    def step(
        self, launches: int, host: float = 5 * US, device: float = 2 * US
    ) -> Callable[[], None]:
        def run() -> None:
            for _ in range(launches):
                self.launch(host, device)

        return run

    def _sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / CYCLES)
        self.launch(0.0, cycles / CYCLES / self.eager)

    def synchronize(self) -> None:
        self.now = max(self.now, self.free)

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)

    def Event(self, enable_timing: bool = False) -> Event:  # noqa: N802
        return Event(self)

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.mode = mode

    def get_sync_debug_mode(self) -> Any:
        return self.mode


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.time = device, 0.0

    def record(self) -> None:
        self.time = max(self.device.now, self.device.free)

    def query(self) -> bool:
        return self.time <= self.device.now

    def elapsed_time(self, other: Event) -> float:
        return (other.time - self.time) * 1e3


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Device, timing.CudaClock]]:
    def make(**options: Any) -> tuple[Device, timing.CudaClock]:
        device = Device(**options)
        monkeypatch.setattr(timing, "cuda", device)
        monkeypatch.setattr(syncs, "cuda", device)
        monkeypatch.setattr(timing.time, "perf_counter_ns", device.perf_counter_ns)
        monkeypatch.setattr(timing, "_flusher", lambda: device.step(1, 3 * US, 50 * US))
        return device, timing.CudaClock()

    return make


Simulate = Callable[..., tuple[Device, timing.CudaClock]]


@pytest.mark.parametrize("launches", [1, 100, 1000])
def test_the_devices_time_is_measured_apart_from_the_hosts(
    launches: int, simulate: Simulate
) -> None:
    """A host that is slower than the device, up to 5 ms: longer than any fixed short sleep."""
    device, clock = simulate()
    times = clock.measure(device.step(launches), repeats=3)
    assert times.seconds == pytest.approx(launches * 2 * US)
    assert times.host == pytest.approx(launches * 5 * US, abs=1e-8)
    assert times.done == pytest.approx(launches * 5 * US + 2 * US, abs=1e-8)
    assert times.late == 0


def test_a_device_that_is_slower_than_the_host_is_waited_for(simulate: Simulate) -> None:
    device, clock = simulate()
    times = clock.measure(device.step(10, device=30 * US), repeats=1)
    assert times.seconds == pytest.approx(300 * US)
    assert times.done == pytest.approx(305 * US, abs=1e-8)
    assert times.host == pytest.approx(50 * US, abs=1e-8)


def test_a_sleep_that_was_too_short_is_repeated_longer_and_remembered(simulate: Simulate) -> None:
    """A device that has sped up since its clock was measured wakes up early."""
    device, clock = simulate()
    device.eager = 6.0
    step = device.step(200)
    for expected in (2, 1):  # sleeps for one sample
        device.sleeps.clear()
        times = clock.measure(step, repeats=1)
        assert times.seconds == pytest.approx(200 * 2 * US) and times.late == 0
        assert len(device.sleeps) == expected


def test_a_step_with_more_launches_than_the_queue_holds_is_marked(simulate: Simulate) -> None:
    device, clock = simulate(queue=64)
    step = device.step(1000)
    times = clock.measure(step, repeats=2)
    assert times.late == 1
    assert times.seconds > 1000 * 4 * US  # it was the host's time, not the 2 ms of the device
    assert max(device.sleeps) <= timing.LONGEST_SLEEP
    device.sleeps.clear()
    clock.measure(step, repeats=2)
    assert device.sleeps == []  # no sleep would be long enough


def test_a_sample_has_at_most_so_many_steps(simulate: Simulate) -> None:
    device, clock = simulate()
    calls = []
    clock.measure(lambda: calls.append(device.launch(US, US)), repeats=1000)
    assert len(calls) == 2 * timing.MOST_STEPS


@pytest.mark.parametrize(
    ("warned", "waits", "expected"), [(0, False, 0), (2, True, 2), (0, True, 1)]
)
def test_waits_are_counted_whoever_waits(
    warned: int, waits: bool, expected: int, simulate: Simulate
) -> None:
    """By torch's count; and by a sleeping device what torch doesn't know of."""
    device, clock = simulate()

    def step() -> None:
        device.launch(US, US)
        for _ in range(warned if device.mode == "warn" else 0):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        if waits:
            device.synchronize()

    assert syncs.counted(step, clock) == expected
    assert device.mode == 0


def cuda_row(workload: str, implementation: str = "fusedopt", **fields: Any) -> dict[str, Any]:
    one = {"median": 1e-3, "p10": 9e-4, "p90": 2e-3}
    return {
        "optimizer": "adamw", "workload": workload, "dtype": "float32", "device": "cuda",
        "threads": 2, "implementation": implementation, "status": "", "seconds": one,
        "host_seconds": one, "done_seconds": one, "gb_per_s": 2900.0, "floor_percent": 95.0,
        "peak_bytes": 0, "late_percent": 0.0, "scaler_syncs": 0.0, **fields,
    }  # fmt: skip


def measured_rows() -> list[dict[str, Any]]:
    def ratio(median: float) -> dict[str, float]:
        return {"median": median, "p10": median, "p90": median}

    ours = {"ratio": ratio(1.2), "host_ratio": ratio(7.999), "done_ratio": ratio(11)}
    return [
        *(cuda_row(w, **ours, torch_best="fused") for w in ("gpt2", "resnet50", "1000x64")),
        cuda_row("gpt2", FLOOR),
        cuda_row("gpt2", "fused", scaler_syncs=0.0),
        cuda_row("gpt2", "for-loop", late_percent=100.0, scaler_syncs=1.0),
        {**cuda_row("gpt2", "apex"), "status": "absent: not installed"},
        cuda_row("16m", dtype="float16", scaler_syncs=0.2, **ours),
        cuda_row("gpt2", optimizer="sgd-momentum", status="torch's own step: off", **ours),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of results with one GPU's file."""
    record = results.Record(
        results.new_result("step", ["--device", "cuda"]), tmp_path / "some-gpu.json", ["workload"]
    )
    record.result["machine"]["gpu"] = "Some GPU"
    record.add(measured_rows())
    return tmp_path


def test_cuda_targets_are_compared_with_what_was_measured() -> None:
    verdicts = targets.verdicts(measured_rows(), "cuda")
    found = {(v.target.what, v.target.dtype): v.text for v in verdicts if v.measured is not None}
    assert found == {
        ("GPT-2, % of a copy's bandwidth", "float32"): "✓ 95 % (≥ 92 %)",
        ("ResNet-50, % of a copy's bandwidth", "float32"): "✓ 95 % (≥ 80 %)",
        ("GPT-2, device time", "float32"): "✓ 1.20 (≥ 1)",
        ("ResNet-50, the host's time", "float32"): "**✗ 7.99** (≥ 8)",
        ("1000 tensors of 64, until the device is done", "float32"): "✓ 11.00 (≥ 10)",
        ("GradScaler, syncs per step", "float32"): "✓ 0.0 (≤ 0)",
        ("GradScaler, syncs per step", "float16"): "**✗ 0.2** (≤ 0)",
    }
    # Torch's own step in our class's clothes is no figure of ours, and the CPU's table has none.
    assert all(v.optimizer == "adamw" for v in verdicts if v.measured is not None)
    assert all(v.measured is None for v in targets.verdicts(measured_rows()))


def test_every_cuda_target_can_be_measured() -> None:
    for target in targets.CUDA_TARGETS:
        assert target.workload in WORKLOADS and target.dtype in DTYPES
        assert target.bounds.keys() <= set(targets.OPTIMIZERS) <= OPTIMIZERS.keys()


@pytest.mark.parametrize("kind", report_gpu.TABLES)
def test_gpu_tables_are_made_from_all_gpus_files(kind: str, folder: Path) -> None:
    text = f"<!-- begin table: {kind} GPU -->\noutdated\n<!-- end table -->\n"
    made = report.update(text, folder)
    assert "**Some GPU**" in made and "| adamw" in made.replace("| GPT-2", "| adamw")
    assert "python -m benchmarks.step --device cuda" in made and "outdated" not in made
    assert "<sub>Some GPU, CUDA " in made
    assert report.update(made, folder) == made
    if kind == "gpu-speed":
        assert "| adamw | 1.20× | 95 % | 1.20× | 8.00× | 11.0× |" in made
        slow = "sgd-momentum, adagrad, rmsprop, adadelta"
        assert f"Not measured: GPT-2, % of a copy's bandwidth ({slow}); " in made
        assert "GradScaler, syncs per step (float16, sgd-momentum, " in made
    if kind == "gpu-steps":
        assert "| 1.00 ms, 2,900 GB/s | 95 % |" in made
        assert "1.00 ms\\* |" in made and f"\\{tables.LATE}" in made
        assert "| 1.00 ms (torch's own step) |" in made


@pytest.mark.parametrize("kind", report_gpu.TABLES)
def test_without_a_gpus_file_it_is_said_what_there_is_not(kind: str, tmp_path: Path) -> None:
    made = report_gpu.render(kind, tmp_path)
    assert made.startswith("No GPU has run the benchmarks yet")
    if kind == "gpu-speed":
        assert made.count("\n") == 1  # one sentence; the targets' table lists them
    if kind == "gpu-targets":
        assert all(target.what in made for target in targets.CUDA_TARGETS)
        assert "35 not measured (–)." in made


def test_what_only_a_device_has_is_added() -> None:
    """Ratios to the torch path that is fastest by the same measure."""
    samples = {
        "fusedopt": timing.Samples([1.0], [1.0], [2.0], [2.0], [0.5]),
        "fused": timing.Samples([1.0], [4.0], [5.0], [6.0], [0.0]),
        "foreach": timing.Samples([1.0], [9.0], [9.0], [5.0], [0.0]),
    }
    rows = [
        {"implementation": name, "seconds": {}, "first_seconds": {"median": 2.0}}
        for name in samples
    ]
    _add_cuda(rows, samples, dict.fromkeys(samples, ""), {"fusedopt": 0.0})
    ours = rows[0]
    assert ours["host_best"] == "fused" and ours["host_ratio"]["median"] == 4
    assert ours["done_best"] == "foreach" and ours["done_ratio"]["median"] == 2.5
    assert ours["late_percent"] == 50 and ours["scaler_syncs"] == 0
    assert ours["first_host_seconds"] == {"median": 2.0} and "first_seconds" not in ours
    assert rows[1]["scaler_syncs"] is None


def test_torchs_step_in_our_class_is_named() -> None:
    params = WORKLOADS["1"].parameters(torch.float32, "cpu")
    make = IMPLEMENTATIONS["fusedopt"].make
    assert _taken_by_torch(make(OPTIMIZERS["adamw"], params)) == ""
    by_torch = make(OPTIMIZERS["adamw"], params, fused=False)
    assert _taken_by_torch(by_torch).startswith("torch's own step: ")


def test_the_terminals_table_for_a_device() -> None:
    text = tables.step_table([row for row in measured_rows() if row["workload"] == "gpt2"][:-1])
    head, *lines = text.splitlines()
    assert "% of copy" in head and "until done" in head and "syncs with GradScaler" in head
    assert any("for-loop" in line and "1.00 ms*" in line for line in lines)
    assert f"  {tables.LATE}" in lines


def test_the_command_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that `--device cuda` runs, with the CPU in the place of the device."""
    parameters = Workload.parameters
    make_floor = measure.floor.make_floor
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-5)
    # Not torch.cuda.is_available, which torch's own step believes: it then looks for streams.
    monkeypatch.setattr(step, "_check_options", lambda parser, options: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 30))
    monkeypatch.setattr(results, "machine", lambda: {"gpu": "Some GPU", "cpu": "x", "cores": 2})
    monkeypatch.setattr(
        Workload, "parameters", lambda self, dtype, device, seed=0: parameters(self, dtype, "cpu")
    )
    monkeypatch.setattr(measure, "_check", lambda i, c, dtype, device: check(i, c, dtype, "cpu"))
    monkeypatch.setattr(measure, "clock_for", lambda device: timing.CpuClock())
    monkeypatch.setattr(measure.floor, "make_floor", lambda s, b, device: make_floor(s, b, "cpu"))
    monkeypatch.setattr(measure.memory, "peak_during", lambda run, device: 0)
    monkeypatch.setattr(syncs, "per_step", lambda i, choice, dtype: 0.0)
    path = tmp_path / "some-gpu.json"
    step.main(["--device", "cuda", "--workload", "1", "--seconds", "0", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "adamw · one tensor of 1 · float32 · cuda\n" in printed and "% of copy" in printed
    assert "  deepspeed, " in printed or "  deepspeed: " in printed
    rows = {row["implementation"]: row for row in results.load(path)["rows"]}
    assert {FLOOR, "fusedopt", "fused", "foreach", "for-loop", "apex"} <= rows.keys()
    ours = rows["fusedopt"]
    assert {"ratio", "host_ratio", "done_ratio", "late_percent", "scaler_syncs"} <= ours.keys()
    assert "**Some GPU**" in report_gpu.render("gpu-steps", tmp_path)


def test_a_scaled_step_is_the_training_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of the device; what can't unscale float16 itself is absent."""
    scaler, ones, parameters = torch.amp.GradScaler, torch.ones, Workload.parameters
    monkeypatch.setattr(
        Workload, "parameters", lambda self, dtype, device, seed=0: parameters(self, dtype, "cpu")
    )
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, **k: scaler("cpu", **k))
    monkeypatch.setattr(torch, "ones", lambda shape, device: ones(shape))
    choice = OPTIMIZERS["adamw"]
    syncs.scaled_step(IMPLEMENTATIONS["fusedopt"], choice, torch.float16)()
    syncs.scaled_step(IMPLEMENTATIONS["foreach"], choice, torch.float32)()
    with pytest.raises(Absent, match="FP16"):
        syncs.scaled_step(IMPLEMENTATIONS["foreach"], choice, torch.float16)
