"""CORE on a miniature bundle and a model whose probabilities are written down here, so that scores come by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import httpx
import pytest
import torch

from picollm.evals import core, core_bundle
from picollm.evals.core import evaluate_task, is_right, options, prompts
from picollm.evals.core_bundle import Bundle, fetched
from picollm.evals.likelihood import Score
from picollm.infer.engine import Engine
from picollm.run.errors import UserError
from picollm.train.device import Ranks
from tests.evals.bundle import CSV, YAML, write_bundle, zip_bundle
from tests.hub import LoopbackHub
from tests.infer.fakes import ByteTokenizer, tiny_model

TOK = ByteTokenizer()
ALONE = Ranks(torch.device("cpu"))
LETTERS = {"a": 1 / 2, "b": 1 / 4, "c": 1 / 8, "d": 1 / 16}
LETTER_FILE = "eval_data/reading/letters.jsonl"
AFTER = {"x": {" ": 1 / 2, "a": 1 / 4, "b": 1 / 8}, ":": {" ": 3 / 4, "a": 1 / 8}}  # anything else: LETTERS


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(write_bundle(tmp_path / "bundle"))


@pytest.fixture
def engine() -> Engine:
    """Each id's probability depends on the id before it alone."""
    table = torch.zeros(TOK.vocab_size, TOK.vocab_size)
    for before in range(TOK.vocab_size):
        known = AFTER.get(chr(before), LETTERS)
        table[before] = (1 - sum(known.values())) / (TOK.vocab_size - len(known))
        for letter, share in known.items():
            table[before, ord(letter)] = share
    made = Engine(tiny_model(), TOK)

    def hidden(ids: torch.Tensor, span=None) -> torch.Tensor:
        read = ids if span is None or span.opens else ids[:, 1:]
        return torch.nn.functional.pad(read[..., None].float(), (0, 31))

    made.model.hidden = hidden  # type: ignore[method-assign]
    made.model.logits = lambda x: table[x[..., 0].long()].log()  # type: ignore[method-assign]
    return made


def cells(bundle: Bundle, engine: Engine, **how) -> dict[str, dict]:
    return {task.label: evaluate_task(task, bundle.rows(task)[0], engine, TOK, ALONE, **how) for task in bundle.tasks}


def test_the_scores_are_those_computed_by_hand(bundle, engine):
    found = cells(bundle, engine)
    # letters: a beats b, c, d; aab (4/3 ln 2) beats b (2 ln 2); a beats b (wrong); aa (ln 2) beats ba (3/2 ln 2)
    assert (found["letters"]["correct"], found["letters"]["n"]) == (3, 4)
    assert found["letters"]["centered"] == pytest.approx((3 / 4 - 1 / 4) / (1 - 1 / 4))
    # winograd: the blank that begins the common ending is likely after x only, so x wins; it should not in row 2
    assert (found["winograd"]["correct"], found["winograd"]["n"]) == (3, 4)
    assert found["winograd"]["centered"] == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))
    # repeat: the likeliest after a colon is a blank, then always a: aba and b are not it
    assert (found["repeat"]["correct"], found["repeat"]["n"]) == (3, 5)
    assert found["repeat"]["centered"] == pytest.approx(3 / 5)
    total = core.core(list(found.values()))
    assert total["core"] == pytest.approx((2 / 3 + 1 / 2 + 3 / 5) / 3)
    assert (total["tasks"], total["n"], total["complete"]) == (3, 13, False)
    # Wilson: 3 of 4 is .3006 to .9544, 3 of 5 is .2307 to .8824; half widths stretched by 1 / (1 - baseline)
    reach = math.hypot(0.3269 / 0.75, 0.3269 / 0.5, 0.32585) / 3
    assert (total["low"], total["high"]) == pytest.approx((total["core"] - reach, total["core"] + reach), abs=1e-3)
    assert found["letters"]["centered_low"] == pytest.approx((0.3006 - 0.25) / 0.75, abs=1e-3)


@pytest.mark.parametrize("tokens_at_once", [1, 100, 10**6])
def test_the_scores_do_not_depend_on_the_batches(bundle, engine, tokens_at_once, monkeypatch):
    monkeypatch.setattr(core, "BLOCK", 2)
    correct = {name: cell["correct"] for name, cell in cells(bundle, engine, tokens_at_once=tokens_at_once).items()}
    assert correct == {"letters": 3, "winograd": 3, "repeat": 3}


