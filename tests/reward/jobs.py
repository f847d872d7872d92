"""What the tests of the pool let its processes do; also verifiers as a user might write them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def double(value: int) -> int:
    return 2 * value


def pid() -> int:
    return os.getpid()


def modules() -> list[str]:
    return sorted(sys.modules)


def hang() -> int:
    """Inside C code that holds the interpreter."""
    return len(str(9**9**9))


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def nap_and_pid(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def deaf() -> None:
    """Sets every signal aside that can be, and hangs."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(0.01)


def threads() -> None:
    for _ in range(4):
        threading.Thread(target=deaf_thread, daemon=False).start()
    deaf()


def deaf_thread() -> None:
    while True:
        pass


def hang_without_alarm() -> int:
    signal.alarm(0)
    return hang()


def start_another(then: str) -> None:
    """Leave a process behind, and hang or die."""
    subprocess.Popen(["sleep", "77"])
    die(3) if then == "die" else hang()


def die(code: int) -> None:
    os._exit(code)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def abort() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    sys.exit(3)


def fill(gib: float) -> int:
    return len(bytearray(int(gib * 2**30)))


class OddError(Exception):
    """Cannot be made again from what pickle keeps of it."""

    def __init__(self, *, needed: int) -> None:
        super().__init__("odd")


def odd() -> None:
    raise OddError(needed=1)


def talk() -> str:
    os.write(1, b"to stdout\n")
    os.write(2, b"to stderr\n")
    print("printed", flush=True)
    return sys.stdin.read()


def half(response: str, gold: str) -> float:
    return 1.0 if gold in response else 0.5 if "close" in response else 0.0


def right(response: str, gold: str) -> bool:
    return gold in response


def told(response: str, gold: str) -> object:
    """Does what the response says."""
    match response.partition(":")[::2]:
        case "return", value:
            return {"text": "1.0", "two": 2.0, "nan": float("nan"), "none": None}[value]
        case "raise", _:
            raise ValueError(response)
        case "die", code:
            os._exit(int(code))
        case "hang", _:
            return hang()
        case "write", path:
            Path(path).write_text("\n".join(modules()))
    return gold in response


_kept: list[bytearray] = []


def hoard(response: str, gold: str) -> float:
    """Keeps 60 MiB of each answer."""
    _kept.append(bytearray(60 << 20))
    return 1.0


NOT_A_FUNCTION = 3
