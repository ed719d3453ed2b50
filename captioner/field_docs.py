"""Help of settings: the docstrings below the fields of a dataclass."""

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        name.target.id: " ".join(str(doc.value.value).split())
        for name, doc in pairwise(definition.body)
        if isinstance(name, ast.AnnAssign)
        and isinstance(name.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
    }
