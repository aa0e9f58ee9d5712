"""What a person should know about each stage while it runs: the idea behind it, figures to expect, what goes wrong.

The figures of `pocket` are those of whole runs on two cores (docs/log.md); those of `speedrun` are planned
(`picollm plan --profile speedrun --gpu h100 --count 8`) or, where it says so, published for the same recipe.
"""

from __future__ import annotations

import msgspec

from picollm.run import pipeline


class Knowledge(msgspec.Struct, frozen=True, kw_only=True):
    """About one stage. `insight`: the idea. `makes`: what it leaves. `typical`: by profile, what it usually shows.
    `trouble`: what one may see, and what to do about it."""

    insight: str
    makes: str
    typical: dict[str, str]
    trouble: tuple[tuple[str, str], ...]


KNOWLEDGE: dict[str, Knowledge] = {
    "doctor": Knowledge(
        insight="An hour lost on a rented machine costs money, and most of them are lost to something that could have "
        "been seen in the first second: a full disk, a driver that is too old, a token that has expired. So everything "
        "that can be looked at without starting is looked at first, against what this run's plan will need.",
        makes="A list of checks: found, wanted, fix.",
        typical={
            "pocket": "14 checks in 0.2 s; no network is needed, so a warning about it may stand",
            "speedrun": "free disk wanted: about 150 GiB; memory of each GPU: about 70 GiB",
        },
        trouble=(
            ("a check fails", "its line says how to mend it; then start the run again, nothing is lost"),
            ("a warning stays", "the run goes on; read whether it speaks of something that you use"),
        ),
    ),
    "preflight": Knowledge(
        insight="Speeds on paper do not train models. Preflight runs the real model for a moment with each candidate "
        "(precision, attention kernel, compiled or not), checks that it computes the same, and takes the fastest. From "
        "the measured speed it plans the size of the model and the steps of every stage once, so that training ends "
        "when it was said to end and does not run out of memory on the way.",
        makes="plan.json: sizes, steps, predicted seconds, and the figures behind each choice.",
        typical={
            "pocket": "20 s; 2 layers of 128, 2.0M parameters, about 550 steps of pretraining on two cores",
            "speedrun": "24 layers of 1536, 1.38B parameters, 13 rows at a time on an 80 GiB GPU, 5,568 steps",
        },
        trouble=(
            ("a candidate is passed over", "its reason stands beside it; the next fastest is used"),
            ("nothing fits the memory", "less model.depth or model.seq_len, or machine.checkpointing = \"on\""),
            ("the plan is far too slow", "somebody else is busy here: see Machine; measure again with Redo"),
        ),
    ),
    "dataset": Knowledge(
        insight="A model is what it reads. Duplicates are dropped, because a text read twice is learnt by heart rather "
        "than understood, and some documents are set aside before anything else happens: a model may only be judged on "
        "text that it has never seen. The same text always gives the same hash, and that hash follows everything made "
        "from it.",
        makes="Texts or files in PICOLLM_HOME, shared between runs; documents kept for validation.",
        typical={
            "pocket": "2,217 documents, 2.5 MB, in 2 s; 87 of them for validation",
            "speedrun": "171 files of about 100 MB; training starts when the first 8 are here",
        },
        trouble=(
            ("429 or a timeout", "it waits and tries again; data.mirrors names other places to ask"),
            ("many duplicates or empty documents", "look at the file that the warning names"),
            ("too little text", "below 1 MB even a small model only learns by heart: give it more"),
        ),
    ),
    "tokenizer": Knowledge(
        insight="A model never sees letters. Byte-pair encoding begins with single bytes and keeps joining the pair "
        "that occurs most often, so frequent words become one id and rare ones a few. A larger vocabulary makes texts "
        "shorter and each step of training dearer. Any bytes can be written, so nothing is ever unknown.",
        makes="tokenizer/tokenizer.json, and the whole text as token ids.",
        typical={
            "pocket": "4,096 ids, 3.6 bytes a token, 650k training tokens, 3 s",
            "speedrun": "32,768 ids, about 4.7 bytes a token; encoding goes on beside training",
        },
        trouble=(
            ("fewer than 3 bytes a token", "the text is of another kind (code, numbers, another script), or "
             "tokenizer.vocab_size is small for it"),
            ("held-out items overlap", "their accuracy is too good by that much; the report counts them"),
        ),
    ),
    "tokenizer_eval": Knowledge(
        insight="The tokenizer decides what a context window holds. Text unlike the corpus costs more tokens, and so "
        "more compute per word: a model that read English alone spends three times as many tokens on German, and a "
        "token for every byte of Chinese. Encoding and decoding must give back the very same bytes.",
        makes="Bytes per token on eight kinds of text, and whether each came back exact.",
        typical={
            "pocket": "3.6 on its own text and on Python, 2.0 on German, 1.0 on Greek and Chinese; all exact",
            "speedrun": "about 4.7 on English web text; close to GPT-2's tokenizer",
        },
        trouble=(
            ("a round trip is not exact", "a fault of ours: please report it with the text"),
            ("your language costs many tokens", "put text of that language into data.source"),
        ),
    ),
    "pretrain": Knowledge(
        insight="Everything the model will ever know of language it learns here, by guessing the next token of raw "
        "text again and again. The loss is the surprise in nats per token: at first ln(vocabulary), as if "
        "throwing dice. Frequent tokens are learnt in the first steps, grammar after, facts last and slowest, which is "
        "why the curve falls like a cliff and then like a plain. Bits per byte say the same independently of the "
        "tokenizer, so they compare models. The result continues texts; it does not answer.",
        makes="base_checkpoints/: the base model.",
        typical={
            "pocket": "loss 8.3 → 3.7 in 547 steps and 84 s; 1.64 bits per byte on validation text",
            "speedrun": "loss 10.4 → about 2.3 in 5,568 steps and 1 h 43 min; 0.72 bits per byte (published)",
        },
        trouble=(
            ("loss stays near ln(vocabulary)", "the text is noise or too small: look at it, and at the tokenizer"),
            ("a spike that does not heal", "lower pretrain.matrix_lr by a third, then Redo"),
            ("training falls, validation rises", "the text is read too often: more text, or fewer steps"),
            ("far slower than planned", "Machine shows who else is busy; the plan shows what was expected"),
        ),
    ),
    "base_eval": Knowledge(
        insight="A base model does not answer questions, so it is not asked any: bits per byte on text that it never "
        "saw say how well it predicts, and samples show what it does with a prompt (it goes on writing). If asked for, "
        "CORE adds 22 tasks scored so that guessing is 0 and perfect is 1. What is built on this model later can "
        "hardly know more than it does.",
        makes="eval/: bits per byte, samples, CORE.",
        typical={
            "pocket": "1.64 bits per byte; samples look like documentation and soon repeat themselves",
            "speedrun": "0.72 bits per byte, CORE about 0.25 (published; GPT-2 XL: 0.2565)",
        },
        trouble=(
            ("far from the last reading of pretraining", "other text or another checkpoint: is this stage stale?"),
            ("samples repeat one phrase", "usual for a small base model; much more text or size cures it"),
        ),
    ),
    "identity": Knowledge(
        insight="Nobody tells a model who it is; it says what most texts say. A few thousand short conversations about "
        "its name, its maker and what it cannot do are enough to change that, if they are asked in many ways: what is "
        "learnt from one phrasing is known in one phrasing. Their checksum is verified before each use, so that "
        "no run is trained on rows which somebody changed.",
        makes="identity/: the rows and a manifest with their sha256.",
        typical={
            "pocket": "14,080 rows on 19 themes in a second",
            "speedrun": "the same rows; 3,200 of them in midtraining, 6,400 in SFT",
        },
        trouble=(
            ("the checksum differs", "the file was edited: picollm identity sign makes a new manifest"),
            ("another name is wanted", "set identity.name and identity.maker; midtraining and SFT then become stale"),
        ),
    ),
    "midtrain": Knowledge(
        insight="The base model has never seen a conversation. Here it reads whole ones, questions and answers alike, "
        "with special tokens that say whose turn it is, mixed with tasks: spelling, sums with a calculator, multiple "
        "choice. The loss jumps in the first step, because the format is new, and falls below the old level within a "
        "few steps: that jump means that the mixture is there. No jump would be the thing to worry about.",
        makes="mid_checkpoints/: a model that knows the format.",
        typical={
            "pocket": "loss 3.6 → 7.6 at the first step, over by step 6, 1.5 at the end of 168 steps",
            "speedrun": "424 steps in about 4 minutes; MMLU, spelling and sums begin to rise from chance",
        },
        trouble=(
            ("no jump at the beginning", "the mixture was not loaded: look at midtrain.mixture and the log"),
            ("the jump does not heal in 50 steps", "lower midtrain.lr, or begin with the moments of pretraining"),
        ),
    ),
    "sft": Knowledge(
        insight="Now only the assistant's words count in the loss; the user's are read but not learnt. So the model "
        "learns to answer rather than to ask, and to end its turn. A row holds whole conversations, and each is seen "
        "about once: answers learnt by heart would sound right and be of no use.",
        makes="chatsft_checkpoints/: the chat model.",
        typical={
            "pocket": "loss 0.9 → 0.26 in 407 steps; it says who it is in 54 % of new phrasings",
            "speedrun": "924 steps in about 9 minutes; ARC-Easy 0.63, MMLU 0.39, spelling 0.99 (published)",
        },
        trouble=(
            ("training falls, held-out rises", "the examples are seen too often: fewer sft.steps, or more examples"),
            ("answers do not end", "look at the samples: were conversations cut? A longer model.seq_len helps"),
            ("it forgot a skill", "give that task more rows in sft.mixture"),
        ),
    ),
    "rl": Knowledge(
        insight="For a question whose answer can be checked, no teacher is needed: the model answers several times, "
        "and the answers that did better than the others are made likelier. If all are right or all are wrong there "
        "is nothing to learn from, so practise pays in between, where some succeed. The reward of a step is noisy; "
        "held-out accuracy is the figure to believe.",
        makes="rl_checkpoints/: the chat model, better at what it practised.",
        typical={
            "pocket": "accuracy on three-digit sums 30 → 37 % in 40 steps; 25 → 35 % on average of three runs of 90",
            "speedrun": "200 steps on GSM8K; 4.6 → 7.6 % was published for a smaller model",
        },
        trouble=(
            ("reward stays at 0", "too hard: an easier rl.task, or more of it in SFT first"),
            ("entropy falls to nothing", "it found one phrase that pays: lower rl.lr, schedule \"cosine\""),
            ("answers grow longer and longer", "they run into rl.max_tokens: see how they end in the samples"),
        ),
    ),
    "chat_eval": Knowledge(
        insight="Four models, the same held-out questions: base, mid, sft and rl. The difference between neighbours is "
        "what a stage added. With 120 questions an accuracy is known to about ±9 points, so two bars whose intervals "
        "overlap are not yet a difference. Every wrong answer is kept: reading twenty of them teaches more than the "
        "average does.",
        makes="eval/: accuracy with 95 % intervals, wrong answers, answers side by side.",
        typical={
            "pocket": "ChatCORE 0.02 base, 0.13 mid, 0.31 sft, 0.32 rl; counting 16 → 60 %, identity 0 → 53 %",
            "speedrun": "ARC-Easy 0.63, ARC-Challenge 0.51, MMLU 0.39, GSM8K 0.08 after SFT (published)",
        },
        trouble=(
            ("at or below chance", "0.25 on multiple choice is guessing: the model is too small for that task"),
            ("HumanEval is left out", "generated code needs a sandbox that this machine does not allow; see the log"),
        ),
    ),
    "report": Knowledge(
        insight="What is not written down was not measured. The report is made anew from the events each time, never "
        "edited: what each stage added, plan against outcome, every setting, every hash, so that a run can be judged, "
        "compared and made again by somebody who was not there.",
        makes="report/report.md, report/report.html and run_manifest.json.",
        typical={
            "pocket": "0.2 s; a model of 2.0M parameters, made in 5 min 2 s on two cores",
            "speedrun": "about two hours and $49 at $3 per GPU and hour (planned)",
        },
        trouble=(
            ("it looks old", "a stage was made again since: Redo makes the report anew"),
            ("the cost is a guess", "set report.price to what you pay per GPU and hour"),
        ),
    ),
}  # fmt: skip


def knowledge(name: str) -> Knowledge:
    """Raises `UserError` for a stage that does not exist."""
    return KNOWLEDGE[pipeline.stage(name).name]
