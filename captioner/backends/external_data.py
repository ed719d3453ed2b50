"""Where the tensors of an ONNX graph lie, read without the package onnx.

A graph from a stranger could name any file as the place of its weights, and not every runtime refuses those
outside its folder.
"""

from collections.abc import Iterator

# The fields of ONNX's messages (onnx.proto) on the way to the tensors' external data.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        10: "tensor",
        6: "graph",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def external_locations(graph: bytes) -> set[str]:
    """The files that a graph reads its tensors from, as it names them. Raises: ValueError: it is damaged."""
    found = set()
    left = [("model", memoryview(graph))]
    while left:
        kind, message = left.pop()
        if kind == "entry":
            fields = dict(_fields(message))  # of a field that is repeated the last one counts
            if bytes(fields.get(_KEY, b"")) == b"location":
                found.add(bytes(fields.get(_VALUE, b"")).decode("utf-8", "replace"))
            continue
        left += [
            (_FIELDS[kind][number], value) for number, value in _fields(message) if number in _FIELDS[kind]
        ]
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that consist of bytes, by number. Raises: ValueError."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, at = _varint(message, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        elif wire_type == _BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it ends within a field")
            yield number, message[at : at + length]
            at += length
        else:
            raise ValueError("it is not a graph")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends within a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("it is not a graph")
