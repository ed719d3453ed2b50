"""8-bit matrix products in exported graphs.

Weights are rounded per output and their inputs per row, so a caption does not depend on its neighbours in the
batch. The graph computes the rounded weights when it is loaded and stores none.
"""

from typing import Any

import onnx_ir as ir

_LARGEST, _LARGEST_WEIGHT = 127, 63
_MIDDLE = 128
_TINY = 1e-12  # the scale of a row of zeros: any number but zero


def quantize_products(graph: ir.Graph) -> int:
    """Compute every product of floats with a weight in 8 bits; returns how many there were.

    A product is x @ transposed(W), as the exporter writes a linear layer. Each row of x is divided by its
    largest magnitude / 127 and rounded; the sums of products are whole numbers, and are scaled back. Rows of
    W are rounded to 63, because CPUs without VNNI add pairs of products in 16 bits.
    """
    products = [node for node in graph if _weight(node) is not None]
    for node in products:
        _quantize(graph, node)
    return len(products)


def _weight(node: ir.Node) -> ir.Value | None:
    """The weight, (outputs, inputs), if the node multiplies by one."""
    if node.op_type != "MatMul":
        return None
    transpose = node.inputs[1].producer() if node.inputs[1] is not None else None
    if transpose is None or transpose.op_type != "Transpose":
        return None
    weight = transpose.inputs[0]
    assert weight is not None
    widened = weight.producer()
    stored = weight if widened is None else widened.inputs[0]
    if stored is None or not stored.is_initializer() or stored.shape is None or stored.shape[0] == 1:
        return None
    return weight


def _quantize(graph: ir.Graph, product: ir.Node) -> None:
    weight, given = _weight(product), product.inputs[0]
    assert weight is not None
    assert given is not None
    added: list[ir.Node] = []

    def apply(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        added.append(node)
        return node.outputs[0]

    def constant(value: Any, dtype: ir.DataType) -> ir.Value:
        return apply("Constant", value=ir.tensor(value, dtype=dtype))

    last = constant([-1], ir.DataType.INT64)
    tiny = constant(_TINY, ir.DataType.FLOAT)

    def rounded(rows: ir.Value, to: int) -> tuple[ir.Value, ir.Value]:
        """Whole numbers in -to..to for each row, and the scale to multiply them by."""
        largest = constant(to, ir.DataType.FLOAT)
        magnitude = apply("ReduceMax", apply("Abs", rows), last, keepdims=1)
        scale = apply("Max", apply("Div", magnitude, largest), tiny)
        return apply("Round", apply("Div", rows, scale)), scale

    weight_rounded, weight_scale = rounded(weight, _LARGEST_WEIGHT)
    weight_bytes = apply("Transpose", apply("Cast", weight_rounded, to=ir.DataType.INT8), perm=(1, 0))
    given_rounded, given_scale = rounded(given, _LARGEST)
    # CPUs multiply unsigned by signed bytes, so those of a row are shifted up.
    shifted = apply("Add", given_rounded, constant(_MIDDLE, ir.DataType.FLOAT))
    given_bytes = apply("Cast", shifted, to=ir.DataType.UINT8)
    sums = apply("MatMulInteger", given_bytes, weight_bytes, constant(_MIDDLE, ir.DataType.UINT8))
    by_output = apply(
        "Mul", apply("Cast", sums, to=ir.DataType.FLOAT), apply("Transpose", weight_scale, perm=(1, 0))
    )
    # The rows' scales come last: if multiplied first, onnxruntime would fuse them into one for all rows.
    result = apply("Mul", by_output, given_scale)
    graph.insert_before(product, added)
    product.outputs[0].replace_all_uses_with(result)
    graph.remove(product, safe=True)
