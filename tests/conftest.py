"""Fixtures every part of the suite shares."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, make_lab

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--material", metavar="DIR", help="folder with the reference material (parity/, data/, curves/)")


@pytest.fixture(scope="session")
def material(request: pytest.FixtureRequest) -> Path:
    """The folder given by --material; a test that asks for it is skipped without one."""
    folder = request.config.getoption("--material")
    if folder is None:
        pytest.skip("needs the reference material: pytest tests --material DIR")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def lab(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A throw-away checkout: ``lab.run("debug=smoke", ..., expect=0)`` runs a command there, into ``lab.runs``."""
    return make_lab(repository, tmp_path_factory.mktemp("lab") / "checkout")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where Chromium, its driver or selenium is missing."""
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install rwkv_lab[dev])")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))