def test_examples_are_drawn_and_written_as_published(bundle, engine, monkeypatch):
    asked: list[tuple[str, list[str]]] = []
    honest = core.options
    monkeypatch.setattr(core, "options", lambda kind, texts, *a: asked.append((kind, texts)) or honest(kind, texts, *a))
    cells(bundle, engine)
    letters = [texts for kind, texts in asked if kind == "multiple_choice"]
    # Random(1337) orders four rows 1, 0, 3, 2; Random(1234) shows the first of them row 3
    assert ["q3 aa\n\nq1 b", "q3 aa\n\nq1 aab", "q3 aa\n\nq1 c", "q3 aa\n\nq1 d"] in letters
    assert ["x aa", "y aa"] in [texts for kind, texts in asked if kind == "schema"]
    shown = "five\nAnswer: aa\n\none\nAnswer: aaa\n\n"  # of 1, 0, 3, 2, 4 the first one is shown rows 4 and 0
    repeat = [texts for kind, texts in asked if kind == "language_modeling"]
    assert [f"{shown}two\nAnswer:", f"{shown}two\nAnswer: aba"] in repeat
    assert len(asked) == 13


def test_what_is_scored(bundle):
    choice, lengths = options("multiple_choice", ["ab cd", "ab ce", "ab c"], TOK, 128)
    assert [option.start for option in choice] == [5, 5, 5] and not lengths
    assert [len(option.ids) for option in choice] == [6, 6, 5] and choice[0].ids[0] == TOK.bos_id
    schema, _ = options("schema", ["one is", "three is"], TOK, 128)
    assert [len(o.ids) - o.start for o in schema] == [4, 4]  # "e is"
    [language], _ = options("language_modeling", ["ab:", "ab: c"], TOK, 128)
    assert language.start == 4 and language.ids[4:] == [ord(" "), ord("c")]
    [cut], too_long = options("language_modeling", ["ab:", "ab: c"], TOK, 4)
    assert too_long and cut.ids == [*b"b: c"] and cut.start == 2


def test_an_option_without_anything_to_score_cannot_win():
    some = Score(9.0, 3, False)
    assert is_right("multiple_choice", 1, [None, some]) and not is_right("multiple_choice", 0, [None, some])
    assert not is_right("multiple_choice", 0, [None, None]) and not is_right("language_modeling", 0, [None])


def test_a_cut_is_of_the_shuffled_rows_and_long_prompts_are_counted(bundle, engine, monkeypatch):
    found = cells(bundle, engine, items=3)
    assert [cell["n"] for cell in found.values()] == [3, 3, 3]
    assert found["letters"]["correct"] == 3  # rows 1, 0 and 3
    assert all(cell["truncated"] == 0 for cell in found.values())
    monkeypatch.setattr(Engine, "context", 20)
    assert cells(bundle, engine)["repeat"]["truncated"] == 5
    with pytest.raises(UserError, match=r"repeat shows 2 solved examples and has 2 items; raise base_eval.core_items"):
        cells(bundle, engine, items=2)


def test_a_folder_and_the_published_zip_file_hold_the_same(bundle, tmp_path):
    packed = Bundle(zip_bundle(bundle.path, tmp_path / "eval_bundle.zip"))
    (outer := tmp_path / "outer").mkdir()
    bundle.path.rename(outer / "eval_bundle")
    unpacked = Bundle(outer)
    assert packed.tasks == unpacked.tasks and [task.baseline for task in packed.tasks] == [0.25, 0.5, 0.0]
    assert packed.about | {"path": ""} == unpacked.about | {"path": ""}
    assert packed.about["baselines"]["file"] == "eval_meta_data.csv"
    for task in packed.tasks:
        assert packed.rows(task) == unpacked.rows(task)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "eval_data/reading/letters.jsonl",
            '{"query": "q", "choices": ["a"], "gold": 0}\n\n{"query',
            r"line 3: not JSON",
        ),
        (
            "eval_data/reading/letters.jsonl",
            '{"query": "q", "choices": ["a"]}',
            r"letters.jsonl, line 1: 'gold' is miss",
        ),
        (LETTER_FILE, '{"query": "q", "choices": ["a"], "gold": 1}', r"'gold' is 1 of 1 options"),
        (LETTER_FILE, '{"query": "q", "choices": [1], "gold": 0}', r"'choices' holds something"),
        ("eval_data/symbols/repeat.jsonl", '{"context": "q", "continuation": 7}', r"'continuation' is not a str"),
        ("eval_data/symbols/repeat.jsonl", "\n", r"holds no rows"),
        ("eval_data/symbols/repeat.jsonl", None, r"repeat.jsonl is missing"),
        ("eval_meta_data.csv", None, r"eval_meta_data.csv is missing"),
        ("eval_meta_data.csv", CSV.replace("winograd,", "winogrande,"), r"no baseline for 'winograd'"),
        ("eval_meta_data.csv", CSV.replace(",50,", ",100,"), r"baseline of 'winograd' is not a percentage below 100"),
        ("eval_meta_data.csv", "Task,Baseline\nletters,1\n", r"no usable columns"),
        ("core.yaml", YAML.replace("schema", "puzzle"), r"'winograd' is of type 'puzzle'"),
        ("core.yaml", YAML.replace("label: repeat", "name: repeat"), r"is not a list of CORE tasks: KeyError 'label'"),
        ("core.yaml", "icl_tasks: [", r"is not a list of CORE tasks"),
    ],
)
def test_a_damaged_bundle_is_one_line_with_file_and_line(bundle, file, text, said):
    path = bundle.path / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        opened = Bundle(bundle.path)
        for task in opened.tasks:
            opened.rows(task)
    assert "\n" not in str(error.value)


