"""What cuda_session does, most important first: if time runs out, the last is what is missing.

Times are those of a session of ten minutes; other lengths scale them, the benchmarks' own limits
too. Ratios are quoted within one run, so each training step times its own baseline again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Minutes that the limits below are made for.
MINUTES = 10

#: Files with the tests of the ops, from the repository's root.
OP_TESTS = tuple(sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tests/test_ops_*.py")))

#: Of each of these files what memcheck runs: every kernel, at few sizes.
CHECKED = (
    "fixed or test_modes or special or steps_equal or equals_reference or test_geometries "
    "or opcheck or tiles_and_splits or whole_gradient or thresholds_of_a_dy"
)
#: What racecheck and synccheck run, which are slower: every kernel that uses shared memory. The
#: library's own file calls the same kernels through another door, so it is left out.
RACED = (
    "3x3 and (geometries or equals_reference) or test_modes or test_reduce or test_stats_of "
    "or test_quantize_w or steps_equal or splits_beyond or thresholds_of_a_dy or sums_of_fixed"
)
RACED_TESTS = tuple(name for name in OP_TESTS if not name.endswith("_library.py"))


@dataclass(frozen=True)
class Step:
    """One part of the session.

    Attributes:
        name: what --steps calls it; its output is in <name>.txt.
        command: arguments after the Python interpreter; {out} is the results' folder.
        limit: seconds after which it is ended.
        words: what it does, in a phrase.
        environment: variables added to the session's.
        prefix: a program, with its arguments, that runs the interpreter; the step is left out
            where it is missing.
        architecture: the only one that it is for; empty for all.
        otherwise: variables for all later steps, if this one fails or is out of time.
        each: last arguments, of which every one has a process of its own, side by side. After an
            illegal access a process can do nothing more on the GPU; so it loses its own part alone.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    words: str
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    architecture: str = ""
    otherwise: dict[str, str] = field(default_factory=dict)
    each: tuple[str, ...] = ()


def steps(architecture: str, batch: int, minutes: float = MINUTES) -> list[Step]:
    """All steps in their order.

    Args:
        architecture: as TORCH_CUDA_ARCH_LIST has it, e.g. '9.0a'.
        batch: of the benchmarks.
        minutes: of the session. All limits are in proportion to it, but the build's is never
            shortened: nothing runs without it.
    """
    scale = minutes / MINUTES
    return [
        _build(architecture, scale),
        _probe(scale),
        _test(scale),
        *_trainings(batch, scale),
        *_measurements(batch, scale),
        *_sanitizers(scale),
        *_later_measurements(batch, scale),
    ]


