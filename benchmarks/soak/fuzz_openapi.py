"""Schemathesis against a real `cellfoundry serve`: what /openapi.json promises holds, whatever is sent.

    pip install schemathesis==4.32.5
    python benchmarks/soak/fuzz_openapi.py --examples 1000 --out result.json

Every check of Schemathesis is on but one: that whatever fits the schema is accepted, since a JSON schema cannot say
that two lists are as long as each other. h5ad and Arrow bodies are random here; fuzz_endpoint.py damages
real ones. The process must live, log no traceback and answer no 5xx.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from soak_server import make_model, served

OFF = "positive_data_acceptance"
BODIES = """
import schemathesis

@schemathesis.serializer("application/x-hdf5", "application/vnd.apache.arrow.stream")
def sent_as_they_are(context, value):
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")
"""
"""Hooks: of these types Schemathesis knows no writer."""


REAL_NAMES = """
[parameters]
"path.model" = "cellfoundry"
"path.version" = "1"
"""
"""Configuration: drawn names of models would nearly all be refused."""
ANSWERED = re.compile(r'^cellfoundry_requests_total\{status="(\d+)"\} (\d+)', re.MULTILINE)


def soak(folder: Path, examples: int, seed: int, schemathesis: str) -> dict[str, Any]:
    """Runs Schemathesis until its end, and asks it and the endpoint how it went."""
    make_model(folder / "model", seed=0)
    (folder / "hooks.py").write_text(BODIES)
    (folder / "schemathesis.toml").write_text(REAL_NAMES)
    report = folder / "report.json"
    options = {
        "--checks": "all",
        "--exclude-checks": OFF,
        "--max-examples": examples,
        "--seed": seed,
        "--report": "json",
        "--report-json-path": report,
    }
    with served(str(folder / "model"), folder / "log") as server:
        call = [schemathesis, "run", f"{server.url}/openapi.json", "--continue-on-failure", "--no-color"]
        done = subprocess.run(
            call + [str(word) for option in options.items() for word in option],
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        ended = server.ended()
        answers = {} if ended else dict(ANSWERED.findall(httpx.get(f"{server.url}/metrics").text))
        memory_MB = 0.0 if ended else round(server.memory_MB(), 1)
    if not report.exists():
        sys.exit(done.stdout + done.stderr)
    said = json.loads(report.read_text())
    findings = [json.dumps(failure) for failure in said["failures"] + said["errors"]]
    findings += re.findall(r"^ *(curl .*)$", done.stdout, re.MULTILINE)  # that shows each again
    failed = [name for name, phase in said["phases"].items() if phase["status"] not in ("success", "failure")]
    findings += [f"the phase {name} was not run to its end" for name in failed]
    findings += [f"{number} answers were {status}" for status, number in answers.items() if status[0] == "5"]
    if not said["test_cases"]["generated"] or (done.returncode and not findings):
        findings.append(f"Schemathesis ended with {done.returncode}: {done.stdout[-500:]}")
    if ended:
        findings.append("the endpoint ended")
    if "Traceback" in (folder / "log").read_text(errors="replace"):
        findings.append("the log has a traceback")
    return {
        "soak": "endpoint fuzzed by Schemathesis",
        "schemathesis": said["schemathesis_version"],
        "findings": findings,
        "phases": {name: phase["status"] for name, phase in said["phases"].items()},
        "operations_tested": said["operations"]["tested"],
        "test_cases": said["test_cases"]["generated"],
        "answers_by_status": {status: int(number) for status, number in sorted(answers.items())},
        "answers_5xx": sum(int(number) for status, number in answers.items() if status[0] == "5"),
        "check_off": OFF,
        "memory_MB": memory_MB,
        "examples": examples,
        "seed": seed,
        "seconds": round(said["running_time"], 1),
    }


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=1000, help="most test cases an operation and phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", default="schemathesis", help="the command, where it is not on PATH")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.examples, arguments.seed, arguments.schemathesis)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")
    sys.exit(bool(result["findings"]))


if __name__ == "__main__":
    main()
