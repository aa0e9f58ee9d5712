"""Small files with the exact columns of the published data sets, written for these tests, for a Hub on the loopback.

with LoopbackHub() as hub:
    publish(hub)                      # every repository that a task reads
    publish(hub, gsm8k=rows)          # with these rows in GSM8K's training file
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from tests.hub import LoopbackHub

SUBJECTS = ("astronomy", "marketing", "philosophy")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn")


def table(rows: Sequence[dict[str, Any]], schema: Any, group: int = 8) -> bytes:
    """A parquet file of `rows`, `group` of them in a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, row_group_size=group)
    return sink.getvalue()


def schemas() -> dict[str, Any]:
    """Columns and types as published."""
    import pyarrow as pa

    text = pa.string()
    return {
        "smoltalk": pa.schema(
            [("messages", pa.list_(pa.struct([("content", text), ("role", text)]))), ("source", text)]
        ),
        "mmlu": pa.schema([("question", text), ("subject", text), ("choices", pa.list_(text)), ("answer", pa.int64())]),
        "arc": pa.schema([
            ("id", text), ("question", text),
            ("choices", pa.struct([("text", pa.list_(text)), ("label", pa.list_(text))])), ("answerKey", text),
        ]),
        "gsm8k": pa.schema([("question", text), ("answer", text)]),
        "humaneval": pa.schema(
            [(name, text) for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")]
        ),
    }  # fmt: skip


def smoltalk(n: int, what: str = "train") -> list[dict[str, Any]]:
    """Conversations of one to three exchanges, every fourth with a system message."""
    rows = []
    for i in range(n):
        messages = [{"role": "system", "content": "Answer like a gardener."}] if i % 4 == 0 else []
        for turn in range(1 + i % 3):
            messages.append({"role": "user", "content": f"Tell me something about {what} plant {i}, part {turn}."})
            messages.append({"role": "assistant", "content": f"Plant {i} of {what} likes {turn + 2} hours of sun."})
        rows.append({"messages": messages, "source": "everyday"})
    return rows


def mmlu(n: int, what: str = "train") -> list[dict[str, Any]]:
    return [
        {
            "question": f"In the {what} list, which number follows {i}?",
            "subject": "" if what == "train" else SUBJECTS[i % 3],
            "choices": [str(i + k) for k in (3, 1, 2, 5)],
            "answer": 1,
        }
        for i in range(n)
    ]


def arc(n: int, what: str = "train") -> list[dict[str, Any]]:
    """Every third row with labels 1 to 4, every fifth with three options."""
    rows = []
    for i in range(n):
        texts = [f"{i * 2} stones", f"{i * 3} leaves", f"{i + 4} shells", f"{i} seeds"][: 3 if i % 5 == 4 else 4]
        labels = ["1", "2", "3", "4"] if i % 3 == 2 else ["A", "B", "C", "D"]
        rows.append({
            "id": f"{what}-{i}", "question": f"What does {what} box {i} hold?",
            "choices": {"text": texts, "label": labels[: len(texts)]}, "answerKey": labels[1],
        })  # fmt: skip
    return rows


def gsm8k(n: int, what: str = "train") -> list[dict[str, str]]:
    rows = []
    for i in range(n):
        name, each, boxes = NAMES[i % 6], i + 2, 3 + i % 4
        total = each * boxes
        question = f"{name} of {what} fills {boxes} boxes with {each} nuts each and eats 2. How many nuts are left?"
        answer = (
            f"The boxes hold {boxes}*{each} = <<{boxes}*{each}={total}>>{total} nuts.\n"
            f"After eating there are {total}-2=<<{total}-2={total - 2}>>{total - 2} nuts.\n#### {total - 2}"
        )
        rows.append({"question": question, "answer": answer})
    return rows


def humaneval(n: int) -> list[dict[str, str]]:
    rows = []
    for i in range(n):
        test = f"\n\ndef check(candidate):\n    assert candidate([1, 2]) == {3 + i}\n    assert candidate([]) == {i}\n"
        prompt = (
            f'from typing import List\n\n\ndef add_{i}(numbers: List[int]) -> int:\n    """Sum plus {i}.\n    """\n'
        )
        rows.append({
            "task_id": f"HumanEval/{i}", "prompt": prompt, "entry_point": f"add_{i}",
            "canonical_solution": f"    return sum(numbers) + {i}\n",
            "test": test,
        })  # fmt: skip
    return rows


def publish(hub: LoopbackHub, rows: int = 40, **instead: Sequence[dict[str, Any]]) -> None:
    """Every repository with `rows` rows in each file; `instead`: other rows for a task's training file."""
    made = schemas()

    def put(repo: str, kind: str, files: dict[str, Sequence[dict[str, Any]]], licence: str) -> None:
        hub.add(repo, {name: table(found, made[kind]) for name, found in files.items()}, card={"license": licence})

    talk = list(instead.get("smoltalk", smoltalk(rows)))
    half = len(talk) // 2
    put("HuggingFaceTB/smol-smoltalk", "smoltalk", {
        "data/train-00000-of-00002.parquet": talk[:half], "data/train-00001-of-00002.parquet": talk[half:],
        "data/test-00000-of-00001.parquet": smoltalk(rows, "test"),
    }, "apache-2.0")  # fmt: skip
    put("cais/mmlu", "mmlu", {
        "all/auxiliary_train-00000-of-00001.parquet": instead.get("mmlu", mmlu(rows)),
        "all/test-00000-of-00001.parquet": mmlu(rows, "test"),
        "all/validation-00000-of-00001.parquet": mmlu(rows, "validation"),
    }, "mit")  # fmt: skip
    for part in ("ARC-Easy", "ARC-Challenge"):
        put("allenai/ai2_arc", "arc", {
            f"{part}/train-00000-of-00001.parquet": instead.get("arc", arc(rows, part)),
            f"{part}/test-00000-of-00001.parquet": arc(rows, f"{part} test"),
        }, "cc-by-sa-4.0")  # fmt: skip
    put("openai/gsm8k", "gsm8k", {
        "main/train-00000-of-00001.parquet": instead.get("gsm8k", gsm8k(rows)),
        "main/test-00000-of-00001.parquet": gsm8k(rows, "test"),
    }, "mit")  # fmt: skip
    put("openai/openai_humaneval", "humaneval", {
        "openai_humaneval/test-00000-of-00001.parquet": instead.get("humaneval", humaneval(min(rows, 12))),
    }, "mit")  # fmt: skip
