"""Ways of attention: each against attention as it is written down, and which of them is taken where."""

import warnings

import pytest
import torch
from torch.nn.attention import varlen

from esmtune import attention, tiles, ways
from esmtune.attention import TOLERANCE, attend, choose, error, only, passes
from esmtune.esm2 import Tokens
from esmtune.spans import PAIRS, SIMILAR, Spans
from esmtune.ways import WAYS, Way
from tests.conftest import TEN, tiny_encoder

CPU = torch.device("cpu")
LENGTHS = (2, 9, 9, 3, 40, 9, 2)
HERE = [name for name in WAYS if name not in ("varlen", "flash")]  # those that a processor can compute
EXACT = dict.fromkeys([torch.float64], 1e-12) | {torch.float32: 3e-6, torch.bfloat16: 3e-2}
gpu = pytest.mark.gpu


def drawn(lengths=LENGTHS, heads=3, size=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), heads, size, generator=generator, dtype=torch.float64).to(dtype) for _ in "qkvg"]


def reference(q, k, v, lengths, visible=None):
    """Attention as it is written down, one sequence and one head at a time, in float64."""
    rows, start = [], 0
    for length in lengths:
        place = slice(start, start + length)
        heads = []
        for head in range(q.shape[1]):
            scores = q[place, head].double() @ k[place, head].double().T / q.shape[2] ** 0.5
            if visible is not None:
                scores = scores + torch.where(visible[place], 0.0, -torch.inf)
            heads.append(torch.exp(scores - scores.max(1, keepdim=True).values))
            heads[-1] = heads[-1] / heads[-1].sum(1, keepdim=True) @ v[place, head].double()
        rows.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(rows)


def with_gradients(compute, q, k, v, gradient):
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    y = compute(q, k, v)
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, (q, k, v), gradient.to(y.dtype)))]


def near(found, right, bound):
    for a, b in zip(found, right, strict=True):
        assert (a.cpu() - b.cpu()).abs().max() <= bound * b.abs().max().cpu()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", HERE)
def test_every_way_is_attention_as_it_is_written_down(name, dtype):
    q, k, v, gradient = drawn(dtype=dtype)
    right = with_gradients(lambda q, k, v: reference(q, k, v, LENGTHS), *(x.double() for x in (q, k, v, gradient)))
    found = with_gradients(lambda q, k, v: WAYS[name].compute(q, k, v, Spans(LENGTHS, CPU)), q, k, v, gradient)
    near(found, right, EXACT[dtype])


@pytest.mark.parametrize("name", [name for name in HERE if WAYS[name].hides])
def test_what_is_hidden_has_no_part(name):
    q, k, v, gradient = drawn()
    visible = torch.ones(sum(LENGTHS), dtype=torch.bool)
    visible[[3, 4, 21, 30, 73]] = False
    right = with_gradients(lambda q, k, v: reference(q, k, v, LENGTHS, visible), q, k, v, gradient)
    spans = Spans(LENGTHS, CPU, visible)
    found = with_gradients(lambda q, k, v: WAYS[name].compute(q, k, v, spans), q, k, v, gradient)
    near(found, right, 1e-12)
    assert not found[2][~visible].any()  # nothing flows back into a key that is not looked at


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", HERE)
def test_no_sequence_sees_another(name):
    """Were its neighbor no number at all: not a bit of a sequence's outputs or gradients changes."""
    answers = []
    for neighbor in (0.0, 1e6, torch.nan):
        q, k, v, gradient = drawn(dtype=torch.float32)
        for x in (q, k, v, gradient):
            x[2:11] += neighbor  # the second
        found = with_gradients(lambda q, k, v: WAYS[name].compute(q, k, v, Spans(LENGTHS, CPU)), q, k, v, gradient)
        answers.append([x[[0, 1, *range(11, sum(LENGTHS))]] for x in found])
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", [*HERE, None])
def test_an_encoder_gives_the_same_in_every_way(name):
    encoder = tiny_encoder().double()
    with torch.inference_mode():
        right = encoder(Tokens.of(list(TEN))).residues
        if name:
            with only(name):
                torch.testing.assert_close(encoder(Tokens.of(list(TEN))).residues, right, rtol=0, atol=1e-12)
        for sequence, x in zip(TEN, right.split([len(sequence) for sequence in TEN]), strict=True):
            torch.testing.assert_close(encoder(Tokens.of([sequence])).residues, x, rtol=0, atol=1e-12)


