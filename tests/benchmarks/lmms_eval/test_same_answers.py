"""lmms-eval and `metok bench --quality` give the same answers and scores, by the documented lines.

One served demo answers both, dense and with METok.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.benchmarks.lmms_eval.installed import (
    ENVIRONMENT,
    INSTALL,
    PAGE,
    PLUGIN_LINE,
    ROOT,
    Lmms,
    install,
    shell_blocks,
)
from tests.environment import STARTED_WITH

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(1200)]

# lmms-eval's runs and the settings of `metok bench` that they are compared with.
SETTINGS = {"served": "balanced", "alias": "max", "off": "dense", "max": "max"}
DRAW, BENCH = shell_blocks("The task: your own questions")[0].splitlines()
Answers = Mapping[tuple[str, str], tuple[str, bool]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def lmms(tmp_path_factory: pytest.TempPathFactory) -> Lmms:
    return install(tmp_path_factory.mktemp("lmms"))


@pytest.fixture(scope="module")
def server(lmms: Lmms, folder: Path) -> Iterator[ChildServer]:
    _, *flags = shell_blocks("Serve")[0].strip().replace('"$PWD"', str(folder)).split(" ")[1:]
    with ChildServer([*SERVE, *flags], environ=STARTED_WITH) as server:
        server.wait_until_ready(240)
        yield server


@pytest.fixture(scope="module")
def commands(server: ChildServer) -> list[str]:
    """The lines below "Run", for this server."""
    text = shell_blocks("Run")[0].replace("http://localhost:8000", server.url)
    text = text.replace("benchmarks/lmms_eval", f"{ROOT}/benchmarks/lmms_eval")
    return [line for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def own(lmms: Lmms, server: ChildServer, folder: Path) -> dict[str, Answers]:
    """The answers of `metok bench --quality` by setting."""
    few = DRAW.replace("--videos 3 --frames 64", "--videos 2 --frames 32")
    assert few != DRAW
    bench = BENCH.replace("http://localhost:8000", server.url)
    lmms.run(f"{few}\n{bench} --presets balanced max --result-dir own", folder)
    found: dict[str, dict[tuple[str, str], tuple[str, bool]]] = {}
    for line in (folder / "own" / "answers.jsonl").read_text().splitlines():
        answer = json.loads(line)
        of_setting = found.setdefault(answer["setting"], {})
        of_setting[answer["video"], answer["question"]] = answer["text"], answer["right"]
    return dict(found)


@pytest.fixture(scope="module")
def theirs(
    own: dict[str, Answers], lmms: Lmms, commands: list[str], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """lmms-eval's samples by the name of the output folder."""
    lmms.run("\n".join(commands), folder)
    return {path.name: samples(path) for path in (folder / "out").iterdir()}


def samples(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("*/*_samples_metok_folder.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def score(out: Path) -> float:
    (path,) = out.glob("*/*_results.json")
    results = json.loads(path.read_text())["results"]["metok_folder"]
    return float(results["accuracy,none"])


def text_of(sample: Mapping[str, Any]) -> str:
    text = sample["filtered_resps"]
    return str(text if isinstance(text, str) else text[0])


def test_the_environment_is_checked_by_its_last_line(lmms: Lmms, folder: Path) -> None:
    printed = lmms.run("\n".join(INSTALL[PLUGIN_LINE + 1 :]), folder)
    assert "lmms-eval 0.7.3\n" in printed
    assert f"tasks: --include_path {lmms.plugin}" in printed


def test_answers_and_scores_are_equal(
    own: dict[str, Answers], theirs: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    assert theirs.keys() == SETTINGS.keys()
    questions = json.loads((folder / "eventqa" / "questions.json").read_text())
    for name, found in theirs.items():
        mine = own[SETTINGS[name]]
        assert len(found) == len(mine) == len(questions) == 16
        for sample in found:
            key = questions[sample["doc_id"]]["video"], sample["input"]
            assert (text_of(sample), bool(sample["accuracy"])) == mine[key], (name, key)
        right = sum(is_right for _, is_right in mine.values())
        assert score(folder / "out" / name) == pytest.approx(right / 16)
    # The comparison would be empty if nothing or everything were right.
    assert sum(right for _, right in own["dense"].values()) >= 8


def test_refused_requests(
    lmms: Lmms, commands: list[str], theirs: dict[str, Any], folder: Path
) -> None:
    """lmms-eval counts them as wrong and succeeds; the model `metok` ends the run."""
    settings = [line for line in commands if not line.startswith(ENVIRONMENT)]
    stock, ours = (
        next(line for line in commands if out in line).replace("=metok-demo,", "=other,")
        for out in ("out/served", "out/off")
    )
    stock = stock.replace("out/served", "refused/out").replace("$ARGS", "$ARGS,max_retries=1")
    lmms.run("\n".join([*settings, f"{stock} --limit 2"]), folder)
    assert score(folder / "refused" / "out") == 0
    (search,) = re.findall(r"^grep .*", PAGE, re.M)
    printed = lmms.run(search, folder / "refused")
    assert printed.strip().endswith(":2")
    refused = ours.replace("out/off", "never")
    printed = lmms.run("\n".join([*settings, f"{refused} --limit 2"]), folder, status=1)
    assert "the server refused a request: Error code: 404" in printed
    assert not (folder / "never").exists()
