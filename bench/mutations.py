"""Small wrong changes of a module's text, one at a time: what a test suite should notice.

`mutations(source)` walks the syntax tree. Docstrings, annotations, imports, decorators, f-strings, what is raised and
`__dunder__` assignments stay as they are: no test of values should see those.
"""

import ast
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """One wrong change."""

    line: int  # of the changed expression, in the original
    function: str  # dotted, as in "dpo.loss"; "" at the top of the module
    old: str  # the statement (of a compound one the first line), or a part of a long one, as ast.unparse writes it
    new: str
    source: str  # the whole module with the change


class Place(NamedTuple):
    """Where a node stands."""

    function: str = ""
    around: tuple[ast.AST, ...] = ()  # from the statement down to the node itself
    indexing: bool = False  # directly inside the brackets of a subscript
    kinds: Mapping[str, str] = {}  # parameter -> annotation, of the functions around
    returns: str = ""  # annotation of the innermost function


Site = tuple[ast.AST, str, int | None, Place]  # parent, field, index in the field if it is a list

SHOWN = 120  # characters
UNTOUCHED = (ast.Import, ast.ImportFrom, ast.Raise, ast.JoinedStr)
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
FLIPPED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # to swap these is to negate
SIDES = {"chosen": "rejected", "rejected": "chosen"}
TEXTS = {
    **SIDES,
    "policy": "ref",
    "ref": "policy",
    "logp": "ref_logp",
    "ref_logp": "logp",
    "amax": "amin",
    "sum": "mean",
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
METHODS = {
    **FUNCTIONS, "sum": "mean", "mean": "sum", "amax": "amin", "amin": "amax", "minimum": "maximum",
    "maximum": "minimum", "argmax": "argmin", "argmin": "argmax", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "new_zeros": "new_ones", "total": "mean",
}  # fmt: skip
DROPPED = {"exp", "log", "expm1", "log1p", "sqrt", "abs", "sigmoid", "softplus", "logsigmoid", "softmax", "log_softmax"}
CONSTANTS = {0: 1, 1: 0, 0.5: 1, 2: 1}
SYMMETRIC = {"minimum", "maximum", "min", "max", "zip", "isinstance", "equal", "allclose", "logaddexp", "set"}


def mutations(source: str) -> list[Mutation]:
    """Every mutation of a module, in the order of its text, those left out that give the same text as another."""
    tree = ast.parse(source)
    seen, found = {ast.unparse(tree)}, []
    for parent, field, index, place in _sites(tree, Place()):
        node = _get(parent, field, index)
        part = next((n for n in place.around if len(_shown(n)) <= SHOWN), node)
        old = _shown(part)
        for other in _variants(node, place):
            _set(parent, field, index, other)
            text, new = ast.unparse(tree), _shown(other if part is node else part)
            _set(parent, field, index, node)
            if text not in seen:
                seen.add(text)
                found.append(Mutation(node.lineno, place.function, old, new, text))
    return found


def _get(parent: ast.AST, field: str, index: int | None) -> Any:
    value = getattr(parent, field)
    return value if index is None else value[index]


def _set(parent: ast.AST, field: str, index: int | None, value: ast.AST) -> None:
    if index is None:
        setattr(parent, field, value)
    else:
        getattr(parent, field)[index] = value


def _shown(node: ast.AST) -> str:
    """On one line; of a compound statement the head."""
    skipped = len(getattr(node, "decorator_list", ()))
    return ast.unparse(node).splitlines()[skipped].strip()


def _sites(node: ast.AST, place: Place) -> Iterator[Site]:
    """Every expression and statement below a node that may be changed."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "bases", "msg", "ctx", "op", "ops", "type_comment"}:
            continue
        many = isinstance(value, list)
        for index, child in enumerate(value if many else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, UNTOUCHED) or _says_nothing(child):
                continue
            at = _inside(node, field, child, place)
            if isinstance(child, ast.expr | ast.stmt | ast.keyword):
                yield node, field, index if many else None, at
            if not _is_negative_number(child):
                yield from _sites(child, at)


def _says_nothing(node: ast.AST) -> bool:
    """A docstring, metadata, or a check of lengths in zip that never fails in right code."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("__")


def _is_negative_number(node: ast.AST) -> bool:
    """-1 is one number, not the negation of one: as an index or a dimension its sign means nothing by itself."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def _inside(node: ast.AST, field: str, child: ast.AST, place: Place) -> Place:
    if isinstance(node, ast.FunctionDef):
        kinds = {arg.arg: ast.unparse(arg.annotation) for arg in _parameters(node) if arg.annotation}
        returns = ast.unparse(node.returns) if node.returns else ""
        place = place._replace(kinds={**place.kinds, **kinds}, returns=returns)
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and field == "body":
        place = place._replace(function=f"{place.function}.{node.name}".removeprefix("."))
    place = place._replace(around=(child,) if isinstance(child, ast.stmt) else (*place.around, child))
    indexing = isinstance(node, ast.Subscript) and field == "slice"
    inherited = place.indexing and not isinstance(node, ast.Call | ast.Subscript)
    return place._replace(indexing=indexing or inherited)


def _parameters(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _variants(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """What a node is changed into."""
    match node:
        case ast.BinOp():
            yield from _operations(node, place)
        case ast.AugAssign() if type(node.op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.Compare():
            for i, (op, bound) in enumerate(zip(node.ops, node.comparators, strict=True)):
                if isinstance(op, FLIPPED) or not _is_tolerance(bound):
                    yield _with(node, ops=[*node.ops[:i], OPERATORS[type(op)](), *node.ops[i + 1 :]])
        case ast.UnaryOp(ast.USub(), ast.Constant(int(number))):
            yield from (_number(n) for n in ([-number - 1, 1 - number] if place.indexing else [1 - number]))
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert()):
            yield node.operand
        case ast.Constant():
            yield from _constants(node.value, place)
        case ast.Name("beta", ast.Load()):
            yield ast.Constant(1)
        case ast.Attribute(_, name) if name in SIDES:
            yield _with(node, attr=SIDES[name])
        case ast.keyword("min" | "max" as bound):
            yield _with(node, arg=FUNCTIONS[bound])
        case ast.Return(ast.expr() as value) if place.returns in {"Tensor", "float"}:
            yield _with(node, value=ast.UnaryOp(ast.USub(), value))
        case ast.Slice():
            yield from _shifts(node)
        case ast.Call():
            yield from _calls(node, place)
        case ast.If() | ast.IfExp() | ast.While():
            yield from (_with(node, test=test) for test in _negations(node.test))
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            yield from _filters(node)


def _with(node: Any, **fields: Any) -> Any:
    changed = copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _number(value: float) -> ast.expr:
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _operations(node: ast.BinOp, place: Place) -> Iterator[ast.AST]:
    if type(node.op) in OPERATORS and not any(_is_text(side) for side in (node.left, node.right)):
        yield _with(node, op=OPERATORS[type(node.op)]())
    if isinstance(node.op, ast.Sub) and not _is_even(place.around[-2:-1]):
        yield _with(node, left=node.right, right=node.left)


def _is_even(around: tuple[ast.AST, ...]) -> bool:
    """Whether what stands around an expression is the same of its negation."""
    match around:
        case [ast.BinOp(op=ast.Pow(), right=ast.Constant(2))] | [ast.Attribute(attr="abs" | "square")]:
            return True
    return False


def _is_tolerance(node: ast.AST) -> bool:
    """A bound that nothing meets exactly, such as 1e-6 or -1e-9."""
    number = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(number, ast.Constant) and isinstance(number.value, float) and 0 < number.value < 1e-4


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _constants(value: Any, place: Place) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, str) and value in TEXTS:
        yield ast.Constant(TEXTS[value])
    elif isinstance(value, int) and place.indexing:
        yield from (_number(n) for n in (value + 1, value - 1) if n >= 0)
    elif isinstance(value, int | float) and value in CONSTANTS:
        yield ast.Constant(type(value)(CONSTANTS[value]))


def _shifts(node: ast.Slice) -> Iterator[ast.AST]:
    """Bounds that are no numbers, moved by one into the slice (numbers are moved as constants)."""
    for bound, op in (("lower", ast.Add()), ("upper", ast.Sub())):
        value = getattr(node, bound)
        if isinstance(value, ast.Name | ast.Attribute | ast.Call):
            yield _with(node, **{bound: ast.BinOp(value, op, ast.Constant(1))})


def _negations(test: ast.expr) -> Iterator[ast.expr]:
    """`not test`, unless another mutation says the same."""
    if (isinstance(test, ast.Compare) and isinstance(test.ops[0], FLIPPED)) or isinstance(test, ast.UnaryOp):
        return
    yield ast.UnaryOp(ast.Not(), test)


def _filters(node: Any) -> Iterator[ast.AST]:
    for g, generator in enumerate(node.generators):
        for i, test in enumerate(generator.ifs):
            for negated in _negations(test):
                changed = _with(generator, ifs=[*generator.ifs[:i], negated, *generator.ifs[i + 1 :]])
                yield _with(node, generators=[*node.generators[:g], changed, *node.generators[g + 1 :]])


def _calls(node: ast.Call, place: Place) -> Iterator[ast.AST]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    library = isinstance(owner, ast.Name) and owner.id in {"torch", "F", "math"}
    if owner and name == "mean" and ast.unparse(owner) == "masked":
        yield _with(node, func=_with(node.func, attr="total"))
    elif owner and name in METHODS:
        yield _with(node, func=_with(node.func, attr=METHODS[name]))
    elif not owner and name in FUNCTIONS:
        yield _with(node, func=ast.Name(FUNCTIONS[name]))
    if owner and name == "detach":
        yield owner
    if owner and name in DROPPED:
        yield node.args[0] if library else owner
    if name == "no_grad":
        yield ast.parse("__import__('contextlib').nullcontext()", mode="eval").body
    if name == "where" and len(node.args) == 3:
        yield _with(node, args=[node.args[0], node.args[2], node.args[1]])
    if name in {"sort", "argsort", "sorted"}:
        direction = "reverse" if name == "sorted" or any(k.arg == "key" for k in node.keywords) else "descending"
        if not any(k.arg == direction for k in node.keywords):
            yield _with(node, keywords=[*node.keywords, ast.keyword(direction, ast.Constant(True))])
    if name == "range" and len(node.args) == 1 and not isinstance(node.args[0], ast.Constant):
        yield from (_with(node, args=[ast.BinOp(node.args[0], op, ast.Constant(1))]) for op in (ast.Add(), ast.Sub()))
    match node.args:
        case [ast.Name(a), ast.Name(b)] if name not in SYMMETRIC and place.kinds.get(a) == place.kinds.get(b):
            yield _with(node, args=node.args[::-1])