def test_blocks_hold_every_token_once_and_little_padding():
    draw = torch.Generator().manual_seed(1)
    lengths = tuple(torch.randint(2, 1025, (100,), generator=draw).tolist())
    laid = Spans(lengths, CPU).blocks
    tokens = torch.arange(sum(lengths))
    assert torch.equal(laid.into[laid.out], tokens)
    assert len(laid.into) == sum(block.rows * block.length for block in laid.blocks) < SIMILAR * sum(lengths)
    assert all(block.rows == 1 or block.rows * block.length**2 <= PAIRS for block in laid.blocks)
    assert Spans((4,) * 10_000, CPU).blocks.blocks[0].visible is None  # nothing to mask where lengths are equal


def test_lengths_are_worked_out_once_a_batch(monkeypatch):
    """By the first layer, for all: an offset that each layer brought to a device would have the device wait."""
    made = []
    taken = WAYS["padded"].compute
    monkeypatch.setitem(WAYS, "padded", Way(compute=lambda q, k, v, spans: made.append(spans) or taken(q, k, v, spans)))
    with only("padded"):
        tiny_encoder()(Tokens.of(list(TEN)))
    assert len(made) == 2  # layers
    assert made[0] is made[1]
    assert made[0].blocks is made[1].blocks
    assert made[0].offsets is made[1].offsets