def test_what_is_no_bundle_says_so(tmp_path):
    with pytest.raises(UserError, match=r"nothing is not there; base_eval.core names"):
        Bundle(tmp_path / "nothing")
    (tmp_path / "junk.zip").write_text("junk")
    with pytest.raises(UserError, match=r"cannot open the CORE bundle .*junk.zip"):
        Bundle(tmp_path / "junk.zip")


@pytest.fixture
def served(bundle, tmp_path, monkeypatch):
    """A hub with the bundle as a zip file, and its address."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    data = zip_bundle(bundle.path, tmp_path / "b.zip").read_bytes()
    with LoopbackHub() as hub:
        hub.add("some/core", {"eval_bundle.zip": data})
        yield hub, f"{hub.url}/datasets/some/core/resolve/main/eval_bundle.zip", data


@pytest.mark.parametrize("fault", ["cut", "500", "429", "hang", "wrong"])
def test_a_download_survives_what_the_network_does(served, tmp_path, fault):
    hub, url, data = served
    hub.fault("eval_bundle.zip", fault, times=2, method="GET")
    said, pauses, seen = [], [], []
    got = fetched(url, tmp_path / "home", said.append, lambda *at: seen.append(at), pauses.append)
    assert got.read_bytes() == data and pauses == [1.0, 2.0] and len(said) == 2
    assert seen[-1] == (len(data), len(data))
    asked = len(hub.requests)
    assert fetched(url, tmp_path / "home") == got and len(hub.requests) == asked
    assert not list((tmp_path / "home" / "core").glob("*.part"))


def test_a_cut_download_goes_on_where_it_was(served, tmp_path):
    hub, url, data = served
    hub.fault("eval_bundle.zip", "cut", times=1, method="GET")

    def killed(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetched(url, tmp_path / "home", wait=killed)
    assert fetched(url, tmp_path / "home").read_bytes() == data
    assert hub.requests[-1].range == f"bytes={len(data) // 2}-"


@pytest.mark.parametrize("more", [b"", b"of a longer file"])
def test_what_was_whole_when_it_was_killed_is_no_dead_end(served, tmp_path, more):
    _, url, data = served
    part = tmp_path / "home" / "core" / f"{core_bundle.hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data + more)
    assert fetched(url, tmp_path / "home", wait=lambda s: None).read_bytes() == data


def test_what_cannot_be_had_is_one_line(served, tmp_path, monkeypatch):
    hub, url, _ = served
    hub.fault("eval_bundle.zip", "missing", times=None)
    with pytest.raises(UserError, match=r"cannot get the CORE bundle from .*: 404 .*set base_eval.core to a copy"):
        fetched(url, tmp_path / "home", wait=lambda s: pytest.fail("nothing to wait for"))
    with pytest.raises(UserError, match="cannot get the CORE bundle"):
        fetched("http://127.0.0.1:9/x.zip", tmp_path / "home", wait=lambda s: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; put it at"):
        fetched(url, tmp_path / "home")


def test_redirects_without_end_are_one_line(tmp_path, monkeypatch):
    def download(*_):
        raise httpx.TooManyRedirects("Exceeded maximum allowed redirects.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(core_bundle, "_download", download)
    with pytest.raises(UserError, match=r"cannot get the CORE bundle from example\.org: TooManyRedirects"):
        fetched("https://example.org/b.zip", tmp_path, wait=lambda s: None)


def test_only_one_process_downloads(served, tmp_path):
    _, url, _ = served
    target = tmp_path / "home" / "core"
    target.mkdir(parents=True)
    name = core_bundle.hashlib.sha256(url.encode()).hexdigest()[:16]
    with open(target / f"{name}.lock", "w") as held:
        assert core_bundle._taken(held)

        def done(seconds: float) -> None:
            (target / f"{name}.zip").write_bytes(b"whole")
            core_bundle.fcntl.flock(held, core_bundle.fcntl.LOCK_UN)

        assert fetched(url, tmp_path / "home", wait=done).read_bytes() == b"whole"


def test_cells_are_plain_json(bundle, engine):
    found = cells(bundle, engine)
    assert json.loads(json.dumps(found)) == found
    assert prompts(bundle.tasks[0], {"query": "q", "choices": ["a"], "gold": 0}, []) == ["q a"]
