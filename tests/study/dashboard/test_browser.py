"""The real server in a process, and the real page in a headless Chromium."""

import base64
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import optuna
import pytest

from sgquant_optuna.storage import open_storage
from tests.hand_made import final_result, measured, new_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver on the PATH: apt-get install chromium chromium-driver",
)
SECONDS = 40


def fill(path):
    """A search that ended, with a smaller trial that did not hold, and one of two values."""
    storage, rng = open_storage(path), np.random.default_rng(0)
    for name, mode in (("least-memory", "constrained"), ("front", "pareto")):
        study = new_study(storage, name=name, mode=mode, planned=8)
        for number in range(8):
            widths = tuple(int(width) for width in rng.choice((1, 2, 4, 8), 4))
            drop = 9.0 if 1 in widths else 0.1 * number - 0.2
            key = "constraint 0" if mode == "constrained" else "objective 1"
            study.add_trial(measured(widths, drop, mode=mode, predicted={key: drop - 0.4}))
        study.add_trial(measured((2, 2, 2, 2), 0.4, mode=mode))
        study.add_trial(measured((2, 2, 2, 4), 0.3, mode=mode))
        study.add_trial(measured((1, 1, 1, 1), 30.0, mode=mode))
    final = final_result((91.0, 90.0), (90.0, 90.0), trial=9, others=(8,))
    final.save(optuna.load_study(study_name="least-memory", storage=storage))


@contextmanager
def server(folder):
    code = "from sgquant_optuna.cli import main; main()"
    command = [sys.executable, "-c", code, "dashboard", "--storage", "s.db", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Dashboard on http://127.0.0.1:"), line
        yield line.split()[2].rstrip("/")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    fill(folder / "s.db")
    with server(folder) as address:
        wait(lambda: all(b"sgquant export" in get(f"{address}/api/studies/{i}") for i in (1, 2)))
        yield address


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1300,1400")
    options.add_argument("--host-resolver-rules=MAP evil.example 127.0.0.1")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def get(address):
    with urllib.request.urlopen(address, timeout=SECONDS) as answer:
        return answer.read()


def wait(is_true):
    end = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def shown(browser, address, *texts):
    """Open a page and return its text, once it shows all that is expected."""
    browser.get(address)
    end = time.monotonic() + SECONDS
    while True:
        text = browser.find_element("tag name", "body").text
        missing = [expected for expected in texts if expected not in text]
        if not missing:
            return text
        assert time.monotonic() < end, f"missing {missing} in:\n{text}"
        time.sleep(0.2)


def test_the_start_page_lists_the_studies(browser, address):
    shown(browser, address, "least-memory", "front", "Direction: MINIMIZE, MINIMIZE")


def test_the_study_page_shows_a_feasible_best_trial_that_held(browser, address):
    text = shown(
        browser,
        f"{address}/dashboard/studies/1",
        "memory (bytes)",
        "Best Trial (number=9)",
        "Infeasible",
        "Study Artifacts",
    )
    assert "conv2/embedding/bucket1: 4]" in text


def test_the_study_page_of_two_values_shows_the_feasible_front(browser, address):
    text = shown(
        browser,
        f"{address}/dashboard/studies/2",
        "Pareto Front",
        "expected drop (points)",
        "Best Trials",
        "Trial 8",
    )
    assert "Trial 10" not in text.split("Best Trials")[1].split("Study User Attributes")[0]


def test_the_note_shows_the_result_and_every_plot_loads(browser, address):
    shown(
        browser,
        f"{address}/dashboard/studies/1/note",
        "times smaller than float32",
        "It held on fresh trainings.",
        "89.70 %",
        "sgquant export least-memory --attach --out model.sgq",
    )

    def widths():
        script = (
            "return [...document.querySelectorAll('img')].map(i => i.complete && i.naturalWidth)"
        )
        return browser.execute_script(script)

    wait(lambda: len(widths()) == 5 and all(width > 300 for width in widths()))


def test_a_trial_page_has_a_note(browser, address):
    shown(
        browser,
        f"{address}/dashboard/studies/1/trials?numbers=10",
        "30.00 points, limit 0.5 points: not feasible",
    )


FETCH = """
const [address, options, done] = arguments;
fetch(address, options).then(async a => done([a.status, await a.text()]), () => done([0, ""]));
"""


def test_a_page_of_a_stranger_neither_reads_nor_deletes_a_study(browser, address):
    port = address.rpartition(":")[2]
    text = shown(browser, f"http://evil.example:{port}/", "--allow-host evil.example")
    assert "least-memory" not in text
    # By its own name, which it has pointed at this machine, and by the address.
    for host in ("", address):
        for path, options in (
            ("/api/studies", {}),
            ("/api/studies/1", {"method": "DELETE"}),
            ("/api/studies/1/rename", {"method": "POST", "body": '{"study_name": "taken"}'}),
            ("/api/studies/1/rename", {"method": "POST", "mode": "no-cors", "body": "{}"}),
        ):
            status, body = browser.execute_async_script(FETCH, host + path, options)
            assert status in (0, 403) and "least-memory" not in body
    told = json.loads(get(f"{address}/api/studies"))["study_summaries"]
    assert [study["study_name"] for study in told] == ["least-memory", "front"]


def test_an_html_and_an_svg_file_run_nothing(browser, address):
    script = "<script>localStorage.ran = 1; fetch('/api/studies/2', {method: 'DELETE'})</script>"
    files = {
        "a.html": f"<html><body>{script}</body></html>",
        "a.svg": f'<svg xmlns="http://www.w3.org/2000/svg">{script}</svg>',
    }
    for name, content in files.items():
        uri = "data:text/plain;base64," + base64.b64encode(content.encode()).decode()
        sent = urllib.request.Request(
            f"{address}/api/artifacts/1",
            json.dumps({"file": uri, "filename": name}).encode(),
            {"Content-Type": "application/json"},
        )
        path = f"{address}/artifacts/1/{json.loads(get(sent))['artifact_id']}"
        shown(browser, f"{address}/dashboard", "least-memory")
        browser.get(path)
        browser.execute_async_script(
            """const frame = document.createElement("iframe"); frame.src = arguments[0];
            document.body.append(frame); setTimeout(arguments[1], 500);""",
            path,
        )
        shown(browser, f"{address}/dashboard", "least-memory", "front")
        assert browser.execute_script("return localStorage.getItem('ran')") is None
    assert b'"front"' in get(f"{address}/api/studies")
