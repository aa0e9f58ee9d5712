"""Our models under EleutherAI's lm-eval harness (extra `eval`): its tasks, its prompts and its scores, our engine.

    from picollm import load
    from picollm.evals.lm_eval import PicoLM, evaluate
    evaluate(load("demo", "base"), ["arc_easy", "piqa"], limit=100)["results"]

    python -m picollm.evals.lm_eval demo --model base --tasks arc_easy,piqa --limit 100 --out results.json

Which tasks there are, and where their data comes from (most from the Hub), is the harness's affair. One process.
Every text begins with <|bos|>, as in training. What is too long loses its beginning; a text to be rated as a whole is
read in windows. Chat templates do not apply: special tokens have no spelling, so a chat model sees plain text here, and
`picollm`'s own chat evaluation is the one that asks it in its format.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from picollm.api import Model, load
from picollm.evals.core import TOKENS_AT_ONCE
from picollm.evals.likelihood import Option, Score, cropped, scores
from picollm.infer.engine import Engine
from picollm.infer.rows import Vocabulary
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.run.folder import write_atomic

try:
    from lm_eval import simple_evaluate, utils
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    missing = f"lm-eval cannot be used: {error.name} is not installed; pip install 'picollm-tui[eval]'"
    if __name__ == "__main__":
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    raise UserError(missing) from None

MAX_TOKENS = 256  # of an answer, where a task does not say


class PicoLM(LM):
    """One of our models as the harness sees it.

    Args:
        tokens_at_once: positions computed together, see `likelihood.scores`; 0: what suits the device.
    """

    def __init__(self, engine: Engine, tok: Vocabulary, tokens_at_once: int = 0) -> None:
        super().__init__()
        self.engine, self.tok = engine, tok
        self.tokens_at_once = tokens_at_once or TOKENS_AT_ONCE[engine.device.type]

    @property
    def tokenizer_name(self) -> str:
        return f"picollm-{getattr(self.tok, 'hash', '')[:12]}"

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Per request (context, continuation): log-probability of the continuation in nats, and whether it is greedy.

        Spaces that end a context belong to the first word of its continuation, as everywhere in the harness.
        """
        together: dict[str, list[int]] = {}  # requests by context: what they share is read once
        for number, request in enumerate(requests):
            together.setdefault(request.args[0], []).append(number)
        rows = [[self._row(*requests[number].args) for number in numbers] for numbers in together.values()]
        kept = [[row for row in group if row.start < len(row.ids)] for group in rows]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)  # nothing to say: certain
        for numbers, group, got in zip(together.values(), rows, self._scores(kept), strict=True):
            rest = iter(got)
            for number, row in zip(numbers, group, strict=True):
                if row.start < len(row.ids):
                    score = next(rest)
                    found[number] = (-score.nll, score.greedy)
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Per request (text,): log-probability of the whole text in nats, each token predicted once."""
        texts = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                self.tok.encode(request.args[0]), self.tok.bos_id, self.engine.context - 1, context_len=1
            )
            pairs = [utils.make_disjoint_window(window) for window in windows]
            texts.append([Option([*before, *after], len(before)) for before, after in pairs])
        found = iter(self._scores([[window] for windows in texts for window in windows]))
        totals = [-sum(next(found)[0].nll for _ in windows) for windows in texts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Per request (context, settings): what the model says, up to one of the texts `until`, which is left out."""
        found = [""] * len(requests)
        together: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            together.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        for numbers in together.values():
            prompts = [[self.tok.bos_id, *self.tok.encode(requests[number].args[0])] for number in numbers]
            answers = self.engine.generate(prompts, _sampling(requests[numbers[0]].args[1]), tools=False)
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = answer.text
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        raise UserError("lm-eval: leave apply_chat_template off; special tokens have no spelling here")

    def _row(self, context: str, continuation: str) -> Option:
        bare = context.rstrip(" \n\t") if context.strip() else ""
        whole = [self.tok.bos_id, *self.tok.encode(context + continuation)]
        start = 1 + len(self.tok.encode(bare))
        return cropped(whole, min(start, len(whole)), self.engine.context)

    def _scores(self, questions: Sequence[Sequence[Option]]) -> list[list[Score]]:
        if self.engine.live:
            self.engine.refresh()
        return scores(self.engine.model, questions, self.tokens_at_once)


def _sampling(settings: dict[str, Any]) -> Sampling:
    until = settings.get("until") or []
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
    return Sampling(
        max_tokens=int(settings.get("max_gen_toks") or MAX_TOKENS),
        temperature=temperature,
        top_k=int(settings.get("top_k") or 0),
        top_p=float(settings.get("top_p") or 1.0),
        stop=[text for text in ([until] if isinstance(until, str) else until) if text],
    )


def evaluate(model: Model, tasks: Sequence[str | dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` of a model: {"results": {task: {metric: value}}, "samples": …, …}.

    `settings` are the harness's own: limit, num_fewshot, task_manager, …

    Raises `UserError` for a task it does not know.
    """
    known = settings["task_manager"] = settings.get("task_manager") or TaskManager()
    for task in tasks:
        if isinstance(task, str) and task not in known.all_tasks and not Path(task).is_file():
            near = ", ".join(difflib.get_close_matches(task, known.all_tasks)) or "a name or the YAML file of one"
            raise UserError(f"lm-eval has no task {task!r}: expected {near}")
    lm = PicoLM(model.engine, model.tokenizer)
    found = simple_evaluate(model=lm, tasks=list(tasks), **settings)
    if found is None:
        raise UserError("lm-eval gave no results")
    return dict(found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm.evals.lm_eval", description="lm-eval on a model of a run.")
    parser.add_argument("run", help="name or folder of a run, or the folder of a checkpoint")
    parser.add_argument("--model", default="base", help="base, mid, sft or rl")
    parser.add_argument("--tasks", required=True, help="names of lm-eval tasks, with commas")
    parser.add_argument("--limit", type=int, default=None, help="most items of each task")
    parser.add_argument("--shots", type=int, default=None, help="solved examples shown; the task's own by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None, help="a file for all of it, as JSON")
    options = parser.parse_args(argv)
    try:
        model = load(options.run, options.model, device=options.device)
        found = evaluate(model, options.tasks.split(","), limit=options.limit, num_fewshot=options.shots)
        if options.out:
            write_atomic(options.out, json.dumps(found, indent=1, default=str))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(utils.make_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