@pytest.mark.parametrize("name", ["runs", "plain", "padded", "tiled"])
def test_nothing_in_the_encoder_needs_to_know_a_number(name, monkeypatch):
    """Where there are shapes and no numbers it computes all the same: so on a GPU nothing has to wait for one."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which does not know such a device
    tokens = Tokens.of([*TEN, "MK<pad>V", "M<mask>"]).to(torch.device("meta"))
    with only(name):
        x = tiny_encoder().to("meta")(tokens)
    assert x.residues.shape == (sum(map(len, TEN)) + 6, 32)
    assert x.residues.is_meta


def recorded(calls):
    """A stand-in for a kernel over variable lengths: keeps what it is called with, and computes by reference."""

    def kernel(q, k, v, ends, ends_of_keys, longest, longest_key, **options):
        calls.append((q, k, v, ends, ends_of_keys, longest, longest_key, options))
        return reference(q, k, v, ends.diff().tolist()).to(q.dtype)

    return kernel


@pytest.fixture
def cuda_here(monkeypatch):
    """Make choices on the CPU as they are made on CUDA, with a kernel that computes by reference."""
    calls = []
    monkeypatch.setattr(varlen, "varlen_attn", recorded(calls))
    monkeypatch.setitem(attention.PREFERRED, "cpu", attention.PREFERRED["cuda"])
    for name in ("varlen", "nested"):
        old = WAYS[name]
        monkeypatch.setitem(WAYS, name, Way(compute=old.compute, devices=("cpu",), dtypes=old.dtypes, hides=old.hides))
    passes.cache_clear()
    yield calls
    passes.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_calls_its_kernel_as_documented(cuda_here, dtype):
    q, k, v, gradient = drawn(dtype=dtype, size=24)
    spans = Spans(LENGTHS, CPU)
    found = with_gradients(lambda q, k, v: WAYS["varlen"].compute(q, k, v, spans), q, k, v, gradient)
    right = with_gradients(lambda q, k, v: reference(q, k, v, LENGTHS), *(x.double() for x in (q, k, v, gradient)))
    near(found, right, 3e-2)
    (*qkv, ends, ends_of_keys, longest, longest_key, options) = cuda_here[0]
    assert all(x.shape == (74, 3, 24) and x.dtype == dtype and x.is_contiguous() for x in qkv)
    assert ends is ends_of_keys
    assert ends.dtype == torch.int32
    assert ends.tolist() == [0, 2, 11, 20, 23, 63, 72, 74]
    assert (longest, longest_key, options) == (40, 40, {})


def test_flash_attn_is_called_as_documented(monkeypatch):
    calls = []
    monkeypatch.setattr(ways.importlib, "import_module", lambda name: type(name, (), {
        "flash_attn_varlen_func": staticmethod(recorded(calls))}))  # fmt: skip
    q, k, v, _ = drawn(dtype=torch.bfloat16)
    found = WAYS["flash"].compute(q, k, v, Spans(LENGTHS, CPU))
    near([found.double()], [reference(q, k, v, LENGTHS)], 3e-2)
    *_, ends, _, longest, longest_key, options = calls[0]
    assert (ends.dtype, ends.tolist()[-1], longest, longest_key) == (torch.int32, 74, 40, 40)
    assert options == {"deterministic": True}


def test_a_way_that_is_right_is_taken(cuda_here):
    assert choose(CPU, torch.bfloat16, 16) == "varlen"
    assert len(cuda_here) == 1  # checked once
    assert choose(CPU, torch.bfloat16, 16) == "varlen"
    assert len(cuda_here) == 1
    assert choose(CPU, torch.bfloat16, 16, hides=True) == "padded"  # these kernels cannot hide <pad>
    assert choose(CPU, torch.float32, 16) == "nested"  # nor compute in float32
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert choose(CPU, torch.bfloat16, 64) == "varlen"  # whatever the caller computes in, and without gradients


def off(x):
    return lambda q, k, v, ends, *rest: reference(q, k, v, ends.diff().tolist()).to(q.dtype) * x


def rightly_but_backward(q, k, v, ends, *rest):
    y = reference(q, k, v, ends.diff().tolist()).to(q.dtype)
    return y.detach() + (y - y.detach()) * 1.1


def broken(*rest):
    raise RuntimeError("no kernel image is available for execution on the device\nand so on")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (off(1.1), "its numbers are off by 0.1 of the largest, where 0.03 is rounding"),
        (off(torch.nan), "its numbers are off by inf"),
        (rightly_but_backward, "its numbers are off by"),
        (broken, "no kernel image is available for execution on the device."),
    ],
    ids=["wrong", "nan", "wrong backward", "broken"],
)
def test_a_way_that_is_wrong_is_not_taken_and_warned_of_once(cuda_here, monkeypatch, kernel, why):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    with pytest.warns(RuntimeWarning, match=why):
        assert choose(CPU, torch.bfloat16, 16) == "nested"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(CPU, torch.bfloat16, 16) == "nested"


def test_where_every_way_is_wrong_nothing_is_computed(cuda_here, monkeypatch):
    for name in WAYS:
        if name != "plain":  # the one that others are compared with
            monkeypatch.setitem(WAYS, name, Way(compute=lambda q, k, v, spans: q + k + v))
    monkeypatch.setitem(attention.PREFERRED, "cpu", tuple(name for name in WAYS if name != "plain"))
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RuntimeError, match=r"no way of attention .* cpu in torch\.float32\. `esmtune doctor`"),
    ):
        choose(CPU, torch.float32, 16)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rounding_is_within_what_is_tolerated(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert error(name, CPU, dtype, 16) < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("units", ["amx", "avx512_bf16", ""])
def test_on_a_processor_the_table_decides(monkeypatch, units):
    """Products with AMX, tiles with AVX512-BF16, in bfloat16 and up to a length; else the fused kernel."""
    taken = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units == "amx")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units != "")  # what has AMX has this too
    for name, made in ways.KERNELS.items():
        monkeypatch.setitem(
            ways.KERNELS, name, lambda *qkv, name=name, made=made, visible: taken.append(name) or made(*qkv, visible)
        )
    for dtype, direction in [(d, way) for d in (torch.bfloat16, torch.float32) for way in ("backward", "forward")]:
        kernel, end = attention.FASTER.get((units, dtype, direction), ("fused", 7))
        lengths, expected = (end, end + 1), [kernel, "fused"]
        q, k, v, _ = drawn(lengths, heads=1, size=4, dtype=dtype)
        spans = Spans(lengths, CPU)
        taken.clear()
        attend(q, k.requires_grad_(direction == "backward"), v, spans)
        assert taken == expected
        taken.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = attend(q.float(), k.float(), v, spans)  # what autocast computes in counts, not what comes in
        assert taken == expected
        assert y.dtype == dtype
    named = {"amx": "products", "avx512_bf16": "tiled", "": "fused"}[units]
    assert attention.FASTER.get((units, torch.bfloat16, "backward"), ("fused",))[0] == named


def test_tiles_are_left_where_something_is_hidden(monkeypatch):
    """Which they cannot do."""
    monkeypatch.setitem(attention.FASTER, ("", torch.float32, "forward"), ("tiled", 100))
    monkeypatch.setattr(attention, "_units", lambda: "")
    q, k, v, _ = drawn(dtype=torch.float32)
    visible = torch.ones(sum(LENGTHS), dtype=torch.bool)
    visible[[3, 4, 21]] = False
    right = reference(q, k, v, LENGTHS, visible)
    assert (attend(q, k, v, Spans(LENGTHS, CPU, visible)).double() - right).abs().max() < 1e-5


def test_gradients_by_tiles_do_not_suffer_from_what_keys_and_values_have_alike():
    """In bfloat16: an offset of 4 costs keys two bits, and no gradient more than that."""
    q, k, v, gradient = drawn((60, 60), dtype=torch.bfloat16)
    k, v = k + 4, v + 4
    right = with_gradients(lambda *x: reference(*x, (60, 60)), *(x.double() for x in (q, k, v, gradient)))
    found = with_gradients(lambda *x: WAYS["tiled"].compute(*x, Spans((60, 60), CPU)), q, k, v, gradient)
    for one, other in zip(found, right, strict=True):
        assert (one - other).norm() <= 0.04 * other.norm()


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_scores_too_large_for_their_exponentials_are_no_harm_to_others(dtype):
    """Those of some heads of some sequences: there it is a softmax, and no bit of the others changes."""
    q, k, v, gradient = drawn(dtype=dtype)
    found = with_gradients(lambda *x: WAYS["tiled"].compute(*x, Spans(LENGTHS, CPU)), q, k, v, gradient)
    q[2:11, 1] *= 400  # scores of up to thousands, whose exponentials no float32 holds
    right = with_gradients(lambda *x: reference(*x, LENGTHS), *(x.double() for x in (q, k, v, gradient)))
    large = with_gradients(lambda *x: WAYS["tiled"].compute(*x, Spans(LENGTHS, CPU)), q, k, v, gradient)
    # Scores in the thousands are rounded by one or more: what is the largest of them is all that is sure.
    near(large[:1], right[:1], EXACT[dtype] if dtype != torch.bfloat16 else 2.0)
    assert all(x.isfinite().all() for x in large)
    for one, other in zip(found, large, strict=True):
        one[2:11, 1] = other[2:11, 1] = 0
        assert torch.equal(one, other)


@pytest.mark.parametrize("cells", [1, 2 * 9**2, 2**20])
def test_tiles_of_any_size_give_the_same(monkeypatch, cells):
    monkeypatch.setattr(tiles, "CELLS", cells)
    q, k, v, gradient = drawn()
    right = with_gradients(lambda q, k, v: reference(q, k, v, LENGTHS), q, k, v, gradient)
    found = with_gradients(lambda q, k, v: WAYS["tiled"].compute(q, k, v, Spans(LENGTHS, CPU)), q, k, v, gradient)
    near(found, right, 1e-12)


@pytest.mark.parametrize("kernel", ways.KERNELS)
def test_keys_that_share_a_large_part_lose_little_to_rounding(kernel):
    """What all keys of a sequence share changes no weight of any; the biases of ESM-2's reach 9."""
    q, k, v, gradient = drawn(dtype=torch.float32)
    k = k + 60
    right = with_gradients(lambda q, k, v: reference(q, k, v, LENGTHS), *(x.double() for x in (q, k, v, gradient)))
    spans = Spans(LENGTHS, CPU)
    options = {"kernel": kernel, "of": LENGTHS, "dtype": torch.bfloat16}
    found = with_gradients(lambda q, k, v: ways.runs(q, k, v, spans, **options), q, k, v, gradient)
    near(found, right, EXACT[torch.bfloat16])


