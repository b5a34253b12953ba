"""What signals do to a process whose engine is in the middle of a step."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
# an engine whose thread computes in C for ever, as in a long step, and a child as vLLM's engines are
SERVER = """
import asyncio, signal, socket, subprocess, sys, threading, torch
from motet.server.serve import end_process, make_server
from tests.server.conftest import make_service

def compute():
    matrix = torch.zeros(1500, 1500)
    while True:
        matrix = matrix @ matrix

service = make_service(drain_seconds=float(sys.argv[1]))

async def never():
    await asyncio.Event().wait()

service.engine.close = never
threading.Thread(target=compute, daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
port = socket.create_server(("127.0.0.1", 0))
print(child.pid, flush=True)
service.admission.reserve(1)
server = make_server(service, end_process)
server.run(sockets=[port])
"""


@pytest.mark.parametrize(("drain", "signals", "longest"), [(600.0, 2, 3.0), (0.1, 1, 12.0)])
def test_the_process_ends_cleanly_whatever_the_engine_does(drain: float, signals: int, longest: float) -> None:
    """By a second signal at once, and by the first one where the engine does not end in its time."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(drain)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        time.sleep(1.5)  # uvicorn has put its handlers in place
        began = time.monotonic()
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert time.monotonic() - began < longest
    assert process.returncode == 128 + signal.SIGTERM
    assert "terminate called" not in said
    assert "Traceback" not in said
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
