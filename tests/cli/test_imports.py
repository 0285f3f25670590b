"""The house rule on imports: dags -> operators -> scan2twin <- preprocessing, reconstruction."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What modules of each package must never import, at any depth of their own code.
FORBIDDEN = {
    "scan2twin": {"airflow", "dags", "operators", "preprocessing", "reconstruction", "torch"},
    "preprocessing": {"airflow", "dags", "operators", "reconstruction"},
    "reconstruction": {"airflow", "dags", "operators", "preprocessing"},
    "operators": {"dags", "preprocessing", "reconstruction", "torch"},
    "dags": {"preprocessing", "reconstruction", "torch"},
}


def imported_packages(source: str) -> set[str]:
    """Return the top-level packages that `source` imports anywhere."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no modules"
    broken = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in files
        if (found := imported_packages(path.read_text(encoding="utf-8")) & FORBIDDEN[package])
    }
    assert broken == {}


def test_the_checker_sees_nested_imports() -> None:
    assert imported_packages("def f():\n    from torch.nn import Linear\n") == {"torch"}


def test_the_command_line_starts_without_heavy_libraries() -> None:
    script = "import sys, scan2twin.cli.main; print(sorted({'torch', 'airflow', 'cv2', 'numba'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
