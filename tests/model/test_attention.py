"""Backends are trusted only after they were run; windows cost no mask of the whole row."""

from __future__ import annotations

import sys
import types
import typing
import warnings

import pytest
import torch

from picollm.model import attention as attention_module
from picollm.model import attention_kernels, attention_proof
from picollm.model.attention import BACKENDS, attention, visible
from picollm.model.attention_proof import backends_for, prove, prove_all
from picollm.model.gpt import GPT
from picollm.run.scaling import ModelShape, flops_per_token, num_params, shape_for
from picollm.run.schema import MachineConfig

CPU = torch.device("cpu")


def shape(**changes) -> ModelShape:
    base = dict(depth=3, dim=64, heads=4, kv_heads=2, head_dim=16, vocab_size=100, seq_len=200, window_pattern="SL")
    return ModelShape(**{**base, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["explicit", "sdpa"])
def test_what_works_is_proven_at_the_shapes_of_the_run(backend: str, dtype: torch.dtype) -> None:
    proof = prove(backend, shape(), 2, CPU, dtype)
    assert proof.ok and proof.reason == "" and proof.ms > 0
    assert 0 <= proof.error < attention_proof.TOLERANCE[dtype]
    assert backend in str(proof)


def test_what_cannot_run_here_says_why() -> None:
    for kernel in attention_kernels.KERNELS:
        proof = prove(kernel, shape(), 2, CPU, torch.bfloat16)
        assert not proof.ok and "CUDA" in proof.reason and "CUDA" in str(proof)
    assert "cannot be imported" in attention_kernels.unavailable("flash3", torch.device("cuda"), torch.bfloat16)
    assert "16-bit" in attention_kernels.unavailable("varlen", torch.device("cuda"), torch.float32)
    with pytest.raises(ValueError, match="unknown"):
        prove("flash9", shape(), 2, CPU, torch.float32)


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan", "window", "raises"])
def test_a_backend_that_computes_something_else_is_refused(monkeypatch, wrong: str) -> None:
    def broken(q, k, v, *, window=None, backend="auto", **_):
        if backend == "explicit":
            return attention(q, k, v, window=window, backend="explicit")
        if wrong == "raises":
            raise RuntimeError("no kernel image is available\nfor this device")
        out = attention(q, k, v, window=None if wrong == "window" else window, backend="sdpa")
        if wrong == "value":
            return out * 1.1
        if wrong == "nan":
            return out * float("nan")
        return out.detach() + 1.1 * (out - out.detach()) if wrong == "gradient" else out

    monkeypatch.setattr(attention_proof, "attention", broken)
    proof = prove("sdpa", shape(), 2, CPU, torch.float32)
    assert not proof.ok and "\n" not in proof.reason
    assert ("no kernel image" in proof.reason) is (wrong == "raises")


def test_the_fastest_that_works_comes_first(monkeypatch) -> None:
    speeds = {"explicit": 3.0, "sdpa": 2.0}

    def run(backend, *_):
        if backend == "flex":
            raise RuntimeError("broken")
        return 1e-4, speeds[backend]

    monkeypatch.setattr(attention_proof, "_run", run)
    monkeypatch.setattr(attention_proof, "unavailable", lambda *_: "")
    proofs = prove_all(shape(), 2, CPU, torch.float32, ("flex", "explicit", "sdpa"))
    assert [p.backend for p in proofs] == ["sdpa", "explicit", "flex"]
    assert [p.ok for p in proofs] == [True, True, False]
    assert proofs[0].ms == 2.0 * shape().depth
    assert set(backends_for(torch.device("cuda"), 2048)) == {*attention_kernels.KERNELS, "sdpa"}
    assert backends_for(CPU, 256) == ("explicit", "sdpa") and backends_for(CPU, 4096) == ("sdpa",)


def test_settings_and_backends_have_the_same_names() -> None:
    hint = typing.get_type_hints(MachineConfig)["attention"]
    assert set(BACKENDS) == set(typing.get_args(hint))


@pytest.mark.parametrize(("length", "backend"), [(250, "sdpa"), (1000, "sdpa"), (1000, "flex")])
def test_a_window_makes_no_mask_of_the_whole_row(monkeypatch, length: int, backend: str) -> None:
    """Nor does a kernel's backend where the kernel does not apply, such as flex at another length than its mask's."""
    made = []

    def counting(*args, **kwargs):
        mask = visible(*args, **kwargs)
        made.append(mask.numel())
        return mask

    monkeypatch.setattr(attention_module, "visible", counting)
    q = torch.randn(1, 2, length, 8, requires_grad=True)
    out = attention(q, q, q, window=128, backend=backend)
    (ours,) = torch.autograd.grad(out.square().sum(), q)
    assert max(made) == 128 * 256
    (theirs,) = torch.autograd.grad(attention(q, q, q, window=128, backend="explicit").square().sum(), q)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seq_len", [256, 1024, 2048, 4096])
def test_the_model_and_its_price_agree_on_windows(seq_len: int) -> None:
    s = shape_for(4, 64, seq_len, dim=32, head_dim=16, window_pattern="SSSL")
    model = GPT(s)
    seen = [seq_len if w is None else w for w in model.windows]
    assert seen == list(s.windows()) and seen[-1] == seq_len
    assert flops_per_token(s) == 6 * num_params(s)["scaling"] + sum(12 * s.dim * w for w in seen)


class Recorder:
    """Stands where an installed flash package would: plain attention, keeping how it was called."""

    def __init__(self, everything: int | None, with_lse: bool) -> None:
        self.calls: list[tuple] = []
        self.everything, self.with_lse = everything, with_lse

    def __call__(self, q, k, v, *, causal, window_size):
        self.calls.append((tuple(q.shape), causal, window_size))
        window = None if window_size[0] == self.everything else window_size[0] + 1
        out = attention(*(x.transpose(1, 2) for x in (q, k, v)), window=window, backend="explicit").transpose(1, 2)
        return (out, None) if self.with_lse else out


@pytest.mark.parametrize(("kernel", "everything", "with_lse"), [("flash3", -1, False), ("flash4", None, True)])
def test_an_installed_flash_package_is_called_as_it_wants(monkeypatch, kernel, everything, with_lse) -> None:
    package = Recorder(everything, with_lse)
    names = attention_kernels.PACKAGES[kernel].split(".")
    for i in range(len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[: i + 1]), types.ModuleType(names[i]))
    sys.modules[attention_kernels.PACKAGES[kernel]].flash_attn_func = package  # type: ignore[attr-defined]
    q, k, v = torch.randn(2, 4, 30, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    for window in (None, 7):
        ours = attention_kernels.attend(kernel, q, k, v, window, None)
        assert torch.equal(ours, attention(q, k, v, window=window, backend="explicit"))
    everything_window = (everything, everything)
    assert package.calls == [((2, 30, 4, 8), True, everything_window), ((2, 30, 4, 8), True, (6, 0))]


def test_packed_rows_are_called_as_torch_wants(monkeypatch) -> None:
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size, enable_gqa):
        assert cu_q.tolist() == cu_k.tolist() == [0, 30, 60] and cu_q.dtype == torch.int32
        assert (max_q, max_k, enable_gqa, window_size[1]) == (30, 30, True, 0)
        window = None if window_size[0] < 0 else window_size[0] + 1
        rows = (x.unflatten(0, (2, 30)).transpose(1, 2) for x in (q, k, v))
        return attention(*rows, window=window, backend="explicit").transpose(1, 2).flatten(0, 1)

    monkeypatch.setattr(attention_kernels, "VARLEN_ATTN", varlen_attn)
    q, k, v = torch.randn(2, 4, 30, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    for kernel, window in (("varlen", None), ("varlen", 7), ("cudnn", 7)):
        ours = attention_kernels.attend(kernel, q, k, v, window, None)
        assert torch.equal(ours, attention(q, k, v, window=window, backend="explicit"))


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("public", [True, False])
def test_the_installed_torch_accepts_the_packed_call(monkeypatch, window: int | None, public: bool) -> None:
    """Shapes only: on the meta device torch checks the arguments of the call and computes nothing."""
    if public and attention_kernels.VARLEN_ATTN is None:
        pytest.skip("this torch has no windows in varlen_attn")
    if not public:
        monkeypatch.setattr(attention_kernels, "VARLEN_ATTN", None)
    q, k, v = (torch.empty(2, n, 30, 8, dtype=torch.bfloat16, device="meta") for n in (4, 2, 2))
    out = attention_kernels.attend("varlen", q, k, v, window, None)
    assert out.shape == q.shape and out.dtype == q.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor may the compiler stop at it, or wonder
        compiled = torch.compile(attention_kernels.attend, backend="eager", fullgraph=True)
        assert compiled("varlen", q, k, v, window, None).shape == q.shape


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_blocks_say_what_the_formula_says() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = torch.randn(2, 4, 300, 16), torch.randn(2, 2, 300, 16), torch.randn(2, 2, 300, 16)
    for window in (None, 100):
        blocks = attention_kernels.block_mask(300, window, CPU)
        assert attention_kernels.block_mask(300, window, CPU) is blocks
        ours = flex_attention(q, k, v, block_mask=blocks, enable_gqa=True)  # uncompiled: the CPU has no backward for it
        torch.testing.assert_close(ours, attention(q, k, v, window=window, backend="explicit"), rtol=1e-4, atol=1e-5)


def test_cudnn_without_a_window_is_causal_attention() -> None:
    # On a CPU the priorities fall through to its own kernels: the call is the same.
    q, k, v = torch.randn(2, 4, 30, 16), torch.randn(2, 2, 30, 16), torch.randn(2, 2, 30, 16)
    ours = attention_kernels.attend("cudnn", q, k, v, None, None)
    torch.testing.assert_close(ours, attention(q, k, v, backend="explicit"), rtol=1e-4, atol=1e-5)


def test_a_gpu_backend_carried_to_a_cpu_does_not_stop_the_model() -> None:
    model = GPT(shape(seq_len=64))
    model.init_weights(0)
    ids = torch.randint(0, 100, (2, 64))
    expected = model(ids)
    for kernel in attention_kernels.KERNELS:
        model.attention_backend = kernel
        torch.testing.assert_close(model(ids), expected)


def test_masks_made_in_a_reading_can_be_trained_with() -> None:
    """Midtraining and SFT begin with a reading, and the masks are made once."""
    with torch.inference_mode():
        blocks = attention_kernels.block_mask(260, 64, CPU)
    assert not blocks.kv_num_blocks.is_inference() and not blocks.q_indices.is_inference()
