"""A miniature CORE bundle in the published form: one task of each kind, four or five rows each."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

YAML = """\
icl_tasks:
-
  label: letters
  dataset_uri: reading/letters.jsonl
  num_fewshot: [1]
  icl_task_type: multiple_choice
-
  label: winograd
  dataset_uri: language/winograd.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: repeat
  dataset_uri: symbols/repeat.jsonl
  num_fewshot: [2]
  icl_task_type: language_modeling
  continuation_delimiter: "\\nAnswer: " # between question and answer
  has_categories: true
"""
CSV = """\
Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline,Centered Metric?,Description
letters,reading,multiple choice,1,4,25,,one of four
winograd,language,schema,0,4,50,,one of two
repeat,symbols,language modeling,2,5,0,,"says, again"
another,reading,multiple choice,0,9,20,,not asked for
"""
ROWS = {
    "reading/letters.jsonl": [
        {"query": "q0", "choices": ["a", "b", "c", "d"], "gold": 0},
        {"query": "q1", "choices": ["b", "aab", "c", "d"], "gold": 1},
        {"query": "q2", "choices": ["c", "b", "bb", "a"], "gold": 1},
        {"query": "q3", "choices": ["d", "c", "ba", "aa"], "gold": 3},
    ],
    "language/winograd.jsonl": [
        {"context_options": ["x", "y"], "continuation": "aa", "gold": 0},
        {"context_options": ["y", "x"], "continuation": "ab", "gold": 1},
        {"context_options": ["x", "y"], "continuation": "ca", "gold": 1},
        {"context_options": ["yy", "yx"], "continuation": "ca", "gold": 1},
    ],
    "symbols/repeat.jsonl": [
        {"context": "one ", "continuation": "aaa", "category": "k"},
        {"context": " two", "continuation": "aba", "category": "k"},
        {"context": "three", "continuation": "a", "category": "k"},
        {"context": "four", "continuation": "b", "category": "k"},
        {"context": "five", "continuation": "aa", "category": "k"},
    ],
}


def write_bundle(folder: Path) -> Path:
    """The bundle as a folder."""
    for name, rows in ROWS.items():
        file = folder / "eval_data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "core.yaml").write_text(YAML)
    (folder / "eval_meta_data.csv").write_text(CSV)
    return folder


def zip_bundle(folder: Path, file: Path) -> Path:
    """A folder's bundle as the zip file that is published: everything inside eval_bundle/."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"eval_bundle/{path.relative_to(folder)}")
    return file
