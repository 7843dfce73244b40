"""Fresh samples of the reference: they are its own, they fall by β KL(π_ref‖π), and a scoring can be given them later."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import called
from tiny import alone, tokens_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from softq.data.store import write_json
from softq.inspection.columns import FRESH
from softq.inspection.fresh import figures, findings
from softq.inspection.shelf import FACTS, Shelf, place, put
from softq.lm.model import CausalLM
from softq.lm.reference import fingerprint
from softq.reading import fresh
from softq.reading.fresh import spread
from softq.reading.run import scored
from softq.reading.tables import Asked
from softq.training.events import Note, OutputError
from softq.training.samples import generated


@pytest.fixture(scope="module")
def policy(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is not its reference."""
    directory = tmp_path_factory.mktemp("policy")
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_directory).save_pretrained(directory)
    return directory


@pytest.fixture
def asked(
    policy: Path, model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Asked:
    monkeypatch.setattr(fresh, "MOST", 12)
    return Asked(str(policy), (str(pairs_file),), tmp_path / "out", str(model_directory), 0.5)


def told(asked: Asked) -> str:
    return "\n".join(event.text for event in scored(asked) if isinstance(event, Note))


def test_samples_are_the_references_and_their_log_probs_those_of_its_own_forward(
    asked: Asked, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def listened(model: CausalLM, prompt: np.ndarray, *stops: list[int], **options: int) -> list[int]:
        drawn.append((fingerprint(model), prompt.tolist(), generated(model, prompt, *stops, **options)))
        return drawn[-1][-1]

    monkeypatch.setattr(fresh, "generated", listened)
    assert "7 fresh samples" in told(asked._replace(fresh=7))
    found = Shelf(asked.output).table("fresh").to_pylist()
    assert [row["record"] for row in found] == spread(7, 20) == [0, 2, 5, 8, 11, 14, 17]
    assert {of for of, _, _ in drawn} == {Shelf(asked.output).facts["reference"]["fingerprint"]}
    models = [AutoModelForCausalLM.from_pretrained(path).double() for path in (asked.policy, model_directory)]
    whole = tokens_of([(n, prompt, said) for n, (_, prompt, said) in enumerate(drawn)])
    with torch.no_grad():
        logp, ref = (alone(model, whole).sum(-1) for model in models)
    assert [row["logp"] for row in found] == pytest.approx(logp.tolist(), abs=1e-4)
    assert [row["ref_logp"] for row in found] == pytest.approx(ref.tolist(), abs=1e-4)
    assert [row["reward"] for row in found] == pytest.approx((0.5 * (logp - ref)).tolist(), abs=1e-4)
    assert [row["tokens"] for row in found] == [len(said) for _, _, said in drawn]
    assert len({tuple(said) for _, _, said in drawn}) == 7


def test_they_fall_by_beta_kl_and_a_finding_says_where_they_do_not(asked: Asked) -> None:
    told(asked._replace(fresh=20))
    shelf = Shelf(asked.output)
    found = {figure.name: figure for figure in figures(shelf)}
    reward, forced, off = (found[f"fresh/{name}"] for name in ("reward", "forced", "off"))
    assert reward.of == 20
    assert reward.value < 0
    assert forced.interval is not None
    assert forced.interval[1] < 0
    assert off.interval is not None
    assert abs(off.value) < 2 * (off.interval[1] - off.value)  # four standard errors
    assert off.value == pytest.approx(reward.value - forced.value)
    assert findings(shelf) == []


def by_hand(directory: Path, reward: list[float], kl: list[float], beta: float | None) -> Shelf:
    blank = {"text": "", "ended": True}
    columns = {name: [blank.get(name, 0)] * len(reward) for name in FRESH}
    put(directory, "fresh", 0, {**columns, "reward": reward, "kl_from_ref": kl}, compared=True)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": "rows",
        "parts": 1,
        "beta": beta,
        "unit": "reward",
        "reference": "r",
    }
    write_json(directory / FACTS, {**facts, "fresh": len(reward)})
    return Shelf(directory)


def test_figures_by_hand(tmp_path: Path) -> None:
    shelf = by_hand(tmp_path / "1", [-1.0, -2.0, -3.0], [5.0, 4.0, 3.0], 0.5)
    found = {figure.name: figure for figure in figures(shelf)}
    assert [found[f"fresh/{name}"].value for name in ("reward", "forced", "off")] == [-2.0, -2.0, 0.0]
    half = 1.959964 * 1 / math.sqrt(3)
    assert found["fresh/reward"].interval == pytest.approx((-2 - half, -2 + half))
    assert findings(shelf) == []
    nats = by_hand(tmp_path / "2", [-1.0, -1.1] * 20, [5.0, 4.0] * 20, None)
    assert {figure.name: figure.value for figure in figures(nats)}["fresh/forced"] == -4.5
    (off,) = findings(nats)
    assert (off.level, "+3.45 off" in off.told) == ("act", True)


def test_they_can_be_added_to_what_was_scored_but_not_exchanged(asked: Asked) -> None:
    told(asked)
    before = place(asked.output, "pairs", 0).stat().st_mtime_ns
    assert figures(Shelf(asked.output)) == []
    told(asked._replace(fresh=3))
    first = Shelf(asked.output).table("fresh")
    assert place(asked.output, "pairs", 0).stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"holds scores of another fresh \(3, now 5\)"):
        told(asked._replace(fresh=5))
    told(asked._replace(fresh=20, overwrite=True))
    every = Shelf(asked.output).table("fresh").to_pylist()
    assert [row for row in every if row["record"] in spread(3, 20)] == first.to_pylist()


def test_what_can_not_be_sampled_is_refused(asked: Asked, capsys: pytest.CaptureFixture) -> None:
    for reference in ("none", "uniform"):
        with pytest.raises(ValueError, match=f"--fresh 4 samples from the reference, which is {reference}: give"):
            told(asked._replace(fresh=4, reference=reference))
    words = ["--policy", asked.policy, "--data", *asked.data, "--output", str(asked.output), "--fresh", "-1"]
    code, _, wrong = called(["score", *words], capsys)
    assert (code, wrong.count("\n"), "--fresh -1: expected" in wrong) == (2, 1, True)
    assert not asked.output.exists()


def test_labels_are_prompts_too(asked: Asked, tmp_path: Path) -> None:
    lines = [{"prompt": "Say", "completion": f" {word}", "label": word == "aa"} for word in ("aa", "bb")]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told(asked._replace(data=(str(tmp_path / "labels.jsonl"),), fresh=9))
    assert Shelf(asked.output).table("fresh")["record"].to_pylist() == [0, 1]
