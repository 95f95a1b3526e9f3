"""What `froude bench` measures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from froude.planning.bench import SERVE_CASES, measure_serve, peak_rss_bytes


def test_every_case_agrees_with_stepping():
    for case in SERVE_CASES:
        if case.replicas > 8:
            continue
        row = measure_serve(replace(case, requests=60, stepped=20, repeats=1), None)
        assert row["reference"]["equal"] and row["reference"]["requests"] == 20
        assert row["requests"] == 60 and row["cpu_s"] > 0


def test_memory_of_this_process():
    assert 1e7 < peak_rss_bytes() < 1e11


def test_a_serving_command_imports_no_more_than_it_uses():
    """Half a second of a command that takes less."""
    code = (
        "import sys; from froude.cli import app; from froude.serving.deployment import build_deployment; "
        "build_deployment('llama-3.1-8b', 'h100-sxm:1'); "
        "print({'scipy', 'polars', 'altair', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
