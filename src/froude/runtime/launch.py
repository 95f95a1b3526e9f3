"""Start ranks as local processes, hear from them, and never leave one behind.

Each rank is its own Python process with its own session. The parent passes the work through the rank's standard input
and holds that pipe open: when the parent goes away, however it dies, the pipe closes and the rank ends itself. When a
rank dies, by an exception, a signal or the kernel's hand, the parent ends all others and says which one it was and why.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from froude.core.errors import FroudeError

SETTLE_S = 0.5  # after the first death, how long to wait for the other ranks to say what they saw
END_S = 2.0  # between asking a process to end and ending it

# What a collective says when its peer is gone: a consequence of another rank's death, not a cause.
_PEER_LOST = ("connection closed by peer", "connection reset by peer", "connectfullmesh", "broken pipe", "timed out")


# glibc hands large freed blocks back to the kernel, and every step pays again for having them zeroed and mapped. Ranks
# keep what they freed, as PyTorch's allocator does on a GPU. Other C libraries ignore these variables.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**40)}


class RankDiedError(FroudeError):
    """A rank ended before its work was done."""

    def __init__(self, rank: int, cause: str, details: str = "") -> None:
        self.rank, self.cause, self.details = rank, cause, details
        super().__init__(f"rank {rank} died: {cause}; the other ranks were ended")


@dataclass(frozen=True)
class Rank:
    """What a rank's function is given.

    Attributes:
        index, count: which rank this is, of how many.
        rendezvous: a path that only the ranks of this launch share, fit for ``file://`` initialisation.
        threads: processor cores this rank may use.
    """

    index: int
    count: int
    rendezvous: str
    threads: int
    _pipe: Connection

    def report(self, message: Any) -> None:
        """Send something to the parent."""
        self._pipe.send(("event", message))

    @contextlib.contextmanager
    def process_group(self) -> Iterator[None]:
        """Join the other ranks over gloo, with the rank's share of cores; leave when done."""
        import torch
        import torch.distributed as dist

        torch.set_num_threads(self.threads)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        dist.init_process_group("gloo", init_method=f"file://{self.rendezvous}", rank=self.index, world_size=self.count)
        try:
            yield
        finally:
            dist.destroy_process_group()


Work = Callable[..., Any]


def cores_per_rank(ranks: int) -> int:
    """Cores each of ``ranks`` processes gets when they share this machine evenly; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // ranks)


def launch(
    work: Work,
    ranks: int,
    *arguments: Any,
    on_event: Callable[[int, Any], None] | None = None,
    threads: int | None = None,
) -> list[Any]:
    """Run ``work(rank, *arguments)`` in ``ranks`` processes and return what each returned.

    Args:
        work: a function that can be pickled (defined at the top of a module).
        ranks: processes.
        on_event: called in this process with (rank, message) for everything a rank reports.
        threads: cores per rank; an even share of this machine unless given.

    Raises:
        RankDiedError: one sentence naming the rank and the cause.
    """
    if b"__main__" in pickle.dumps((work, arguments)):
        raise FroudeError(
            "launch: what ranks run must live in an importable module, not in the script that was started"
        )
    threads = threads or cores_per_rank(ranks)
    with tempfile.TemporaryDirectory(prefix="froude-") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        pipes: list[Connection] = []
        try:
            for index in range(ranks):
                process, pipe = _start(work, arguments, index, ranks, threads, Path(folder))
                processes.append(process)
                pipes.append(pipe)
            return _listen(processes, pipes, Path(folder), on_event)
        finally:
            _end(processes)
            for pipe in pipes:
                pipe.close()


def _start(
    work: Work, arguments: tuple[Any, ...], index: int, ranks: int, threads: int, folder: Path
) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe(duplex=False)
    job = pickle.dumps((work, arguments, index, ranks, threads, str(folder / "rendezvous")))
    environment = {
        **_KEEP_MEMORY,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    with (folder / f"stderr-{index}").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "froude.runtime.launch", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stderr=stderr,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=environment,
        )
    theirs.close()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(len(job).to_bytes(8, "little") + job)
        process.stdin.flush()
    return process, ours


def _listen(
    processes: list[subprocess.Popen[bytes]],
    pipes: list[Connection],
    folder: Path,
    on_event: Callable[[int, Any], None] | None,
) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, RankDiedError] = {}
    deadline: float | None = None
    open_pipes = {pipe: rank for rank, pipe in enumerate(pipes)}
    while open_pipes and (deadline is None or time.monotonic() < deadline):
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        for pipe in wait(list(open_pipes), timeout):
            assert isinstance(pipe, Connection)
            rank = open_pipes[pipe]
            try:
                kind, message = pipe.recv()
            except (EOFError, OSError):
                del open_pipes[pipe]
                if rank not in results and rank not in failures:
                    failures[rank] = RankDiedError(rank, _exit_cause(processes[rank], folder / f"stderr-{rank}"))
                    deadline = deadline or time.monotonic() + SETTLE_S
                continue
            if kind == "event":
                if on_event is not None and deadline is None:
                    on_event(rank, message)
            elif kind == "result":
                results[rank] = message
            else:
                failures[rank] = RankDiedError(rank, *message)
                deadline = deadline or time.monotonic() + SETTLE_S
    if failures:
        raise _root_cause(failures)
    return [results[rank] for rank in range(len(pipes))]


def _root_cause(failures: dict[int, RankDiedError]) -> RankDiedError:
    """The failure that is not a consequence of another's; the first one heard of when in doubt."""
    first = [e for e in failures.values() if not any(sign in e.cause.lower() for sign in _PEER_LOST)]
    return (first or list(failures.values()))[0]


def _exit_cause(process: subprocess.Popen[bytes], stderr: Path) -> str:
    try:
        status = process.wait(END_S)
    except subprocess.TimeoutExpired:
        return "it stopped answering"
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    said = stderr.read_text("utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return f"it exited with status {status} before it was done" + (f" ({last[:200]})" if last else "")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End whatever still runs, and reap it."""
    for process in processes:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if process.poll() is None and process.returncode is None:
            process.terminate()
    until = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])


def _end_with_parent() -> None:
    """Block until the parent's end of our standard input closes, then end at once."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def _main() -> None:
    stdin: Any = sys.stdin.buffer.raw  # type: ignore[union-attr]
    job = _read_exactly(stdin, int.from_bytes(_read_exactly(stdin, 8), "little"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = Connection(int(sys.argv[1]), readable=False)
    try:
        work, arguments, index, count, threads, rendezvous = pickle.loads(job)
        result = work(Rank(index, count, rendezvous, threads, pipe), *arguments)
    except BaseException as error:
        said = " ".join(str(error).split())
        cause = said if isinstance(error, FroudeError) else f"{type(error).__name__}: {said}"
        pipe.send(("error", (cause[:500], traceback.format_exc())))
        os._exit(1)
    pipe.send(("result", result))
    pipe.close()
    # Skip interpreter teardown: background threads of torch may outlive it and abort.
    sys.stdout.flush()
    os._exit(0)


def _read_exactly(stream: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            os._exit(1)
        data += more
    return data


if __name__ == "__main__":
    _main()