def _build(architecture: str, scale: float) -> Step:
    return Step(
        "build",
        ("setup.py", "build_ext", "--inplace"),
        300 * max(1.0, scale),
        "compile the kernels",
        {"DAQ_MM_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architecture},
    )


def _probe(scale: float) -> Step:
    # Its kernels wait for the copy engine: one that counts wrong would hang each later step.
    command = ("tools/compare_wgmma.py", "--batch", "4", "--repeats", "1", "--min-time", "0")
    return Step(
        "wgmma-probe",
        (*command, "--limit-seconds", _seconds(30 * scale), "--json", "{out}/wgmma_probe.json"),
        60 * scale,
        "whether wgmma ends, with the bits of mma.sync; if not, the rest goes without",
        architecture="9.0a",
        otherwise={"DAQ_MM_WGMMA": "0"},
    )


def _test(scale: float) -> Step:
    return Step(
        "test",
        _pytest("-vv", "--maxfail=25"),
        120 * scale,
        "every op against the reference",
        each=OP_TESTS,
    )


def _trainings(batch: int, scale: float) -> list[Step]:
    return [
        _training("train", "bf16,int8-fused,fp32,int8-bf16", batch, 150 * scale, 40 * scale,
                  "training iterations of ResNet-50, and their memory",
                  "--memory-repeats", "1"),
        _training("train-graph", "bf16,int8-fused,int8-bf16", batch, 75 * scale, 20 * scale,
                  "the same as CUDA graphs", "--no-memory", "--cuda-graph"),
    ]  # fmt: skip


def _measurements(batch: int, scale: float) -> list[Step]:
    return [
        _ops("ops", batch, 110 * scale, 80 * scale, "ResNet-50's convolutions, op by op"),
        Step(
            "wgmma",
            ("tools/compare_wgmma.py", "--batch", str(batch), "--limit-seconds",
             _seconds(30 * scale), "--json", "{out}/wgmma_resnet50.json"),
            60 * scale,
            "wgmma against mma.sync, bits and time",
            architecture="9.0a",
        ),
        Step(
            "glue",
            ("tools/bench_glue.py", "--device", "cuda", "--size", f"{batch},256,56,56",
             "--min-time", "0.02", "--json", "{out}/glue.json"),
            60 * scale,
            "what stands between convolutions, against a copy",
        ),
        _training("train-compile", "bf16,int8-fused,bf16-compile", batch, 120 * scale, 20 * scale,
                  "against a compiled network", "--no-memory"),
    ]  # fmt: skip


def _sanitizers(scale: float) -> list[Step]:
    # Calls of the CUDA API that fail, fail their test; PyTorch makes some that it then ignores.
    memcheck = ("--tool", "memcheck", "--report-api-errors", "no")
    return [
        _sanitizer("memcheck", memcheck, CHECKED, OP_TESTS, 90 * scale, "accesses to memory"),
        _sanitizer("racecheck", ("--tool", "racecheck"), RACED, RACED_TESTS, 60 * scale,
                   "races in shared memory"),
        _sanitizer("synccheck", ("--tool", "synccheck"), RACED, RACED_TESTS, 40 * scale,
                   "barriers"),
    ]  # fmt: skip


def _later_measurements(batch: int, scale: float) -> list[Step]:
    return [
        _ops("ops-autotune", batch, 80 * scale, 40 * scale,
             "its products with measured tiles and splits",
             "--ops", "forward,grad_input,grad_weight", "--autotune"),
        _training("train-compile-int8", "bf16,int8-bf16,int8-bf16-compile", batch, 150 * scale,
                  20 * scale, "INT8 convolutions in a compiled network", "--no-memory"),
    ]  # fmt: skip


def _training(
    name: str, modes: str, batch: int, limit: float, rounds: float, words: str, *more: str
) -> Step:
    """bench_train on ResNet-50; its rounds end after `rounds` seconds."""
    model = ("--device", "cuda", "--model", "resnet50", "--batch", str(batch))
    command = (
        *("tools/bench_train.py", *model, "--modes", modes, "--iterations", "20"),
        *("--warm-up", "5", "--limit-seconds", _seconds(rounds), *more),
        *("--json", _json(name)),
    )
    return Step(name, command, limit, words)


def _ops(name: str, batch: int, limit: float, shapes: float, words: str, *more: str) -> Step:
    """bench_ops on ResNet-50's convolutions; it begins no new one after `shapes` seconds."""
    command = (
        *("tools/bench_ops.py", "--device", "cuda", "--batch", str(batch), "--dtypes", "bf16"),
        *("--min-time", "0.02", "--limit-seconds", _seconds(shapes), *more),
        *("--json", _json(name)),
    )
    return Step(name, command, limit, words)


def _sanitizer(
    name: str, tool: tuple[str, ...], selection: str, files: tuple[str, ...], limit: float,
    words: str,
) -> Step:  # fmt: skip
    """compute-sanitizer on our own kernels, not on the reference's, which are PyTorch's.

    Freed memory goes back at once, so that the tool sees what lies beyond a tensor's end.
    """
    ours = ("--kernel-name", "kns=daq_mm")
    return Step(
        name,
        _pytest("--maxfail=5", "-k", selection),
        limit,
        f"{words}, by compute-sanitizer on a selection of the tests",
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        ("compute-sanitizer", *tool, *ours, "--error-exitcode", "9"),
        each=files,
    )


def _pytest(*options: str) -> tuple[str, ...]:
    common = ("-m", "pytest", "--device", "cuda", "-p", "no:cacheprovider", "--tb=short")
    return (*common, *options)


def _json(name: str) -> str:
    kind, _, rest = name.partition("-")
    return f"{{out}}/{kind}_resnet50{'_' if rest else ''}{rest.replace('-', '_')}.json"


def _seconds(value: float) -> str:
    return f"{value:.0f}"
