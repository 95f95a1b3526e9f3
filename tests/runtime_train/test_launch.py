from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from froude.core.errors import FroudeError
from froude.runtime.launch import Rank, RankDiedError, launch


def sum_of_ranks(rank: Rank, extra: int) -> float:
    import torch
    import torch.distributed as dist

    with rank.process_group():
        x = torch.tensor(float(rank.index + extra))
        dist.all_reduce(x)
        rank.report({"sum": x.item()})
        return x.item()


def second_rank_fails(rank: Rank, how: str, notes: str) -> None:
    import torch
    import torch.distributed as dist

    (Path(notes) / f"{rank.index}.pid").write_text(str(os.getpid()))
    with rank.process_group():
        dist.barrier()
        if rank.index == 1:
            if how == "exception":
                raise ValueError("the dog ate it")
            if how == "froude":
                raise FroudeError("layout: 3 does not divide")
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(3))  # never completes: the other is gone
        time.sleep(60)


def sleep_for_ever(rank: Rank, notes: str) -> None:
    (Path(notes) / f"{rank.index}.pid").write_text(str(os.getpid()))
    time.sleep(120)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def pids(folder: Path) -> list[int]:
    return [int(p.read_text()) for p in sorted(folder.glob("*.pid")) if p.read_text()]


def wait_until(condition, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_results_come_back_in_rank_order_and_events_are_heard():
    heard = []
    results = launch(sum_of_ranks, 2, 10, on_event=lambda rank, message: heard.append((rank, message["sum"])))
    assert results == [21.0, 21.0]
    assert sorted(heard) == [(0, 21.0), (1, 21.0)]


@pytest.mark.parametrize(
    ("how", "cause"),
    [("exception", "ValueError: the dog ate it"), ("froude", "layout: 3 does not divide"), ("kill", "SIGKILL")],
)
def test_a_dead_rank_ends_the_others_and_is_named(tmp_path, how, cause):
    begun = time.monotonic()
    with pytest.raises(RankDiedError, match=r"^rank 1 died: ") as caught:
        launch(second_rank_fails, 2, how, str(tmp_path))
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 30
    assert len(pids(tmp_path)) == 2
    assert wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def test_ranks_end_when_the_parent_is_killed(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_launch import sleep_for_ever
        from froude.runtime.launch import launch
        launch(sleep_for_ever, 2, {str(tmp_path)!r})
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert wait_until(lambda: len(pids(tmp_path)) == 2, 30)
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))
