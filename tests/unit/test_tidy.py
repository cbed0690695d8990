"""The house rules as a test (after tigerbeetle's tidy.zig). Each rule is a function from a parsed file to what is wrong
in it; test_each_rule_bites shows that none of them is asleep."""

import ast
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "esp_ingest"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9][0-9][0-9][0-9]-*.md"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
MAX_FILES_IN_A_FOLDER = 12  # beside __init__.py
# One file a command: what is alike in kind may be more.
MAX_COMMANDS = 20
# Two folders that are not divided yet.
CROWDED = {"esp_ingest/service", "esp_ingest/diagnostics/engine"}

# Floors of the house: a module imports from its own floor's room and from any floor below. The longest prefix counts.
FLOORS = {
    "esp_ingest.errors": 0,
    "esp_ingest.model": 0,
    "esp_ingest.resources": 0,
    "esp_ingest.service.text": 0,
    "esp_ingest.interfaces": 1,
    "esp_ingest.config": 1,
    "esp_ingest.service": 2,
    "esp_ingest.mqtt": 3,
    "esp_ingest.telemetry": 3,
    "esp_ingest.store": 3,
    "esp_ingest.diagnostics": 3,
    "esp_ingest.ingest": 4,
    "esp_ingest.lifecycle": 6,
    "esp_ingest.api": 6,
    "esp_ingest.daemon": 6,
    "esp_ingest.workers": 6,
    "esp_ingest.demo": 8,
    "esp_ingest.commands": 9,
    "esp_ingest.cli": 10,
    "esp_ingest.__main__": 11,
}

CLOCKS = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "datetime.now", "datetime.utcnow", "datetime.today", "datetime.datetime.now", "datetime.datetime.utcnow",
    "date.today", "datetime.date.today",
}  # fmt: skip
SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM\s|INSERT\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|COPY\s+[\w.]+\s*[(\s]"
    r"|(CREATE|ALTER|DROP)\s+(TABLE|INDEX|VIEW|SCHEMA|MATERIALIZED|DATABASE|TEMP)|WITH\s+\w+\s+AS\s*\(|TRUNCATE\s)",
    re.IGNORECASE | re.DOTALL,
)
# Private names of another module that tests use, by file: so many at most, and why it is not done by public behaviour.
# The numbers go down; a higher one needs a reason that is as good.
PAHO = "the test stands for paho, or looks whether a part of paho's that the client relies on is still there"
PRIVATE_NAMES = {
    "tests/integration/test_schema_migrate.py": (1, "an extension that cannot be created, where it can"),
    "tests/property/test_fuzz.py": (1, "whether CONNACK was among random bytes"),
    "tests/support/mqtt_clients.py": (3, PAHO),
    "tests/unit/test_cli.py": (4, "argparse names its subcommands nowhere else"),
    "tests/unit/test_decode.py": (2, "an error of ours in the fast way alone; what is remembered is bounded"),
    "tests/unit/test_diagnostics_engine.py": (2, "an error of ours in one rule, and in a tick"),
    "tests/unit/test_diagnostics_held.py": (2, "until when a diagnosis is shelved, which no row says"),
    "tests/unit/test_diagnostics_slow.py": (
        7,
        "the state of trends to the bit; their arithmetic",
    ),
    "tests/unit/test_diagnostics_wells.py": (18, "the bytes of an older checkpoint; what is held is bounded"),
    "tests/unit/test_mqtt_client.py": (9, f"{PAHO}; how often parts of a packet are copied"),
    "tests/unit/test_mqtt_internals.py": (25, PAHO),
    "tests/unit/test_mqtt_source.py": (5, PAHO),
    "tests/unit/test_simulator.py": (2, "the physics of a pump without its noise"),
    "tests/unit/test_spool.py": (4, "an append that a disk error or kill -9 cuts short in the middle"),
}

PUBLIC_ALL_THE_SAME = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # of a named tuple, and of os
METRIC_CLASSES = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}


class File(NamedTuple):
    """A source file: ``module`` is its dotted name. ``nodes`` are all of the tree: it is walked once for all rules."""

    module: str
    path: str
    text: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]

    @staticmethod
    def of(module: str, path: str, text: str) -> "File":
        tree = ast.parse(text)
        return File(module, path, text, tree, tuple(ast.walk(tree)))


Rule = Callable[[File], Iterator[str]]


