"""Pictures as tokens: rounding, targets, order, places, runs that resume, draw and are compared."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.compare.records import collect
from rwkv_lab import data, models
from rwkv_lab.cli import generate
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.model_fields import IMG, IMG_FIRST, TXT, TXT_FIRST
from rwkv_lab.data.pictures import neighbours, packed, rand_round, unpacked
from rwkv_lab.data.tokenizers.pixels import PixelTokenizer
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.training.evaluate import evaluate_run
from tests.data.configs import data_config, tokenizer_config
from tests.in_process import STEPS, Here, make_here, results
from tests.models.contract import moved

Image = pytest.importorskip("PIL.Image")
S, L = 4, 3  # side and levels of the pictures here
SIGNS = L**3
SETTINGS = ("tokenizer=pixels", f"data.size={S}", f"data.levels={L}", "trainer.eval_tokens=64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Fourteen pictures of 6 x 5 pixels: six in two classes, four with a text beside them, four alone."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    for n in range(14):
        below = root / ("cat" if n % 2 else "dog") if n < 6 else root
        below.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (6, 5, 3)).astype(np.uint8)).save(below / f"{n}.png")
        if 6 <= n < 10:
            (below / f"{n}.txt").write_text(f"no {n}")
    return root


def corpus(folder, **fields):
    config = data_config("images", **({"path": str(folder), "size": S, "levels": L} | fields))
    return data.load(config, tokenizer_config("pixels"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


def test_rounding_at_random_keeps_the_mean():
    """4.578 becomes 5 in 57.8 % of the draws and 4 in the others; a whole number stays."""
    u = (np.arange(1000) + 0.5) / 1000
    rounded = rand_round(np.full(1000, 4.578), u)
    assert set(rounded.tolist()) == {4, 5} and (rounded == 5).mean() == 0.578
    assert (rand_round(np.full(1000, 4.0), u) == 4).all()


def test_shares_of_the_neighbours():
    """Eight tokens whose shares add up to 1, with the value as their mean; at the top level no token beyond it."""
    values = np.array([[0.25, 1.5, 2.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.75]])
    tokens, shares = neighbours(values, L)
    np.testing.assert_allclose(shares.sum(-1), 1)
    levels = np.stack((tokens // L**2, tokens // L % L, tokens % L), axis=-1)
    np.testing.assert_allclose((levels * shares[..., None]).sum(1), values)
    assert tokens.max() < L**3 and sorted(shares[0][shares[0] > 0].tolist()) == [0.125, 0.125, 0.375, 0.375]
    assert unpacked(packed(np.array([[0, 1, 2]]), L), L).tolist() == [[0, 128, 255]]


def test_training_sequences_are_functions_of_seed_and_number(folder):
    train = corpus(folder).train
    whole = train.sequences("random", 30, 5, 10**12, 6)
    for start, count in ((0, 2), (2, 4)):
        part = train.sequences("random", 30, 5, 10**12 + start, count)
        for array, same in zip(part, whole, strict=True):
            np.testing.assert_array_equal(array, same[start : start + count])
    assert (train.sequences("random", 30, 6, 10**12, 6).rows != whole.rows).any()
    assert whole.rows.shape == (6, 31) and whole.targets.shape == whole.weights.shape == (6, 30, 8)
    np.testing.assert_allclose(whole.weights.sum(-1), 1, rtol=1e-6)


def test_every_order_of_text_and_picture_and_partial_windows_occur(folder):
    found = corpus(folder)
    rows, _, _, start = found.train.sequences("random", 60, 1, 0, 200)
    assert found.tokenizer.vocab_size == SIGNS + 4 + 256
    assert (start > 0).any() and (start == -1).any()  # windows that begin inside a picture, and outside
    shown = [found.tokenizer.decode(row) for row in rows]
    assert any("[TxtFirst]cat[Img]<" in text for text in shown) and any(">[Txt]dog[" in text for text in shown)
    assert any("[ImgFirst]<" in text for text in shown) and any("no " in text for text in shown)
    for row in rows:
        for sign in np.flatnonzero(np.isin(row[: -S * S - 1], (SIGNS + IMG, SIGNS + IMG_FIRST))):
            assert (row[sign + 1 : sign + 1 + S * S] < SIGNS).all() and row[sign + 1 + S * S] >= SIGNS


def test_plain_rounding_has_plain_targets(folder):
    rows, weights, targets, _ = corpus(folder, rand_round=False).train.sequences("random", 20, 1, 0, 9)
    np.testing.assert_array_equal(rows[:, 1:], targets)
    assert (weights == 1).all()


def test_held_out_pictures_are_counted_once_and_never_trained_on(folder):
    found = corpus(folder, held_out=0.2)
    assert (len(found.train.values), len(found.val.values)) == (11, 3)
    train = {picture.tobytes() for picture in found.train.values}
    assert not train & {picture.tobytes() for picture in found.val.values}
    for T in (7, 16, 40):
        windows = -(-S * S // T)
        rows, weights, _, start = found.val.sequences("x", T, 1, 0, 3 * windows)
        assert weights.sum() == 3 * S * S
        counted = rows[:, 1:][weights > 0].reshape(3, -1)
        np.testing.assert_array_equal(counted, found.val.plain(np.arange(3)))
        assert start[:2].tolist() == ([-1, T - 1] if windows > 1 else [-1, -1])


def test_soft_targets_are_a_cross_entropy():
    """The loss of J tokens a position is that of their mixture; one of them with all the share is the plain loss."""
    model = moved("rwkv_v4", l2_wrap=False)
    idx = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(1))
    targets = torch.stack((idx, (idx + 3) % 11), -1)
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64).expand(2, 6, 2)
    p = torch.log_softmax(model(idx), -1).gather(-1, targets)
    torch.testing.assert_close(model.loss(idx, targets, shares), -(p * shares).sum(-1).mean())
    alone = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 6, 2)
    torch.testing.assert_close(model.loss(idx, targets, alone), model.loss(idx, idx))


@pytest.mark.parametrize("name", registry.names("model"))
def test_places_in_every_model(name):
    """Told where a chunk begins, or counting from the sign, a model sees the same places; in chunks and at once."""
    fields = {"positions_2d": True, "image_size": 2, "image_levels": 2, "ctx_len": 16, "head_qk_dim": 0}
    model = models.build(name, vocab_size=12 + 2, n_layer=2, n_embd=12, **fields).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    #                    letter  [Img]    four pixels    [ImgFirst]     pixels  [Txt]
    idx = torch.tensor([[12, 8 + IMG, 1, 2, 3, 4, 8 + IMG_FIRST, 0, 0, 0, 0, 8 + TXT]])
    added, place = model.positions(idx, None, torch.float64)
    seen = (added[0] != 0).any(-1).tolist()
    assert seen == [False, False, *[True] * 4, False, *[True] * 4, False] and place.item() == 5
    assert added[0, 4].tolist()[:6] == [1, 0, 0, 1, -1, 1]  # the third pixel: x 0, y 1
    whole = model(idx)
    recurrent, state, parts = RecurrentModel(model), None, []
    for chunk in idx.split((4, 1, 7), dim=1):
        logits, state = recurrent.prefill(chunk, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
    late, _ = model.positions(idx[:, 3:], torch.tensor([1]), torch.float64)
    assert torch.equal(late, added[:, 3:])
    assert not torch.allclose(model(idx[:, 3:], torch.tensor([1]))[:, 0], model(idx[:, 3:])[:, 0])


def test_a_window_that_is_halved_inside_a_picture_keeps_its_places():
    fields = {"positions_2d": True, "image_size": 4, "image_levels": 2, "ctx_len": 8}
    model = models.build("mha_rotary", vocab_size=12, n_layer=1, n_embd=12, **fields).double()
    idx = torch.tensor([[8 + IMG, *[1, 2, 3] * 4]])
    got, state = RecurrentModel(model).prefill(idx[:, :9])
    want = model(idx[:, 4:9], torch.tensor([3]))[:, -1]
    torch.testing.assert_close(got[:, -1], want, rtol=0, atol=1e-10)
    assert state.place.item() == 8


@pytest.mark.parametrize("name", registry.names("model"))
def test_every_model_trains_on_pictures(folder, name):
    """A finite loss of the neighbours, and a gradient for every parameter but those of tokens that do not occur."""
    found = corpus(folder)
    fields = {"positions_2d": True, "image_size": S, "image_levels": L, "ctx_len": 30, "n_layer": 2, "n_embd": 16}
    model = models.build(name, vocab_size=found.tokenizer.vocab_size, **fields)
    rows, *more = found.train.sequences("random", 30, 1, 0, 4)
    batch = [torch.from_numpy(array) for array in registry.get("objective", "lm")().batch(rows, 0, 1, *more)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss) and all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("model", [registry.names("model")[0], registry.names("model")[-1]])
def test_a_run_resumes_as_if_uninterrupted(here, folder, model, capsys):
    words = ("data=images", f"data.path={folder}", *SETTINGS, f"model={model}", "model.positions_2d=true")
    words += ("model.ctx_len=20", "trainer.accumulate=2")
    assert here.run(*words, study="whole") == 0
    here.kill_at(7, *words)
    assert here.run(*words) == 0
    whole, run = here.folder("whole"), here.folder()
    assert results(run) == results(whole)
    assert (run / "images.png").read_bytes() == (whole / "images.png").read_bytes()
    result = here.loaded().manifest["result"]
    assert result["val_bpb"] is None and 0 <= result["val_accuracy"] <= 1 and STEPS == 12
    assert evaluate_run(str(run), "val", "cpu").accuracy == result["val_accuracy"]
    assert collect([run], "")[0].images.startswith(b"\x89PNG")


def test_pictures_drawn_at_the_command_line(here, folder, tmp_path, capsys):
    assert here.run("data=images", f"data.path={folder}", *SETTINGS, "model.ctx_len=20", "trainer.sample_length=0") == 0
    run, out = here.folder(), tmp_path / "drawn.png"
    assert not (run / "images.png").exists()
    for words in (["a cat"], ["--image", str(folder / "7.png")]):
        out.unlink(missing_ok=True)
        generate.main([str(run), *words, "--out", str(out)])
        with Image.open(io.BytesIO(out.read_bytes())) as drawn:
            assert drawn.size == (4 * S, 4 * S)
    for words, pattern in (
        (["--image", str(here.text), "--out", str(out)], "not a readable picture"),
        (["a cat"], "--out"),
        (["a cat", "--image", str(folder / "7.png"), "--out", str(out)], "--image"),
    ):
        with pytest.raises(UserError, match=pattern):
            generate.main([str(run), *words])


def test_a_prompt_is_a_caption():
    tokenizer = PixelTokenizer(S, L)
    ids = tokenizer.encode("cat")
    assert ids[0] == SIGNS + TXT_FIRST and ids[-1] == SIGNS + IMG and tokenizer.decode(ids) == "[TxtFirst]cat[Img]"
    assert tokenizer.encode(" ").tolist() == tokenizer.start() == [SIGNS + IMG]
    assert data.from_json(tokenizer.to_json()) == tokenizer


def test_photographs_are_cut_into_patches_that_do_not_overlap():
    pytest.importorskip("skimage")
    found = data.load(data_config("images", size=8, levels=4), tokenizer_config("pixels"))
    assert len(found.train.values) > 500 and len(found.val.values) > 20
    assert found.train.values.max() <= 3 and found.train.values.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("data=images", "tokenizer=char"), r"tokenizer=.*pixels"),
        (("data=images", "data.path=/nowhere"), r"data\.path"),
        (("data=images", "data.order=cube"), r"data\.order"),
        (("data=images", "data.fit=cut"), r"data\.fit"),
        (("data=images", "objective=mlm"), r"objective=lm"),
        (("data=images", "data.size=8", "model.positions_2d=true", "model.n_embd=16"), r"model\.n_embd .*18"),
        (("data=kjv", "tokenizer=byte", "model.positions_2d=true"), r"data=images"),
        (("data=kjv", "tokenizer=pixels"), r"tokenizer="),
    ],
)
def test_mistakes(here, words, pattern):
    with pytest.raises(UserError, match=pattern):
        here.run("tokenizer=pixels", *words)
    assert not here.runs.exists()


def test_mistakes_in_a_folder(folder, tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        corpus(tmp_path)
    with pytest.raises(UserError, match=r"data\.size=9"):
        corpus(folder, size=9, fit="cut")
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(b"no picture either")
    with pytest.raises(UserError, match="not a readable picture"):
        corpus(tmp_path)
