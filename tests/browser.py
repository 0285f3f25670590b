"""Pages in a real Chromium, driven by the Playwright that the recorder's tests bring."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PLAYWRIGHT = Path(__file__).parents[1] / "recorder-app" / "node_modules" / "playwright-core"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or shutil.which("node") is None or not PLAYWRIGHT.exists(),
    reason="needs Chromium, node and `npm ci --prefix recorder-app`",
)
# A context a call; what the page logs as an error, or throws, is in `errors`.
SCRIPT = """
const { chromium } = require(process.argv[1]);
(async () => {
  const browser = await chromium.launch({
    executablePath: process.argv[2],
    args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
  });
  const errors = [];
  const open = async options => {
    const page = await (await browser.newContext(options)).newPage();
    page.on('pageerror', error => errors.push(error.message));
    page.on('console', message => { if (message.type() === 'error') errors.push(message.text()); });
    page.setDefaultTimeout(180000);
    return page;
  };
  const result = await (async args => { BODY })(JSON.parse(process.argv[3]));
  console.log(JSON.stringify({ errors, ...result }));
  await browser.close();
})().catch(error => { console.error(error); process.exit(1); });
"""


def in_chromium(body: str, **args: Any) -> dict[str, Any]:
    """Run `body`, JavaScript that may `await open(context options)` a Playwright page and returns an object.

    It finds `args`; returned are its object and `errors`, what the pages complained of.
    """
    done = subprocess.run(
        ["node", "-e", SCRIPT.replace("BODY", body), str(PLAYWRIGHT), str(CHROMIUM), json.dumps(args)],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
