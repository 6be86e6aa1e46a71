"""What every test runs under: one thread per process, reproducible examples, no silent skips in CI."""

import os

# Before anything imports numpy or torch: the tests run in parallel processes, and more threads only slow each other.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.digits import Digits

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if IN_CI else "dev")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI counts as a failure: {report.longrepr}"


LONGEST = "test_readme.py"  # one test that takes minutes: begun last, it would leave the other processes idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> "Digits":
    """A trained network and its data, made once for all of the run's processes in about ten seconds."""
    from tests.digits import digits_in

    base = tmp_path_factory.getbasetemp()
    return digits_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits")