@functools.cache
def read(path: Path) -> File:
    relative = path.relative_to(ROOT)
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    text = path.read_text(encoding="utf-8")
    return File.of(module, str(relative), text)


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or a chain of attributes on one, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    owner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{owner}.{node.attr}" if isinstance(node, ast.Attribute) and owner else ""


def docstrings(file: File) -> set[int]:
    """Identities of the constants that are documentation."""
    found = set()
    for node in file.nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def imported(file: File) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; ``from a import b`` gives both a and a.b."""
    module, is_package = file.module, file.path.endswith("__init__.py")
    for node in file.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = f"{base}{node.module or ''}".rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def floor_of(module: str) -> tuple[int, str]:
    """(floor, room) of a dotted name; names of unknown rooms raise, so that a new one has to be placed."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        room = ".".join(parts[:length])
        if room in FLOORS:
            return FLOORS[room], room
    raise LookupError(f"{module} stands on no floor: enter it in tests/unit/test_tidy.py and docs/architecture.md")


def private_names(file: File) -> Iterator[tuple[int, str]]:
    """(line, name) of each use of a private name that ``file`` does not define itself."""
    own: set[str] = set()
    for node in file.nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
            own.add(node.attr)
    for node in file.nodes:
        used: list[str] = []
        if isinstance(node, ast.Attribute) and dotted(node.value) not in ("self", "cls"):
            used = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("esp_ingest", "tests")):
            used = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("setattr", "getattr", "delattr"):
            texts = (each.value for each in node.args if isinstance(each, ast.Constant))
            used = [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
        for name in used:
            if re.fullmatch(r"_[A-Za-z]\w*", name) and name not in own and name not in PUBLIC_ALL_THE_SAME:
                yield getattr(node, "lineno", 0), name


# -- The rules.


def reads_no_clock(file: File) -> Iterator[str]:
    if file.module == "esp_ingest.service.clock":
        return
    for node in file.nodes:
        if isinstance(node, ast.Attribute) and dotted(node) in CLOCKS:
            yield f"{file.path}:{node.lineno}: {dotted(node)}: be handed a Clock (service/clock.py)"
    for line, name in imported(file):
        if name in CLOCKS:
            yield f"{file.path}:{line}: {name}: be handed a Clock (service/clock.py)"


def holds_no_sql(file: File) -> Iterator[str]:
    if file.module.startswith("esp_ingest.store."):
        return
    documentation = docstrings(file)
    for node in file.nodes:
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documentation:
            continue
        if SQL.match(node.value):
            yield f"{file.path}:{node.lineno}: SQL: it belongs into sql/ or esp_ingest/store/"


def builds_no_sql_from_strings(file: File) -> Iterator[str]:
    for node in file.nodes:
        first: ast.expr | None = None
        if isinstance(node, ast.JoinedStr):
            first = node.values[0] if node.values else None
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
            first = node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            first = node.func.value
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and SQL.match(first.value + " "):
            yield f"{file.path}:{first.lineno}: SQL made of strings: use parameters, or psycopg.sql for names"


def defines_no_metric(file: File) -> Iterator[str]:
    if file.module == "esp_ingest.service.metrics":
        return
    for_types = {
        line
        for node in file.nodes
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for line, name in imported(file):
        makes_metrics = name == "prometheus_client" or name.rpartition(".")[2] in METRIC_CLASSES
        if name.startswith("prometheus_client") and makes_metrics and line not in for_types:
            yield f"{file.path}:{line}: {name}: metrics are made in service/metrics.py alone"


def imports_downward(file: File) -> Iterator[str]:
    if file.module == "esp_ingest":
        return
    own_floor, own_room = floor_of(file.module)
    for line, name in imported(file):
        if not name.startswith("esp_ingest.") or name == "esp_ingest.__version__":
            continue
        floor, room = floor_of(name)
        if floor > own_floor:
            yield f"{file.path}:{line}: {name} stands above {file.module}"
        elif floor == own_floor and room != own_room and (floor, own_floor) == (3, 3):
            yield f"{file.path}:{line}: {name} is a room beside {own_room}: meet in the stage or the pipeline"


def prints_nothing(file: File) -> Iterator[str]:
    if file.module == "esp_ingest.cli" or file.module.startswith("esp_ingest.demo."):
        return
    for node in file.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{file.path}:{node.lineno}: print: log it, or return it to the command line"


def is_short(file: File) -> Iterator[str]:
    lines = file.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{file.path}: {lines} lines: more than {MAX_FILE_LINES}, which is two rooms"
    for node in file.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            is_list = file.module in ("esp_ingest.service.metrics",) and node.name == "__init__"
            if length > MAX_FUNCTION_LINES and not is_list:
                yield f"{file.path}:{node.lineno}: {node.name} has {length} lines: more than {MAX_FUNCTION_LINES}"


def explains_itself(file: File) -> Iterator[str]:
    if not ast.get_docstring(file.tree) and file.text.strip():
        yield f"{file.path}: no docstring that says what this is for"


def documents_what_others_call(file: File) -> Iterator[str]:
    """Every public class, function and method has a docstring. A method may have it in a base class of the package."""
    classes = {node.name: node for node in file.tree.body if isinstance(node, ast.ClassDef)}
    for node in file.tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("esp_ingest."):
            path = ROOT / f"{(node.module or '').replace('.', '/')}.py"
            if path.exists():
                names = {alias.name for alias in node.names}
                bodies = (each for each in read(path).tree.body if isinstance(each, ast.ClassDef))
                classes |= {each.name: each for each in bodies if each.name in names}
    owners: list[tuple[str, ast.Module | ast.ClassDef]] = [("", file.tree)]
    for prefix, owner in owners:
        bases = [classes[base] for base in map(dotted, getattr(owner, "bases", ())) if base in classes]
        inherited = {getattr(node, "name", "") for base in bases for node in base.body if documented(node)}
        for node in owner.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                if not documented(node) and node.name not in inherited:
                    yield f"{file.path}:{node.lineno}: {prefix}{node.name} has no docstring"
                if isinstance(node, ast.ClassDef):
                    owners.append((f"{node.name}.", node))


def documented(node: ast.stmt) -> bool:
    is_definition = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return is_definition and ast.get_docstring(node) is not None


def excuses_have_reasons(file: File) -> Iterator[str]:
    """The first exception in a file carries its reason; the same one again may refer to it."""
    reasons: set[str] = set()
    for number, line in enumerate(file.text.splitlines(), start=1):
        for kind, codes, rest in re.findall(
            r"#\s*(noqa|type:\s*ignore)\b:?\s*(\[[^\]]*\]|[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)?(.*)", line
        ):
            if not codes:
                yield f"{file.path}:{number}: {kind} without a code hides everything"
            elif rest.strip(" -#:—"):
                reasons.add(codes)
            elif codes not in reasons:
                yield f"{file.path}:{number}: {kind} {codes} without its reason"


def leaves_nothing_undone(file: File) -> Iterator[str]:
    for number, line in enumerate(file.text.splitlines(), start=1):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            yield f"{file.path}:{number}: {line.strip()}: do it, or open an issue"


RULES: list[Rule] = [
    reads_no_clock,
    holds_no_sql,
    builds_no_sql_from_strings,
    defines_no_metric,
    imports_downward,
    prints_nothing,
    is_short,
    explains_itself,
    documents_what_others_call,
    excuses_have_reasons,
    leaves_nothing_undone,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_of_the_package(rule: Rule) -> None:
    assert len(SOURCES) > 20, "the package is not where it was"
    wrong = [finding for path in SOURCES for finding in rule(read(path))]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_folder_is_flat() -> None:
    """The console's too: its pages and their parts are folders."""
    found = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js") and path.name != "__init__.py"]
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in found)
    assert counts["esp_ingest/commands"] > 10, "the folders are not counted"
    assert counts.pop("esp_ingest/commands") <= MAX_COMMANDS
    crowded = {folder for folder, count in counts.items() if count > MAX_FILES_IN_A_FOLDER}
    assert crowded == CROWDED


def test_tests_use_no_more_private_names_of_other_modules() -> None:
    used = {str(path.relative_to(ROOT)): list(private_names(read(path))) for path in TESTS}
    wrong = {path: names for path, names in used.items() if len(names) > PRIVATE_NAMES.get(path, (0, ""))[0]}
    assert not wrong, "\n".join(f"{path}: {len(names)}: {names}" for path, names in wrong.items())
    gone = {path for path in PRIVATE_NAMES if not used.get(path)}
    assert not gone, f"{gone} use none any more"


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_every_decision_has_the_headings_of_the_template(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.stem[:4] if path.stem != '0000-template' else 'NNNN'}: ")
    places = [text.find(f"**{heading}.**") for heading in ("Is", "Is not", "Why", "Measured")]
    assert -1 not in places
    assert places == sorted(places)


def test_every_decision_is_in_the_list_and_the_list_in_the_folder() -> None:
    listed = set(re.findall(r"\((\d{4}-[a-z0-9-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text("utf-8")))
    assert listed - {"0000-template.md"} == {path.name for path in DECISIONS} - {"0000-template.md"}


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (reads_no_clock, "import time\nnow = time.time()"),
        (reads_no_clock, "from time import monotonic"),
        (reads_no_clock, "from datetime import datetime\nx = datetime.now()"),
        (reads_no_clock, "import datetime\nx = datetime.datetime.utcnow()"),
        (holds_no_sql, "q = 'select a\\nfrom b where c'"),
        (holds_no_sql, "q = 'COPY esp_telemetry (a) FROM STDIN'"),
        (builds_no_sql_from_strings, "q = f'INSERT INTO {table} VALUES (1)'"),
        (builds_no_sql_from_strings, "q = 'DELETE FROM t WHERE a = %s' % b"),
        (builds_no_sql_from_strings, "q = 'DROP TABLE ' + name"),
        (builds_no_sql_from_strings, "q = 'UPDATE t SET a = {}'.format(b)"),
        (defines_no_metric, "from prometheus_client import Counter"),
        (defines_no_metric, "import prometheus_client"),
        (imports_downward, "from esp_ingest.daemon import run"),
        (imports_downward, "def f():\n    from esp_ingest.ingest import pipeline"),
        (imports_downward, "from ..ingest.writer_stage import Stage"),
        (imports_downward, "from esp_ingest.mqtt import client"),
        (prints_nothing, "print('x')"),
        (is_short, "x = 1\n" * (MAX_FILE_LINES + 1)),
        (is_short, "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES + 1)),
        (explains_itself, "x = 1"),
        (documents_what_others_call, "def f():\n    pass"),
        (documents_what_others_call, 'class A:\n    """Doc."""\n    def f(self):\n        pass'),
        (
            documents_what_others_call,
            'class A:\n    """Doc."""\nclass B(A):\n    """Doc."""\n    def f(self):\n        pass',
        ),
        (excuses_have_reasons, "x = 1  # noqa"),
        (excuses_have_reasons, "x = 1  # noqa: E501"),
        (excuses_have_reasons, "x = 1  # type: ignore[arg-type]"),
        (leaves_nothing_undone, "x = 1  # " + "TODO"),
    ],
)
def test_each_rule_bites(rule: Rule, source: str) -> None:
    wrong = File.of("esp_ingest.telemetry.sample", "esp_ingest/telemetry/sample.py", source)
    assert list(rule(wrong))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("source._client.abort()", ["_client"]),
        ("from esp_ingest.store.write.writer import PostgresStore, _by_days", ["_by_days"]),
        ("monkeypatch.setattr(stage, '_decode', 1)", ["_decode"]),
        ("setattr(stage, '_decode', 1)", ["_decode"]),
        ("class A:\n    def f(self):\n        self._x = other._x = 1\n        self._y, row._replace, a.__dict__", []),
    ],
)
def test_a_private_name_of_another_module_is_found(source: str, found: list[str]) -> None:
    file = File.of("tests.sample", "tests/sample.py", source)
    assert [name for _, name in private_names(file)] == found


@pytest.mark.parametrize(
    "source",
    [
        '"""D."""\nclass A:\n    """D."""\n    def f(self):\n        """D."""\n'
        'class B(A):\n    """D."""\n    def f(self):\n        pass',
        '"""Selects from the window, where time.time() would be wrong. SELECT a FROM b is said in a docstring only."""',
        '"""Doc."""\nfrom esp_ingest.interfaces import Clock\nfrom esp_ingest.telemetry.limits import x\nx.monotonic()',
        '"""Doc."""\nx = 1  # noqa: ARG001 - the signature is the library\'s\ny = 2  # noqa: ARG001',
        '"""Doc."""\nx = f"update of {name} failed"\ny = "Selected wells"',
    ],
)
def test_no_rule_bites_good_code(source: str) -> None:
    good = File.of("esp_ingest.telemetry.sample", "esp_ingest/telemetry/sample.py", source)
    assert [finding for rule in RULES for finding in rule(good)] == []
