"""Speed of the serving simulator: jumping against stepping, on the same machine in the same run.

    python benchmarks/serve.py [--trace azure_conv.csv.gz] [--stepping] [--json]

Without a trace, log-normal lengths with the means of Azure's 2023 conversation trace stand in for it.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from froude.reports.tables import print_table, seconds
from froude.serving.api import Deployment, build_deployment, make_load, run_deployment
from froude.workloads.trace import Trace

STAND_IN = "lognormal:in=1155,out=211,cv=1"
# name, model, cluster, tensor parallel, rate, extra
CASES: tuple[tuple[str, str, str, int, float, dict[str, Any]], ...] = (
    ("8B, 1 req/s", "llama-3.1-8b", "h100-sxm:1", 1, 1.0, {}),
    ("8B, 20 req/s", "llama-3.1-8b", "h100-sxm:1", 1, 20.0, {}),
    ("8B, 20 req/s, small cache", "llama-3.1-8b", "h100-sxm:1", 1, 20.0, {"gpu_memory_utilization": 0.3}),
    ("70B, 2 req/s", "llama-3.1-70b", "h100-sxm:4", 4, 2.0, {}),
    ("8B, 1 req/s, sarathi-serve", "llama-3.1-8b", "h100-sxm:1", 1, 1.0, {"scheduler": "sarathi-serve"}),
    ("8B x 8 replicas, 80 req/s", "llama-3.1-8b", "h100-sxm:8", 1, 80.0, {"replicas": 8}),
)


def measure(built: Deployment, load: Trace, stepping: bool, repeats: int) -> dict[str, Any]:
    """Best of a few runs, CPU seconds of the loop and what comes with it; and the same by stepping, once."""
    best_s, wall_s, outcome = float("inf"), float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = run_deployment(built, load)
        best_s = min(best_s, time.process_time() - start)
        wall_s = min(wall_s, result.sim_wall_s)
        outcome = result.outcome
    assert outcome is not None
    row: dict[str, Any] = {
        "requests": len(load),
        "iterations": outcome.iterations,
        "preemptions": sum(outcome.preemptions),
        "jump_s": best_s,
        "requests_per_s": len(load) / best_s,
        "loop_wall_s": wall_s,
    }
    if stepping:
        start = time.process_time()
        stepped = run_deployment(built, load, stepping=True).outcome
        row["step_s"] = time.process_time() - start
        row["equal"] = stepped.first_ps == outcome.first_ps and stepped.finish_ps == outcome.finish_ps
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default=STAND_IN)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--stepping", action="store_true", help="also step through the first case")
    parser.add_argument("--million", action="store_true", help="also a million requests")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = {}
    for index, (name, model, cluster, tp, rate, extra) in enumerate(CASES):
        built = build_deployment(model, cluster, tensor_parallel=tp, **extra)
        load = make_load(given.trace, rate=rate, requests=given.requests)
        rows[name] = measure(built, load, given.stepping and index == 0, given.repeats)
    if given.million:
        built = build_deployment("llama-3.1-8b", "h100-sxm:1")
        rows["8B, 15 req/s, a million"] = measure(
            built, make_load(given.trace, rate=15.0, requests=1_000_000), False, 1
        )
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    columns = ("case", "requests", "iterations", "preemptions", "jump, CPU", "requests/s", "step, CPU", "equal")
    print_table(
        "Serving simulator, one core",
        columns,
        [
            (
                name,
                f"{row['requests']:,}",
                f"{row['iterations']:,}",
                f"{row['preemptions']:,}",
                seconds(row["jump_s"]),
                f"{row['requests_per_s']:,.0f}",
                seconds(row["step_s"]) if "step_s" in row else "",
                str(row.get("equal", "")),
            )
            for name, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
