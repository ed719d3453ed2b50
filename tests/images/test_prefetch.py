"""Results of threads come in order, and are computed no further ahead than stated."""

import threading
import time
from pathlib import Path

import pytest

from captioner.errors import ImageError
from captioner.images import prefetch
from captioner.images.prefetch import available_cores, map_in_threads, prefetch_batches


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
def test_map_in_threads_is_map_and_takes_so_many_items_ahead(num_threads: int, ahead: int) -> None:
    taken: list[int] = []

    def items() -> "list[int]":
        for item in range(20):
            taken.append(item)
            yield item

    def slower_first(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    # One thread that is at most one item ahead is not worth it: the caller maps each item itself.
    taken_ahead = 0 if num_threads == 1 and ahead <= 1 else ahead
    results = []
    for result in map_in_threads(slower_first, items(), num_threads=num_threads, ahead=ahead):
        results.append(result)
        assert len(taken) == min(20, len(results) + taken_ahead)
    assert results == [item * item for item in range(20)]


def test_map_in_threads_uses_the_given_number_of_threads() -> None:
    meeting = threading.Barrier(3, timeout=20)
    assert list(map_in_threads(lambda _: meeting.wait() >= 0, range(6), num_threads=3, ahead=3)) == [True] * 6


def test_items_that_are_no_longer_wanted_are_not_computed() -> None:
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        time.sleep(0.05)
        return item

    results = map_in_threads(begin, range(100), num_threads=1, ahead=50)
    assert next(results) == 0
    results.close()
    assert len(begun) < 5


def test_error_of_the_function_is_raised_at_its_position() -> None:
    results = map_in_threads(lambda item: 1 // item, [1, 1, 0, 1], num_threads=2, ahead=4)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_contain_loaded_pictures_and_errors_at_their_positions() -> None:
    def load(path: Path) -> str:
        if path.name == "2":
            raise ImageError(str(path), "is odd")
        return path.name

    paths = [Path(str(number)) for number in range(5)]
    batches = list(prefetch_batches(paths, load, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    loaded = [pair for batch in batches for pair in batch]
    assert [source for source, _ in loaded] == paths
    assert [str(content) for _, content in loaded] == ["0", "1", "2: is odd", "3", "4"]


@pytest.mark.parametrize(
    ("own_cgroup", "limits", "expected"),
    [
        ("0::/pod/job", {}, 8),
        ("0::/pod/job", {"pod/job/cpu.max": "max 100000"}, 8),
        ("0::/pod/job", {"pod/job/cpu.max": "250000 100000"}, 3),
        ("0::/pod/job", {"pod/job/cpu.max": "max 100000", "pod/cpu.max": "150000 100000"}, 2),
        ("0::/of/the/host", {"cpu.max": "20000 100000"}, 1),
        ("0::/pod", {"pod/cpu.max": "9900000 100000"}, 8),
        ("3:cpu,cpuacct:/job", {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1"}, 8),
        (
            "7:memory:/job\n3:cpu,cpuacct:/job",
            {
                "memory/job/cpu.max": "100000 100000",
                "cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_cores_are_those_that_the_process_and_its_container_allow(
    own_cgroup: str,
    limits: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in limits.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    (tmp_path / "own").write_text(f"{own_cgroup}\n")
    monkeypatch.setattr(prefetch, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(prefetch, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cores() == expected
