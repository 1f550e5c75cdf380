"""
What text generation reaches, beside the other ways in which a model of transformers can be served.

16 clients each send a request again once they have their answer: prompts of 16 to 192 random
tokens, answers of 8 to 96, greedy, through every end token. All systems do the same requests, in
turns, so that the machine's moods meet them alike, and have to give the same texts. The models are
a Llama of 5 million parameters with random weights and the real SmolLM2-135M-Instruct, in float32.

How many cores were busy with anything else is told as `disturbed`: where a thread of two has to
wait for a core, the other one waits for it, so that only undisturbed figures can be compared.

    python -m benchmarks.generation [--rounds 3] [--threads N] [--quick] [--json FILE]
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import transformers
from benchmarks.generation_systems import (
    MAX_LENGTH,
    N_CLIENTS,
    Batches,
    Continuous,
    Engine,
    Fifo,
    Http,
    Run,
    System,
    Threads,
    Work,
    made_work,
)
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mlserve.huggingface import samples

N_VOCAB = 8192
GOALS = {  # of the engine: times FIFO, times continuous batching
    "tiny": (5.0, 1.4),
    "smollm2": (3.0, 1.4),
}


def saved_tiny(folder: Path) -> Path:
    """Write a model whose greedy answers vary, and a tokenizer with a word for each token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.06,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0, "<start>": 1, "<end>": 2} | {f" {i}": i for i in range(3, N_VOCAB)}
    made = Tokenizer(WordLevel(words, "<pad>"))
    made.decoder = decoders.Fuse()
    fast: type[Any] = PreTrainedTokenizerFast
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
    fast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """Run `mlserve run`, and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlserve", "run", "benchmarks.generation_server:server"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | {"BENCHMARK_TINY_LLAMA": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int) -> None:
    for _ in range(2400):
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /ready HTTP/1.0\r\nHost: test\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError("The server did not start.")


def opened(name: str, folder: Path, port: int) -> list[System]:
    """Load a model, and give the systems that serve it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # What is set beside the engine stands beside it: the machine's moods last for minutes.
    kinds: list[type[System]] = [Threads, Batches, Fifo, Engine, Continuous]
    if name != "tiny":  # 16 of them at once on two cores: nobody would wait for that
        kinds.remove(Threads)
    return [*(kind(model, tokenizer) for kind in kinds), Http(tokenizer, name, port)]


def measured(systems: Sequence[System], work: Work, rounds: int) -> dict[str, list[Run]]:
    """Have each system do the work in each round, after one request to warm up."""
    runs: dict[str, list[Run]] = {system.name: [] for system in systems}
    for system in systems:
        system.run(work[:1])
    for number in range(rounds):
        for system in systems if number % 2 else reversed(systems):
            before = _busy_s()
            run = system.run(work)
            run.others_busy = max(_busy_s() - before, 0.0) / run.took_s
            runs[system.name].append(run)
            told = f"{run.tokens_per_s:.0f} tokens/s, {run.others_busy:.2f} cores busy elsewhere"
            print(f"round {number + 1}: {system.name}: {told}", file=sys.stderr, flush=True)
    return runs


def _busy_s() -> float:
    """Say how long cores have been busy with what is not of this benchmark, in seconds."""
    cpu = psutil.cpu_times()
    ours = psutil.Process()
    times = [process.cpu_times() for process in (ours, *ours.children(recursive=True))]
    idle_s = cpu.idle + getattr(cpu, "iowait", 0.0)
    return float(sum(cpu[:8]) - idle_s - sum(each.user + each.system for each in times))


def summarised(runs: dict[str, list[Run]], work: Work) -> dict[str, dict[str, Any]]:
    """Give the medians over the rounds, and how many texts are those of FIFO."""
    wanted = runs[Fifo.name][0].texts
    summary = {}
    for name, rounds in runs.items():
        rates = [run.tokens_per_s for run in rounds]
        firsts = [run.first_s for run in rounds]
        same = [sum(map(str.__eq__, run.texts, wanted)) for run in rounds]
        summary[name] = {
            "tokens_per_s": round(statistics.median(rates), 1),
            "tokens_per_s_rounds": [round(rate, 1) for rate in rates],
            "first_token_ms": round(statistics.median(map(statistics.median, firsts)) * 1e3, 1),
            "first_token_max_ms": round(statistics.median(map(max, firsts)) * 1e3, 1),
            "others_busy": [round(run.others_busy, 2) for run in rounds],
            "equal": min(same),
            "of": len(work),
        }
    return summary