def test_nothing_is_written_into_slices_on_the_way_back():
    """Each would be a zero fill and an addition of the size of everything."""
    names = set()

    def walk(node):
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            for parent, _ in node.next_functions:
                walk(parent)

    for name in ("runs", "plain", "padded", "tiled"):
        seen = set()
        q, k, v, _ = drawn(dtype=torch.float32)
        walk(WAYS[name].compute(q.requires_grad_(), k, v, Spans(LENGTHS, CPU)).grad_fn)
    assert names
    assert not {each for each in names if "Slice" in each or "Index" in each or "CopySlices" in each}


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    return torch.device("cuda")


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_every_way_on_a_gpu(cuda, name, dtype):
    if why := WAYS[name].missing("cuda", dtype):
        pytest.skip(why)
    lengths = (2, 300, 300, 3, 70, 1024)
    for size in (16, 24, 32, 64):
        inputs = drawn(lengths, size=size, dtype=dtype)
        right = with_gradients(lambda q, k, v: reference(q, k, v, lengths), *(x.double() for x in inputs))
        spans = Spans(lengths, cuda)
        on_gpu = (x.to(cuda) for x in inputs)
        near(
            with_gradients(lambda q, k, v, spans=spans: WAYS[name].compute(q, k, v, spans), *on_gpu),
            right,
            TOLERANCE[dtype],
        )


@gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_layers_on_a_gpu_do_not_wait_for_it(cuda, precision):
    encoder = tiny_encoder().to(cuda)
    tokens = Tokens.of(list(TEN)).to(cuda)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
        encoder(tokens)  # every kernel is loaded and checked
        torch.cuda.set_sync_debug_mode("error")
        try:
            encoder(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
