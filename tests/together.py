"""Several processes in one group, as a launcher starts them: forks of this process, so that nothing is imported again.

Each is told who it is by the launchers' environment variables, joins over gloo when it makes its first run, and ends without
what a process does at its end. What it returns comes back as JSON.
"""

import json
import os
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState


def together(
    processes: int, work: Callable[[], Any], *, seconds: float = 120.0, given: list[dict[str, str]] | None = None
) -> list[Any]:
    """What `work()` returns in each process, by rank; None of one that ended without a word.

    given: the environment of each rank as a launcher gave it, in place of what launchers tell in common. AssertionError
    shows what the processes said, where one failed. Then, or after so many seconds, the others are killed.
    """
    scratch = Path(tempfile.mkdtemp())
    port = free_port()
    told = given or [launched(processes, rank, port) for rank in range(processes)]
    children: dict[int, int] = {}
    try:
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                _member(rank, told[rank], scratch, work)
            children[child] = rank
        failed = _ended(dict(children), seconds)
        said = "".join(f"\nrank {n} said:\n{(scratch / f'{n}.err').read_text()}" for n in range(processes))
        assert failed is None, failed + said
        files = [scratch / f"{rank}.json" for rank in range(processes)]
        return [json.loads(file.read_text()) if file.exists() else None for file in files]
    finally:
        shutil.rmtree(scratch)


def launched(processes: int, rank: int, port: int) -> dict[str, str]:
    """What torchrun and `accelerate launch` tell a process in its environment."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {**{key: str(value) for key, value in here.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _member(rank: int, told: dict[str, str], scratch: Path, work: Callable[[], Any]) -> None:
    code = 1
    try:
        said = os.open(scratch / f"{rank}.err", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ |= told
        PartialState._reset_state()
        AcceleratorState._reset_state(True)
        (scratch / f"{rank}.json").write_text(json.dumps(work()))
        if dist.is_initialized():
            dist.destroy_process_group()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _ended(running: dict[int, int], seconds: float) -> str | None:
    """Wait for all (process -> rank); None, or what went wrong, after which none is left."""
    late = time.monotonic() + seconds
    wrong = None
    while running:
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                rank = running.pop(process)
                code = os.waitstatus_to_exitcode(status)
                wrong = wrong or (f"rank {rank} ended with {code}" if code else None)
        if wrong is None and time.monotonic() > late:
            wrong = f"ranks {sorted(running.values())} did not end in {seconds:.0f} s"
        if wrong:
            for process in running:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return wrong


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
