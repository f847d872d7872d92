"""A real ``vllm serve`` on this machine's CPU, in a process group of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
from tests.vllm_real.small import MAX_LEN, small_llama

START_SECONDS = 240


class Server:
    """Serves ``source``, or ``small_llama(0, tied=True)`` from an untied copy."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        source: Path | None = None,
        max_len: int = MAX_LEN,
        url: str | None = None,
        **environment: str,
    ) -> None:
        self.log = folder / "server.log"
        self.url = url or f"http://127.0.0.1:{_free_port()}"
        port = int(self.url.rpartition(":")[2])
        model = source or folder / "model"
        if source is None:
            tied, untied = small_llama(0, tied=True), small_llama(0, tied=False)
            untied.load_state_dict(tied.state_dict())
            untied.save_pretrained(model)
        command = [
            str(Path(sys.executable).with_name("vllm")),
            *("serve", str(model), "--host", "127.0.0.1", "--port", str(port)),
            *("--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(max_len), "--max-num-seqs", "16"),
            *("--kv-cache-memory-bytes", "200000000", *flags),
        ]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"VLLM_NO_USAGE_STATS": "1"} | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.5)
        self.stop()
        raise AssertionError(f"the server did not start: {self.log.read_text()[-3000:]}")

    def kill_engine(self) -> None:
        """The process with the model, not the one that answers HTTP."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        cores = [child for child in children if "EngineCore" in child.name()]
        cores = cores or [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        assert cores, [child.name() for child in children]
        for core in cores:
            core.kill()

    def kill(self) -> None:
        """The process that answers HTTP, without a chance to say goodbye."""
        self._process.kill()

    def stop(self) -> None:
        """Everything that was started."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._signal(signal.SIGKILL)
        self._process.wait(20)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
