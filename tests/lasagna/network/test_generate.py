"""Free-running answers equal greedy decoding without a cache; what `lasagna ask` prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from lasagna import Lasagna
from lasagna.commands.cli import main
from lasagna.errors import QueryError
from lasagna.network.generate import answer_text, generate
from lasagna.prompt.dialect import PromptFormat


@pytest.fixture(scope="module", params=["paper", "released"])
def model(request: pytest.FixtureRequest) -> Lasagna:
    return Lasagna.random(2, request.param)


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)


def test_the_cache_changes_nothing(model: Lasagna) -> None:
    prompt, network = model.prompt, model.model
    tokens = model.encode_image(photo()).encoded.tokens
    question = prompt.question(prompt.text_turn("referring", "the dog on the left"))
    found = generate(network, prompt, tokens, question, 20)
    ids = list(prompt.with_image(question))
    with torch.inference_mode():
        for token, state in zip(found.ids, found.hidden, strict=True):
            embeddings = network.sequence(ids, tokens[0])[None]
            hidden = network.run(embeddings, None, torch.arange(embeddings.shape[1])[None], None)[0, -1]
            torch.testing.assert_close(state, hidden, atol=1e-5, rtol=1e-4)
            assert int(network.lm_head(hidden).argmax()) == token
            ids.append(token)
    assert found.forwards == len(found.ids) == 20
    assert not found.complete


class Scripted:
    """Makes a network say given tokens, whatever it is asked; counts its forwards."""

    def __init__(self, model: Lasagna, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = list(ids)
        monkeypatch.setattr(model.model.lm_head, "forward", self.say)

    def say(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), 1000)
        logits[:, self.left.pop(0)] = 1
        return logits


def test_every_present_token_is_a_mask(model: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = model.prompt
    said = [*prompt.tokenizer.encode("It is"), prompt.seg, prompt.neg, prompt.seg, *prompt.tokenizer.encode(".")]
    Scripted(model, [*said, prompt.stop, 7], monkeypatch)
    answer = model.ask(photo(), "the dog", task="referring")
    assert answer.complete
    assert answer.ids == (*said, prompt.stop)
    assert [mask.shape for mask in answer.masks] == [(50, 80)] * 2
    assert answer.text.replace(" ", "") == f"Itis{prompt.format.present}{prompt.format.absent}{prompt.format.present}."
    assert not answer.text.endswith(" .")
    assert answer.forwards == len(answer.ids)


def test_answers_are_cut_at_the_limit_and_at_the_context(model: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(model.ask(photo(), "What?", max_new_tokens=3).ids) == 3
    room = model.prompt.format.max_length
    long = "why " * room
    with pytest.raises(QueryError, match="no room for an answer"):
        model.ask(photo(), long)
    with pytest.raises(QueryError, match="blank"):
        model.ask(photo(), " ")


def test_control_tokens_of_a_question_count_only_if_asked(model: Lasagna) -> None:
    prompt = model.prompt
    text = f"Segment this {prompt.format.present} now"
    from lasagna.network.generate import question_turn

    plain = prompt.question(question_turn(prompt, text, "vqa", False))
    control = prompt.question(question_turn(prompt, text, "vqa", True))
    assert prompt.seg not in plain
    assert control.count(prompt.seg) == 1


def test_text_for_people() -> None:
    prompt = Lasagna.random(0, "released").prompt
    ids = prompt.tokenizer.encode_template("It is <ins>. And <no_ins>, no</s>")
    assert answer_text(prompt, ids) == "It is <ins>. And <no_ins>, no"


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ask")
    Lasagna.random(2, "released").save_pretrained(path / "model")
    Image.fromarray(photo()).save(path / "photo.png")
    return path


def test_the_command(folder: Path, tmp_path: Path) -> None:
    arguments = ["ask", str(folder / "photo.png"), "What is here?", "--model", str(folder / "model"), "--device", "cpu"]
    run = CliRunner().invoke(main, [*arguments, "--max-new-tokens", "5", "--json", "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    answer = json.loads(run.output)
    assert len(answer["ids"]) == answer["forwards"] == 5
    assert answer["complete"] is False
    with Image.open(tmp_path / "out" / "overlay.png") as overlay:
        assert overlay.size == (80, 50)
    assert answer["files"][0] == str(tmp_path / "out" / "overlay.png")
    run = CliRunner().invoke(main, [*arguments, "--max-new-tokens", "5"])
    assert answer["text"] in run.output
    assert "cut after 5 tokens" in run.output


def test_masks_are_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Lasagna.from_pretrained(folder / "model", device="cpu")
    monkeypatch.setattr(Lasagna, "from_pretrained", lambda *_, **__: model)
    Scripted(model, [model.prompt.seg, model.prompt.seg, model.prompt.stop], monkeypatch)
    arguments = ["ask", str(folder / "photo.png"), "What?", "--json", "--out", str(tmp_path)]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 0, run.output
    masks = json.loads(run.output)["masks"]
    for number, mask in enumerate(masks, 1):
        with Image.open(tmp_path / f"mask-{number}.png") as file:
            written = np.asarray(file)
        assert set(np.unique(written)) <= {0, 255}
        assert int((written > 0).sum()) == mask["area"]
        assert list(written.shape) == mask["size"] == [50, 80]
    assert len(masks) == 2


def test_nano_says_that_it_knows_class_lists_only(folder: Path) -> None:
    run = CliRunner().invoke(main, ["ask", str(folder / "photo.png"), "What is here?", "--device", "cpu"])
    assert run.exit_code == 2
    assert "only for class lists" in run.output


def test_wrong_images(folder: Path) -> None:
    run = CliRunner().invoke(main, ["ask", str(folder / "nothing.png"), "What?", "--model", str(folder / "model")])
    assert run.exit_code == 2
    assert "nothing.png" in run.output


def test_an_untrained_task_is_refused() -> None:
    model = Lasagna.random()
    format = PromptFormat(questions={"classes": ("<classes>",), "vqa": ("<text>",)}, answers={})
    other = Lasagna(model.model, model.tokenizer, format, model.calibration, "other")
    with pytest.raises(QueryError, match="'referring', only for vqa and class lists"):
        other.ask(photo(), "the dog", task="referring")
