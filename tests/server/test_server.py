"""The server, as a process of its own, as programs, browsers and attackers use it."""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.formats import format_caption
from captioner.inference import Captioner
from tests.conftest import ROOT, noise_picture
from tests.figures.browser import Opened, expected_heatmap, needs_browser
from tests.images.test_bad_pictures import damaged, encoded, odd
from tests.server.process import Server

PICTURES = sorted((ROOT / "examples").glob("*.jpg"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    running = Server(log, "--max-mb", "2", "--timeout", "2", "--queue", "4")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def command() -> Captioner:
    return Captioner.load(backend="onnx")


def multipart(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_answers_are_the_lines_that_the_command_prints(server: Server, command: Captioner) -> None:
    for path in PICTURES[:3]:
        body, headers = multipart(path.name, path.read_bytes())
        answer = server.ask("/v1/captions", body, headers=headers)
        line = json.loads(format_caption(command.caption(path), "jsonl", with_attention=True))
        found = answer.json
        assert answer.status == 200
        assert list(found) == list(line)
        assert found.pop("file") == path.name
        assert np.abs(np.array(found.pop("alphas")) - line.pop("alphas")).max() < 1e-4
        assert found.pop("log_prob") == pytest.approx(line.pop("log_prob"), abs=1e-3)
        assert found == {name: value for name, value in line.items() if name != "file"}


def test_decoding_options_are_those_of_the_command(server: Server, command: Captioner) -> None:
    from dataclasses import replace

    picture, own = PICTURES[0], command.config.decoding
    for query, options in (
        ("num_captions=3&beam_size=4", replace(own, num_captions=3, beam_size=4)),
        ("sample=true&temperature=0.7&seed=5", replace(own, sample=True, temperature=0.7, seed=5)),
        ("must_include=red&must_include=man", replace(own, must_include=("red", "man"))),
    ):
        expected = command.caption(picture, options)
        found = server.caption(picture.read_bytes(), f"with_attention=false&{query}").json
        assert found["caption"] == expected.text, query
        others = [other["caption"] for other in found.get("alternatives", ())]
        assert others == [other.text for other in expected.alternatives]
        assert "alphas" not in found


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("beam=3", "beam: there is no such option"),
        ("beam_size=0", "beam_size: Input should be greater than or equal to 1"),
        ("beam_size=1000", "less than or equal to 32"),
        ("max_words=1000", "less than or equal to 100"),
        ("temperature=2", "temperature must be 1.0 without sample"),
        ("&".join(f"must_include={word}" for word in "abcde"), "must_include may have at most 4 words"),
        ("sample=true&temperature=1e-320", "greater than or equal to 0.01"),
        ("a%0Ab=1", "a?b: there is no such option"),
        ("must_include=xyzzy", "'xyzzy' is not in the model's vocabulary"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(server: Server, query: str, message: str) -> None:
    answer = server.caption(PICTURES[0].read_bytes(), query)
    assert answer.status == 400
    assert message in answer.json["error"]
    assert "\n" not in answer.json["error"]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_bad_pictures_are_refused_and_the_good_ones_between_them_are_captioned_as_alone(
    step: int, server: Server, command: Captioner
) -> None:
    good = encoded(noise_picture(0), "JPEG")
    expected = command.caption(good).text
    statuses: Counter[int] = Counter()
    for number, (name, content) in enumerate([*damaged(), *odd()][::step]):
        answer = server.caption(content, "with_attention=false")
        text = answer.body.decode()
        assert answer.status in (200, 400), name
        assert "Traceback" not in text
        assert str(ROOT) not in text
        statuses[answer.status] += 1
        if number % 20 == 0:
            assert server.caption(good).json["caption"] == expected
    assert min(statuses[200], statuses[400]) > 10


@pytest.mark.parametrize("is_chunked", [False, True])
def test_too_large_a_body_is_refused_before_it_is_read(server: Server, is_chunked: bool) -> None:
    length = "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 3000000"
    head = f"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(head.encode())
        for _ in range(33 if is_chunked else 0):  # 2.16 MB, of which 2 are allowed
            client.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        started = time.monotonic()
        assert b" 413 " in client.recv(10_000)
        assert time.monotonic() - started < 1
    assert server.ask("/healthz").status == 200


def test_clients_that_send_all_before_they_read_see_why_they_are_refused(server: Server) -> None:
    for size, query, status in ((10_000_000, "", 413), (1_900_000, "beam_size=0", 400)):
        assert server.caption(bytes(size), query).status == status


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /v1/captions HTTP/1.1\r\nHost: loc",
        b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_clients_that_stop_are_not_waited_for(server: Server, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        started = time.monotonic()
        client.sendall(start)
        answer = client.recv(10_000)
        assert time.monotonic() - started < 15
        assert answer == b"" or b" 408 " in answer


def test_when_the_queue_is_full_the_answer_is_503_at_once(server: Server) -> None:
    body = b"x" * 1000
    head = f"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(4)]
    for client in clients:
        client.sendall(head)  # and no body: they are under way
    time.sleep(0.3)
    started = time.monotonic()
    answer = server.caption(PICTURES[0].read_bytes())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert time.monotonic() - started < 1
    for client in clients:
        client.sendall(body)
        assert b" 400 " in client.recv(10_000)
        client.close()
    assert server.caption(PICTURES[0].read_bytes()).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "evil.example@localhost"}, 421),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link to it
        ({"Host": "localhost:1"}, 200),
    ],
)
def test_pages_of_other_sites_cannot_use_the_server(
    server: Server, headers: dict[str, str], status: int
) -> None:
    assert server.ask("/v1/models", headers=headers).status == status


def test_models_health_metrics_and_interface(server: Server) -> None:
    (model,) = server.ask("/v1/models").json["models"]
    assert (model["name"], model["words"]) == ("everyday", "3,902")
    assert str(ROOT) not in json.dumps(model)
    assert server.ask("/healthz").json == {"status": "ok"}
    server.caption(PICTURES[0].read_bytes())
    metrics = server.ask("/metrics").body.decode()
    assert re.search(r'captioner_requests_total\{path="/v1/captions",status="200"\} \d', metrics)
    assert re.search(r"captioner_batch_size_count \d", metrics)
    paths = server.ask("/openapi.json").json["paths"]
    assert {"/v1/captions", "/v1/models", "/healthz", "/metrics"} == set(paths)
    names = {one["name"] for one in paths["/v1/captions"]["post"]["parameters"]}
    assert {"beam_size", "num_captions", "temperature", "must_include", "with_attention"} <= names
    documentation = server.ask("/docs").body.decode()
    assert not re.search(r'(?:src|href)="https?:', documentation)


def test_picture_with_too_many_pixels_is_refused_by_its_header(server: Server) -> None:
    answer = server.caption(encoded(Image.new("1", (9_000, 9_000)), "PNG"))
    assert (answer.status, "9000 x 9000 pixels exceed" in answer.json["error"]) == (400, True)


def test_forms_that_make_no_sense_are_refused(server: Server) -> None:
    body, headers = multipart("a.jpg", PICTURES[0].read_bytes())
    kind = headers["Content-Type"]
    for charset in ("undefined", "nonsense", "punycode"):
        answer = server.ask("/v1/captions", body, headers={"Content-Type": f"{kind}; charset={charset}"})
        assert answer.status in (200, 400), charset
    name = "a\u202e\ud83d\ude00.jpg".encode("utf-16", "surrogatepass").decode("utf-16")
    body, headers = multipart(name, PICTURES[0].read_bytes())
    assert server.ask("/v1/captions", body, headers=headers).json["file"] == name
    assert server.ask("/v1/captions", b"", headers=headers).status == 400


def test_clients_that_leave_are_no_errors_and_free_their_place(server: Server) -> None:
    before = server.log.read_text().count("Traceback")
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab")
    time.sleep(0.3)
    assert server.caption(PICTURES[0].read_bytes()).status == 200
    assert server.log.read_text().count("Traceback") == before
    assert "captioner_open_requests 0.0" in server.ask("/metrics").body.decode()


def test_every_request_has_an_id_and_a_line_in_the_log(server: Server) -> None:
    answer = server.caption(b"no picture")
    request_id = answer.headers["x-request-id"]
    time.sleep(0.2)  # the line comes after the answer
    (line,) = [line for line in server.log.read_text().splitlines() if request_id in line]
    assert re.search(r"method=POST path=/v1/captions status=400 bytes=10 ms=\d+$", line)


def test_token_is_asked_for(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", CAPTIONER_TOKEN="geheim")
    try:
        picture = PICTURES[0].read_bytes()
        assert server.ask("/").status == server.ask("/healthz").status == 200
        for headers in ({}, {"Authorization": "Bearer falsch"}, {"Authorization": "Bearer gehéim"}):
            assert server.ask("/v1/captions", picture, headers=headers).status == 401
        right = {"Authorization": "Bearer geheim"}
        assert server.ask("/v1/captions", picture, headers=right).status == 200
        assert "geheim" not in server.log.read_text()
    finally:
        server.process.kill()
        server.process.wait()


def test_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--batch-wait", "1000")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.caption, path.read_bytes()) for path in PICTURES[:3]]
        time.sleep(0.5)
        started = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - started < 10
        assert [future.result().status for future in asked] == [200] * 3


@pytest.mark.long
def test_sigterm_gives_up_what_takes_too_long(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--threads", "1")
    slow = "num_captions=32&max_words=100&min_words=100&with_attention=false"
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(server.caption, PICTURES[0].read_bytes(), slow) for _ in range(40)]
        time.sleep(2)
        started = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - started < 11  # our own share of it is less than ten
        statuses = Counter(future.result().status for future in asked)
    assert set(statuses) == {200, 503}
    assert "Traceback" not in server.log.read_text()


@needs_browser
def test_page_asks_for_the_token_and_goes_on_with_it(browser: Any, tmp_path: Path) -> None:
    server = Server(tmp_path / "log", CAPTIONER_TOKEN="geheim")
    try:
        opened = Opened(browser, server.address)
        opened.page.locator("#files").set_input_files(PICTURES[0])
        opened.page.get_by_text("enter the token first").wait_for()
        for token, seen in (("falsch", "#status:text('the token is wrong')"), ("geheim", ".picture .word")):
            opened.page.locator("#token").fill(token)
            opened.page.keyboard.press("Enter")
            opened.page.locator(seen).first.wait_for()
        opened.page.close()
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("port", ["-1", "99999"])
def test_port_that_does_not_exist_is_refused(port: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"--port must be in 0\.\.65535"):
        Server(tmp_path / "log", "--port", port)


def test_port_that_is_taken_is_an_error_of_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
        Server(tmp_path / "log", "--port", str(server.port))
    assert len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Opened]:
    opened = Opened(browser, server.address)
    yield opened
    opened.page.close()


@needs_browser
def test_picture_that_is_dropped_shows_its_caption_and_where_each_word_looked(
    opened: Opened, command: Captioner
) -> None:
    path = PICTURES[0]
    opened.page.locator("#files").set_input_files(path)
    opened.page.locator(".picture .word").first.wait_for()
    caption = command.caption(path)
    assert opened.page.locator(".text > .caption").text_content() == caption.text
    assert opened.page.locator(".file").text_content() == path.name
    heatmaps = []
    for position in range(2, 4):
        opened.word(0, position).hover()
        heatmap = opened.heatmap(0)[..., :3]
        difference = np.abs(heatmap - expected_heatmap(caption, position, len(heatmap)))
        assert difference.mean() < 3
        heatmaps.append(heatmap)
    assert np.abs(heatmaps[0] - heatmaps[1]).max() > 30
    opened.page.keyboard.press("Escape")
    opened.word(0, 0).focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator(".word.is-on").all_text_contents() == [caption.tokens[1]]
    assert not opened.reports
    assert all(url.startswith((opened.address, "data:")) for url in opened.requests)


DROP = """async (bytes) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "<b>dropped</b>.jpg", { type: "image/jpeg" }));
    const kind = KIND;
    document.body.dispatchEvent(kind);
}"""


@needs_browser
@pytest.mark.parametrize(
    "event",
    [
        'new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })',
        'new ClipboardEvent("paste", { clipboardData: data, bubbles: true })',
    ],
    ids=["drop", "paste"],
)
def test_pictures_are_dropped_and_pasted(opened: Opened, event: str) -> None:
    picture = list(encoded(noise_picture(1), "JPEG"))
    opened.page.evaluate(DROP.replace("KIND", event), picture)
    opened.page.locator(".picture .word").first.wait_for()
    assert opened.page.locator(".file").text_content() == "<b>dropped</b>.jpg"
    assert opened.page.locator(".more li").count() == 2  # three captions
    assert not opened.reports


@needs_browser
def test_a_file_that_is_no_picture_is_named_and_the_next_is_captioned(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    opened.page.locator("#files").set_input_files([tmp_path / "text.jpg", PICTURES[1]])
    opened.page.locator(".picture .word").first.wait_for()
    assert "text.jpg: not a picture" in (opened.page.locator(".failed").text_content() or "")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_is_legible(browser: Any, server: Server, tmp_path: Path, scheme: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    opened = Opened(browser, server.address, color_scheme=scheme, **phone)
    (tmp_path / "text.jpg").write_text("no picture")
    opened.page.locator("#files").set_input_files([tmp_path / "text.jpg", PICTURES[0]])
    opened.page.locator(".picture .word").first.wait_for()
    opened.word(0, 1).tap()
    assert opened.heatmap(0).sum() > 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.worst_contrast() >= 4.5
    for control in opened.page.locator("input:visible").all():
        assert control.evaluate("(element) => element.labels.length") == 1
    opened.page.close()
