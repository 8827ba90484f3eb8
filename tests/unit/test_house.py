"""The rules of the house, read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("cni_plugin", "ipam")
LONGEST_FUNCTION, LONGEST_MODULE, LONGEST_DOCSTRING, LONGEST_FIRST_LINE = 60, 400, 10, 100
LARGEST_RECORD = 16  # fields

# The floors, top to bottom: a module imports from its own floor and from those below, never from above.
FLOORS = (
    "__main__",
    "cli",
    "doctor",
    "dataplane",
    "cluster",
    "agent",
    "node",
    "plugins",
    "addresses",
    "attach",
    "backend",
    "features",
    "kernel",
    "config",
    "contract",
    "",  # the version
    "ipam",
    "ipam.seam",
)
# One module each; how they go together says attach.wiring.
KINDS = {
    "attach": ("bridge", "routed"),
    "backend": ("vxlan", "host_gateway"),
    "features": (
        *("masquerade", "bandwidth", "tuning", "firewall", "spoof", "isolation", "portmap", "policy"),
    ),
}
# Who may use what speaks to the kernel or starts programs.
ONLY_IN = {
    "pyroute2": {"kernel"},
    "ctypes": {"kernel", "ipam"},  # of ipam watch.py alone: the linter says so
    "kubernetes": {"cluster"},  # of it api.py alone
    "subprocess": {"kernel", "addresses", "agent"},
    "netaddr": set(FLOORS) - {"__main__", "cli", "plugins"},
}
# Who may print and exit: the answer to a runtime, the words to a person.
# The agent's journal is what its service manager reads.
SPEAKERS = {
    "cni_plugin.__main__",
    "cni_plugin.agent.journal",
    "cni_plugin.cli.console",
    "cni_plugin.cli.gc",
    "cni_plugin.cli.ipam",
    "cni_plugin.cli.main",
    "cni_plugin.cli.probe",
    "cni_plugin.contract.dispatch",
}
SPEECH = {"print", "exit", "quit", "input", "sys.exit", "os._exit", "sys.stdout", "sys.stderr"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def room_of(module: str) -> str | None:
    """Return the room that a module of ours is in; None for a module that is not ours."""
    package, *rest = module.split(".")
    if package == "cni_plugin":
        return rest[0] if rest else ""
    if package == "ipam":
        return "ipam.seam" if rest[:1] == ["seam"] else "ipam"
    return None


@cache
def imports_of(module: str, *, at_run_time: bool = False) -> set[str]:
    """Return the modules that a module imports anywhere in it, those for type checking only included."""
    tree = tree_of(module)
    skipped = {
        node for guard in ast.walk(tree) if at_run_time and is_guard(guard) for node in ast.walk(guard)
    }
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    if at_run_time:
        skipped |= {node for each in ast.walk(tree) if isinstance(each, functions) for node in ast.walk(each)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in skipped:
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            assert node.level == 0, f"{module}: relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in members}
    return found


def is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_imports_point_down() -> None:
    floors = {room: number for number, room in enumerate(FLOORS)}
    assert {module: room_of(module) for module in MODULES if room_of(module) not in floors} == {}
    needed = {module: {room_of(name) for name in imports_of(module)} - {None} for module in MODULES}
    upward = {
        module: {room for room in rooms if floors[room] < floors[room_of(module)]}
        for module, rooms in needed.items()
    }
    assert {module: rooms for module, rooms in upward.items() if rooms} == {}


def test_nothing_lies_loose_in_the_root() -> None:
    loose = {path.name for path in (ROOT / "cni_plugin").iterdir() if path.is_file()}
    assert loose <= {"__init__.py", "__main__.py", "py.typed"}


def test_the_address_manager_imports_nothing_of_the_plugin() -> None:
    own = {module: imports_of(module) for module in MODULES if module.startswith("ipam")}
    assert {m: n for m, n in own.items() if any(name.startswith("cni_plugin") for name in n)} == {}


def test_the_plugin_s_features_and_modes_name_no_other() -> None:
    """A mode or a feature is a module: what two of them share lies in a module that is neither."""
    kinds = {f"cni_plugin.{room}.{name}" for room, names in KINDS.items() for name in names}
    named = {module: imports_of(module) & kinds - {module} for module in kinds}
    assert {module: names for module, names in named.items() if names} == {}


def test_only_the_kernel_room_speaks_to_the_kernel() -> None:
    used = {module: {name.split(".")[0] for name in imports_of(module)} for module in MODULES}
    wrong = {
        module: [name for name in names & ONLY_IN.keys() if room_of(module) not in ONLY_IN[name]]
        for module, names in used.items()
    }
    assert {module: names for module, names in wrong.items() if names} == {}


def test_a_public_class_name_stands_once_in_the_program() -> None:
    """A type alias counts, too: a word has one meaning in all rooms."""
    where: dict[str, list[str]] = {}
    for module in MODULES:
        for name in types_of(module):
            where.setdefault(name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def types_of(module: str) -> set[str]:
    """Return the public classes and type aliases that a module defines."""
    body = tree_of(module).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    aliases = {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in classes | aliases if re.match("[A-Z]+[a-z]", name)}


# What makes a value at the top of a module that never changes afterwards, beside frozen dataclasses.
FIXED = {
    *("frozenset", "struct.Struct", "struct.pack", "logging.getLogger", "re.compile", "TypeVar", "partial"),
    *("ctypes.CDLL", "codecs.getencoder", "os.environ.get", "u32", "int.from_bytes", "bytes.fromhex"),
    *("str.maketrans", "create_string_buffer", "tuple"),
}
MUTATING = {"add", "append", "clear", "extend", "insert", "pop", "popleft", "remove", "setdefault", "update"}
# State of modules: the object of the process, what is the same until the next boot, and logging's own.
STATE = {
    "ipam.seam Process.current",
    "ipam.boot_mark @cache current",
    "ipam.boot_mark @cache _read_boot_id",
    "cni_plugin.features.spoof_rules @cache plan_ruleset",
    "cni_plugin.agent.journal own.propagate",
}


def test_state_of_the_process_hangs_on_one_object() -> None:
    """No module keeps any: no container that is changed, no lock, no cache, no name that is bound anew."""
    assert {f"{module} {what}" for module in MODULES for what in state_of(module)} == STATE


def state_of(module: str) -> Iterator[str]:
    """Yield what a module or a class of it remembers between calls."""
    tree = tree_of(module)
    constants = {name.id: value for name, value in bound_at_the_top(tree)}
    theirs = imported(tree)
    for name, value in constants.items():
        if isinstance(value, ast.Call) and ast.unparse(value.func) not in FIXED | frozen_classes():
            yield f"{name} = {ast.unparse(value)}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield ast.unparse(node)
        if isinstance(node, ast.FunctionDef) and node in tree.body:
            yield from (
                f"@{ast.unparse(d)} {node.name}" for d in node.decorator_list if "cache" in ast.unparse(d)
            )
        for target in targets_of(node):
            owner = ast.unparse(target.value) if isinstance(target, (ast.Attribute, ast.Subscript)) else ""
            if owner in constants or owner.rpartition(".")[2][:1].isupper() or owner in theirs:
                yield ast.unparse(target)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATING:
            owner = ast.unparse(node.func.value)
            if owner in constants and not isinstance(constants[owner], ast.Call):
                yield ast.unparse(node.func)


def bound_at_the_top(tree: ast.Module) -> Iterator[tuple[ast.Name, ast.expr | None]]:
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield from ((name, node.value) for target in targets_of(node) for name in names_of(target))


def names_of(target: ast.expr) -> list[ast.Name]:
    return [node for node in ast.walk(target) if isinstance(node, ast.Name)]


def targets_of(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.Assign, ast.Delete)):
        return node.targets
    return [node.target] if isinstance(node, (ast.AnnAssign, ast.AugAssign)) else []


def imported(tree: ast.Module) -> set[str]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


@cache
def frozen_classes() -> set[str]:
    classes = [
        node for module in MODULES for node in ast.walk(tree_of(module)) if isinstance(node, ast.ClassDef)
    ]
    return {
        each.name for each in classes if any("frozen=True" in ast.unparse(d) for d in each.decorator_list)
    }


def test_raw_configuration_is_kept_by_a_request_alone() -> None:
    """Who parses is given it as an argument; what it returns is checked values."""
    kept = {
        f"{module}.{record.name}"
        for module in MODULES
        for record in ast.walk(tree_of(module))
        if isinstance(record, ast.ClassDef)
        for field in record.body
        if isinstance(field, ast.AnnAssign) and "Fields" in ast.unparse(field.annotation).split(" | ")
    }
    assert kept == {"cni_plugin.contract.request.Request"}


def test_a_record_has_at_most_sixteen_fields() -> None:
    sizes = {
        f"{module}.{record.name}": sum(isinstance(field, ast.AnnAssign) for field in record.body)
        for module in MODULES
        for record in ast.walk(tree_of(module))
        if isinstance(record, ast.ClassDef)
    }
    assert {name: size for name, size in sizes.items() if size > LARGEST_RECORD} == {}


# A path on the node that begins a text; /proc and /sys are the kernel's.
PATH = re.compile("(unix://)?/(etc|opt|run|srv|usr|var)(/|$)")


def test_only_one_module_holds_default_paths() -> None:
    found = {module: {text for text in texts_of(module) if PATH.match(text)} for module in MODULES}
    assert {module for module, paths in found.items() if paths} == {"cni_plugin.config.paths"}


def texts_of(module: str) -> set[str]:
    nodes = [node.value for node in ast.walk(tree_of(module)) if isinstance(node, ast.Constant)]
    return {value for value in nodes if isinstance(value, str)}


def test_the_first_line_of_a_module_fits_into_the_map() -> None:
    lines = {module: (ast.get_docstring(tree_of(module)) or "").split("\n")[0] for module in MODULES}
    assert {module: line for module, line in lines.items() if not 0 < len(line) <= LONGEST_FIRST_LINE} == {}


def test_no_two_modules_need_each_other() -> None:
    graph = {module: imports_of(module, at_run_time=True) & MODULES.keys() - {module} for module in MODULES}
    while leaves := {module for module, needed in graph.items() if not needed}:
        graph = {module: needed - leaves for module, needed in graph.items() if module not in leaves}
    assert graph == {}


def test_only_dispatch_and_the_command_line_print_or_exit() -> None:
    spoken = {module: {ast.unparse(node) for node in names_in(module)} & SPEECH for module in MODULES}
    assert {module: words for module, words in spoken.items() if words and module not in SPEAKERS} == {}


@cache
def names_in(module: str) -> list[ast.AST]:
    return [node for node in ast.walk(tree_of(module)) if isinstance(node, (ast.Name, ast.Attribute))]


def test_every_module_says_what_it_is() -> None:
    docstrings = {module: (ast.get_docstring(tree_of(module)) or "").split("\n") for module in MODULES}
    lengths = {module: len([line for line in lines if line]) for module, lines in docstrings.items()}
    assert {
        module: length for module, length in lengths.items() if not 1 <= length <= LONGEST_DOCSTRING
    } == {}


def test_modules_and_functions_stay_short() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST_MODULE} == {}
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, kinds)
    }
    assert {name: length for name, length in functions.items() if length > LONGEST_FUNCTION} == {}


def test_no_error_is_swallowed_whole() -> None:
    """`suppress` and `except` by type; what catches everything must report or raise it."""
    swallowing = {module: [n.lineno for n in ast.walk(tree_of(module)) if swallows(n)] for module in MODULES}
    assert {module: lines for module, lines in swallowing.items() if lines} == {}


def swallows(node: ast.AST) -> bool:
    everything = {"Exception", "BaseException"}
    if isinstance(node, ast.ExceptHandler):
        silent = all(isinstance(step, (ast.Pass, ast.Continue)) for step in node.body)
        return silent and (node.type is None or ast.unparse(node.type) in everything)
    suppresses = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
    return suppresses and bool(everything & {ast.unparse(argument) for argument in node.args})


# What changes something outside of the process, or starts one; a file opened to be written is one, too.
CHANGING = {
    *(f"os.{name}" for name in ("link", "unlink", "remove", "rename", "replace", "symlink", "truncate")),
    *(
        f"os.{name}"
        for name in ("mkdir", "makedirs", "rmdir", "chmod", "chown", "write", "ftruncate", "fork")
    ),
    *(f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")),
    "lock.acquire",
    "os.setxattr",
    "os.removexattr",
}
# Functions that are steps themselves: they are called by `step` alone.
STEPS = {"cni_plugin.addresses.delegate._execute", "cni_plugin.kernel.sysctl._write"}


def test_every_change_of_files_and_every_program_passes_the_seam() -> None:
    """Those of the kernel do in netlink, nfnetlink and sysctl, which tests/storm compares with strace."""
    calls = {
        f"{module}:{call.lineno} {ast.unparse(call.func)}"
        for module in MODULES
        for call in calls_in(module)
        if changes(call)
    }
    assert calls == set()


def calls_in(module: str) -> list[ast.Call]:
    tree = tree_of(module)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    steps = [
        node for function in functions if f"{module}.{function.name}" in STEPS for node in ast.walk(function)
    ]
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node not in steps]


def changes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name in CHANGING or name.endswith((".write_text", ".write_bytes", ".hardlink_to")):
        return True
    if name == "os.open":
        return any("O_CREAT" in ast.unparse(argument) for argument in call.args)
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    text = "".join(str(mode.value) for mode in modes if isinstance(mode, ast.Constant))
    return name == "open" and bool(set(text) & set("wax+")) and "step(" not in ast.unparse(call.args[0])


def test_nothing_of_ours_sets_the_hook_of_the_seam() -> None:
    """Whoever imports `step` or the waits cannot; and in the seam itself it is set once, to None."""
    whole = {
        module
        for module in MODULES
        for name in imports_of(module)
        if name == "ipam.seam" and module != "ipam.seam"
    }
    assert [
        module for module in whole if not imported_from_seam(module) <= {"Process", "part", "step", "waits"}
    ] == []
    assert [
        ast.unparse(node) for node in ast.walk(tree_of("ipam.seam")) if isinstance(node, ast.Global)
    ] == []


def imported_from_seam(module: str) -> set[str]:
    """Return what a module takes of the seam itself, not of its modules."""
    nodes = list(ast.walk(tree_of(module)))
    named = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "ipam.seam"]
    whole = [n for n in nodes if isinstance(n, ast.Import) and "ipam.seam" in ast.unparse(n)]
    return {alias.name for node in (*named, *whole) for alias in node.names}


def test_the_maps_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/map", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_of_prose_have_at_most_a_hundred_columns() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests/README.md"]
    long = {
        f"{page.relative_to(ROOT)}:{number}": line
        for page in pages
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > 100 and not line.startswith("|")
    }
    assert long == {}
