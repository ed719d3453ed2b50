"""Speed of `captioner serve` under load, compared with the command on the same pictures.

    python benchmarks/serving.py --images train2017

A server is started on this machine. For each number of clients, each of which sends its next picture when it
has the caption of the last: pictures per second, the median and the 99th percentile of the answers' times,
and how often the answer was 503. The command captions the same pictures; its rate is without its start.
Rounds alternate. With `--soak 10000` so many requests follow, and the memory of the server is reported ten
times.
"""

import http.client
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report

ROOT = Path(__file__).parent.parent
_FEW = 8  # pictures of the run of the command whose duration is subtracted


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    """A running server: its port and its process."""
    command = [sys.executable, "-m", "captioner", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r"http://\S+:(\d+)/", line) for line in process.stderr)))
            with ThreadPoolExecutor(1) as pool:
                pool.submit(sum, (1 for _ in process.stderr))  # reads the log, so that it does not fill up
                yield int(found[1]), process.pid
                process.terminate()
        finally:
            process.kill()


class Client:
    """One connection, used for one picture after another."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.num_refused = 0

    def caption(self, picture: bytes) -> float:
        """The seconds until the caption was there, retries included."""
        started = time.perf_counter()
        while True:
            self._connection.request("POST", "/v1/captions", picture, {"Content-Type": "image/jpeg"})
            answer = self._connection.getresponse()
            answer.read()
            if answer.status == 200:
                return time.perf_counter() - started
            assert answer.status == 503, answer.status
            self.num_refused += 1
            self._connection.close()
            time.sleep(float(answer.headers["Retry-After"]))


def load(port: int, pictures: Sequence[bytes], num_clients: int) -> tuple[float, list[float], int]:
    """Pictures per second, the seconds of each answer, and how many were 503."""
    clients = [Client(port) for _ in range(num_clients)]
    waiting = iter(pictures)

    def work(client: Client) -> list[float]:
        return [client.caption(picture) for picture in iter(lambda: next(waiting, None), None)]

    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        seconds = list(itertools.chain.from_iterable(pool.map(work, clients)))
    rate = len(pictures) / (time.perf_counter() - started)
    return rate, seconds, sum(client.num_refused for client in clients)


def command_rate(paths: Sequence[Path]) -> float:
    """Pictures per second of the command, without its start."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for chosen in (paths, paths[:_FEW]):
            names = Path(folder) / "names"
            names.write_text("".join(f"{path.absolute()}\n" for path in chosen))
            started = time.perf_counter()
            command = [sys.executable, "caption.py", "-", "--format", "jsonl", "--with-attention"]
            with names.open() as listed:
                subprocess.run(command, cwd=ROOT, stdin=listed, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
    return (len(paths) - _FEW) / (seconds[0] - seconds[1])


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000


def main(
    *,
    images: Path,
    num_pictures: int = 400,
    clients: tuple[int, ...] = (1, 16, 100),
    repeats: int = 3,
    soak: int = 0,
    json_out: Path | None = None,
) -> None:
    """Measure, and print tables.

    Args:
        images: Folder of JPEGs.
        num_pictures: Pictures in each measurement; those of the folder are repeated as needed.
        clients: Numbers of clients at once.
        repeats: Number of measurements.
        soak: Requests of the test for memory that is not freed; 0 leaves it out.
        json_out: Also write all values to this file.
    """
    found = sorted(images.glob("*.jpg"))
    if not found:
        sys.exit(f"serving.py: {images} contains no JPEGs")
    paths = (found * (num_pictures // len(found) + 1))[:num_pictures]
    pictures = [path.read_bytes() for path in paths]
    rates: dict[str, list[float]] = {}
    answers: dict[str, list[float]] = {}
    with server() as (port, process):
        load(port, pictures[:64], 8)  # warm up
        for _ in range(repeats):
            rates.setdefault("the command", []).append(command_rate(paths))
            for count in clients:
                rate, seconds, num_refused = load(port, pictures, count)
                rates.setdefault(f"{count} clients", []).append(rate)
                ordered = sorted(1000 * one for one in seconds)
                answers.setdefault(f"{count} clients: median", []).append(statistics.median(ordered))
                percentile = ordered[int(0.99 * (len(ordered) - 1))]
                answers.setdefault(f"{count} clients: 99th percentile", []).append(percentile)
                answers.setdefault(f"{count} clients: answers 503", []).append(num_refused)
        report({"pictures per second": rates, "milliseconds": answers}, None)
        memory = [resident_mb(process)]
        for _ in range(10 if soak else 0):
            load(port, list(itertools.islice(itertools.cycle(pictures), soak // 10)), 16)
            memory.append(resident_mb(process))
    sys.stdout.write("\nresident MB of the server: " + ", ".join(f"{one:.0f}" for one in memory) + "\n")
    if json_out is not None:
        values = {"pictures per second": rates, "milliseconds": answers, "resident MB": memory}
        json_out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
