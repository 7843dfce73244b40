"""The house: who may import whom, and how large anything may grow. The table may change; change code and table together."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "softq"
FILES = sorted(ROOT.rglob("*.py"))
BELOW = {
    "records": set(),
    "masked": set(),
    "mdp": {"records", "masked"},
    "objectives": {"records", "masked", "mdp"},
    "lm": {"records", "masked", "mdp"},
    "data": {"records"},
    "worlds": {"records", "data"},
    "search": {"records", "masked", "mdp", "lm"},
    "inspection": {"records", "masked", "mdp", "lm", "data"},
    "training": {"records", "masked", "mdp", "objectives", "lm", "data"},
}
BELOW["reading"] = {*BELOW} - {"worlds", "search"}
BELOW["searching"] = {*BELOW}  # reading with a search: it opens models as reading does, and no study needs to know how
EVERYTHING = {*BELOW, "verify", "studies"}
BELOW |= {"verify": EVERYTHING - {"studies"}, "studies": EVERYTHING, "cli": EVERYTHING}
OUTSIDE = {
    "records": {"torch"},
    "masked": {"torch"},
    "mdp": {"torch"},
    "objectives": {"torch"},
    "lm": {"torch", "transformers", "tokenizers", "peft", "safetensors", "numpy"},
    "data": {"transformers", "tokenizers", "datasets", "pyarrow", "numpy", "jinja2"},
    "worlds": set(),
    "search": {"torch"},
    "inspection": {"torch", "pyarrow", "jinja2", "scipy", "numpy"},
    "reading": {"torch", "transformers", "pyarrow", "numpy"},
    "searching": {"torch", "transformers", "numpy"},
    "training": {"torch", "accelerate", "pydantic", "transformers", "numpy", "safetensors", "huggingface_hub"},
    "verify": {"torch", "transformers"},
    "studies": {"torch", "transformers", "tokenizers", "numpy"},
    "cli": {"rich", "yaml", "pydantic"},  # flags are argparse's, made from the schema: its errors can be one line
}
STANDARD = __import__("sys").stdlib_module_names


def floor(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "cli" if first == "__main__" else first


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"softq.{a.name}" for a in node.names} if node.module == "softq" else {node.module or ""}
    return found


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", [p for p in FILES if name(p) != "__init__.py"], ids=name)
def test_imports_point_down(path: Path) -> None:
    of = floor(path)
    for module in imports(ast.parse(path.read_text())):
        top, *rest = module.split(".")
        if top == "softq":
            assert rest, f"{path}: import the module itself, not the face"
            assert rest[0] == of or rest[0] in BELOW[of], f"{name(path)} may not import {module}"
        elif top not in STANDARD:
            assert top in OUTSIDE[of], f"{name(path)} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_budgets(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{name(path)} has {text.count(chr(10))} lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{name(path)} does not say what it is for"
    for function in functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= 60, f"{name(path)}: {function.name} has {length} lines"
        own = [a.arg for a in function.args.args if a.arg not in {"self", "cls"}]
        assert len(own) <= 5 or function.name.startswith("__"), (
            f"{name(path)}: {function.name} has {len(own)} positions"
        )
        inside = imports(ast.Module(function.body, []))
        assert not any(module.split(".")[0] == "softq" for module in inside), (
            f"{name(path)}: {function.name} imports us"
        )


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_functions_say_what_they_do(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name(path)}: {node.name} has no docstring"


def test_no_import_rings() -> None:
    graph = {
        "softq." + name(path).removesuffix(".py").replace("/", "."): imports(ast.parse(path.read_text()))
        for path in FILES
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module in done or module not in graph:
            return
        for other in graph[module]:
            visit(other, (*above, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_a_run_has_few_settings() -> None:
    from softq.training.settings import Settings

    assert len(Settings.model_fields) <= 40


def test_no_option_of_a_run_is_read_by_nothing() -> None:
    """Each setting is read somewhere in training or cli, as settings.NAME, and each option of a call as call.NAME."""
    from softq.training.settings import Call, Settings

    text = "".join(p.read_text() for p in FILES if floor(p) in {"training", "cli"})
    for field in Settings.model_fields:
        assert f"settings.{field}" in text, f"nothing reads {field}"
    for field in Call._fields:
        assert f"call.{field}" in text, f"nothing reads {field}"
