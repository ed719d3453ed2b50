import pytest

from captioner.backends.external_data import external_locations


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    assert len(content) < 128
    tag = number << 3 | 2
    return bytes([tag & 0x7F | 0x80, tag >> 7] if tag > 127 else [tag]) + bytes([len(content)]) + content


@pytest.mark.parametrize(
    "path",
    [
        pytest.param((7, 5), id="initializer"),
        pytest.param((7, 15, 1), id="values of a sparse initializer"),
        pytest.param((7, 1, 5, 5), id="attribute of a node"),
        pytest.param((7, 1, 5, 6, 5), id="initializer of a graph in a node"),
        pytest.param((25, 7, 5, 10), id="attribute of a function's node"),
        pytest.param((25, 11, 5), id="default of a function's attribute"),
    ],
)
def test_file_is_found_wherever_a_tensor_may_be(path: tuple[int, ...]) -> None:
    """By the numbers of the fields in onnx.proto."""
    message = field(13, field(1, b"location") + field(2, b"/etc/passwd"))
    for number in reversed(path):
        message = field(number, message)
    assert external_locations(message) == {"/etc/passwd"}