def print_table(model: str, summary: dict[str, dict[str, Any]]) -> None:
    head = f"{'tokens/s':>9} {'rounds':>15} {'first token ms':>15} {'max':>8} {'disturbed':>10}"
    print(f"\n{model:24} {head}   equal")
    for name, row in summary.items():
        low, high = min(row["tokens_per_s_rounds"]), max(row["tokens_per_s_rounds"])
        print(
            f"{name:24} {row['tokens_per_s']:9.1f} {low:7.0f}-{high:<7.0f}"
            f" {row['first_token_ms']:15.0f} {row['first_token_max_ms']:8.0f}"
            f" {max(row['others_busy']):10.2f}   {row['equal']}/{row['of']}"
        )


def judged(
    model: str, runs: dict[str, list[Run]], summary: dict[str, dict[str, Any]], prefill_s: float
) -> dict[str, Any]:
    """Hold the engine against the goals; ratios are those within a round."""

    def times(other: str) -> float:
        pairs = zip(runs[Engine.name], runs[other], strict=True)
        return statistics.median(ours.tokens_per_s / its.tokens_per_s for ours, its in pairs)

    least_fifo, least_continuous = GOALS[model]
    step_s = statistics.median(s for run in runs[Engine.name] for s in run.steps_s)
    most_first_ms = (prefill_s + 2 * step_s) * 1e3
    found: dict[str, Any] = {
        "times_fifo": round(times(Fifo.name), 2),
        "times_continuous": round(times(Continuous.name), 2),
        "http_times_fifo": round(1 / times(Http.name) * times(Fifo.name), 2),
        "prefill_ms": round(prefill_s * 1e3, 1),
        "step_ms": round(step_s * 1e3, 1),
        "goals": {"times_fifo": least_fifo, "times_continuous": least_continuous},
    }
    found["is_met"] = {
        "times_fifo": found["times_fifo"] >= least_fifo,
        "times_continuous": found["times_continuous"] >= least_continuous,
        "first_token": summary[Engine.name]["first_token_ms"] <= most_first_ms,
        "equal": all(row["equal"] == row["of"] for row in summary.values()),
    }
    print(
        f"engine: {found['times_fifo']} x FIFO (goal {least_fifo}), {found['times_continuous']} x"
        f" continuous batching (goal {least_continuous}); over HTTP {found['http_times_fifo']} x"
        f" FIFO; first token within prefill + 2 steps = {most_first_ms:.0f} ms;"
        f" met: {found['is_met']}"
    )
    return found


def machine() -> dict[str, Any]:
    """Say what was measured on, and with what."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "clients": N_CLIENTS,
    }


def main() -> int:
    """Measure in turns, print the tables, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of the tiny model, else one less")
    parser.add_argument("--model", choices=["tiny", "smollm2"], help="only this one")
    parser.add_argument(
        "--threads", type=int, help="of torch; as many as there are cores if left out"
    )
    parser.add_argument("--quick", action="store_true", help="one round of fewer requests")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ["BENCHMARK_THREADS"] = f"{torch.get_num_threads()}"
    plans = {  # rounds, requests
        "tiny": (1, 48) if options.quick else (options.rounds, 12 * N_CLIENTS),
        "smollm2": (1, 8) if options.quick else (max(options.rounds - 1, 1), 3 * N_CLIENTS),
    }
    report: dict[str, Any] = {"machine": machine()}
    are_met = True
    with tempfile.TemporaryDirectory() as scratch, served(saved_tiny(Path(scratch))) as port:
        for name, (rounds, n_requests) in plans.items():
            if options.model not in (None, name):
                continue
            systems = opened(name, Path(scratch) if name == "tiny" else samples.smollm2(), port)
            n_vocab = N_VOCAB if name == "tiny" else 49_152
            work = made_work(n_requests, n_vocab)
            runs = measured(systems, work, rounds)
            [engine] = [system for system in systems if isinstance(system, Engine)]
            summary = summarised(runs, work)
            print_table(name, summary)
            found = judged(name, runs, summary, engine.prefill_s(work))
            report[name] = {"systems": summary, "engine": found}
            are_met = are_met and all(found["is_met"].values())
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0 if are_met else 1


if __name__ == "__main__":
    sys.exit(main())
