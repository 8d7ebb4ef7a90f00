"""Makes the pictures of docs/images that show the dashboard, in a headless Chromium.

    python docs/screenshots.py        # needs chromium, chromedriver, selenium, pillow; two minutes

It runs a small search (GCN on the embedded digits), opens its dashboard and takes the pictures.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

IMAGES = Path(__file__).parent / "images"
SEARCH = (
    "search --model gat --dataset digits --granularity lwq+cwq+taq --n-trials 40 --models 1 "
    "--epochs 60 --finetune-epochs 5 --storage s.db"
)
PAGES = {
    "dashboard_study.png": ("/dashboard/studies/1", "Best Trial", 1400),
    "dashboard_note.png": ("/dashboard/studies/1/note", "sgquant export", 1500),
}
_SGQUANT = [sys.executable, "-c", "from sgquant_optuna.cli import main; main()"]
_WIDTH = 1200


def main() -> None:
    """Search, open the dashboard, and write the pictures with 256 colours."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*_SGQUANT, *SEARCH.split()], cwd=folder, check=True)
        command = [*_SGQUANT, "dashboard", "--storage", "s.db", "--port", "0"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2].rstrip("/")
            time.sleep(15)  # until note and plots are written
            for name, (path, expected, height) in PAGES.items():
                picture = take(address + path, expected, height)
                small = Image.open(io.BytesIO(picture)).convert("RGB")
                small.quantize(128).save(IMAGES / name, optimize=True)
                print(IMAGES / name, (IMAGES / name).stat().st_size, "bytes")
        finally:
            server.kill()
            server.wait()


def take(address: str, expected: str, height: int) -> bytes:
    """Return a picture of a page once it shows a text."""
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--window-size={_WIDTH},{height}")
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        browser.get(address)
        end = time.monotonic() + 60
        while expected not in browser.find_element("tag name", "body").text:
            if time.monotonic() > end:
                raise TimeoutError(f"{address}: {expected!r} does not show")
            time.sleep(0.5)
        time.sleep(3)  # plots are drawn after the text
        picture: bytes = browser.get_screenshot_as_png()
        return picture
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
