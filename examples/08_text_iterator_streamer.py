"""
transformers' `generate()` as a stream, stopped when the client leaves.

    mlserve run 08_text_iterator_streamer:server
    curl -N --json '{"prompt": "w1 w2"}' http://127.0.0.1:8000/v1/models/babble/stream

Needs `pip install 'mlserve[transformers]'`. The model is made here: tiny, with random weights.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import httpx2
import torch
import transformers as hf
from pydantic import BaseModel, Field
from tokenizers import Tokenizer, models, pre_tokenizers

from mlserve import Call, ModelHandler, ModelServer
from mlserve.testing import running

lengths: SimpleQueue[int] = SimpleQueue()  # only for the check: how long generated texts became


class Prompt(BaseModel):
    prompt: str
    max_tokens: int = Field(default=20, ge=1, le=2000)


class ClientLeft(hf.StoppingCriteria):
    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self.call.cancelled, device=input_ids.device)


class Babble(ModelHandler[Prompt, str]):
    def load(self) -> None:  # two `from_pretrained(…)` for a real model
        tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(9)}, "w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        tiny = hf.LlamaConfig(vocab_size=9, hidden_size=64, num_hidden_layers=2, eos_token_id=None)
        self.model = hf.LlamaForCausalLM(tiny).to(self.context.device).eval()

    def stream(self, prompt: Prompt, call: Call) -> Iterator[str]:
        inputs = self.tokenizer(prompt.prompt, return_tensors="pt").to(self.model.device)
        streamer = hf.TextIteratorStreamer(self.tokenizer, skip_prompt=True)
        options = {"streamer": streamer, "stopping_criteria": [ClientLeft(call)]}
        options["max_new_tokens"] = prompt.max_tokens
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.model.generate, **inputs, **options, do_sample=True)
            done.add_done_callback(lambda _: streamer.end())  # else an error would leave us waiting
            try:
                yield from filter(None, streamer)
            finally:  # waits until `generate()` has stopped, and raises what it raised
                lengths.put(len(done.result()[0]))


server = ModelServer(title="Babble").add("babble", Babble)


def check(client: httpx2.Client) -> None:
    url = "/v1/models/babble/stream"
    print(client.post(url, json={"prompt": "w1 w2", "max_tokens": 4}).text, lengths.get(timeout=30))
    with client.stream("POST", url, json={"prompt": "w1", "max_tokens": 2000}) as answer:
        print(next(answer.iter_lines()), "… and the client leaves")
    print(length := lengths.get(timeout=30), "tokens, not 2000")
    assert length < 1000


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
